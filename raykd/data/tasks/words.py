"""The words of a target against those of its input."""

from __future__ import annotations


def other_words(expected: list[str], words: list[str]) -> str | None:
    """How a target's words differ from the input's words, in one line; None where they are the same."""
    if not expected:
        return "the input is empty"
    for place, (right, word) in enumerate(zip(expected, words, strict=False), start=1):
        if word != right:
            return f"word {place} is {word!r:.40}, the input's is {right!r:.40}"
    return None if len(words) == len(expected) else f"{len(words)} words, the input has {len(expected)}"
