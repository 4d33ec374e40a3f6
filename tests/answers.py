"""What the scripted engine answers in tests."""

from conftest import word


def refuse(prompt: str, sample: int) -> str:
    """The prompt, but for one that is refused."""
    if prompt == f"{word(7)} =>":
        raise ValueError("too long")
    return prompt
