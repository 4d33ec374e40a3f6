"""What the scripted engine answers in tests."""

import time

from conftest import word


def slow(prompt: str, sample: int) -> str:
    """The right answer, after a while."""
    time.sleep(0.02)
    return prompt.removesuffix(" =>").upper()


def refuse(prompt: str, sample: int) -> str:
    """The prompt, but for one that is refused."""
    if prompt == f"{word(7)} =>":
        raise ValueError("too long")
    return prompt
