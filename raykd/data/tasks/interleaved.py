"""The target form `interleaved` of slot filling: each word and its BIO tag, `play O Madonna B-artist`.

It is that of MCKD's release (Zhao et al. 2024).
"""

from __future__ import annotations

from raykd.data.tasks.formats import Format
from raykd.data.tasks.slots import TAG, tags, to_iob2
from raykd.data.tasks.words import other_words


def interleaved(words: list[str], tags: list[str], intent: str | None = None) -> str:
    """The target `word tag word tag ...`; the intent is not in it. Raises ValueError for unequal numbers."""
    return " ".join(f"{word} {tag}" for word, tag in zip(words, tags, strict=True))


def invalid_interleaved(input: str, target: str) -> str | None:
    """Why a text is no `interleaved` target of this input, in one line; None if it is one."""
    pieces = target.split()
    if len(pieces) % 2:
        return f"{len(pieces)} pieces, expected a tag for each word"
    before = "O"
    for tag in pieces[1::2]:
        if not TAG.fullmatch(tag):
            return f"{tag!r:.40} is no tag"
        if tag.startswith("I-") and before[1:] != tag[1:]:
            return f"{tag!r:.40} continues nothing: before it is {before!r:.40}"
        before = tag
    return other_words(input.split(), pieces[::2])


def repair_interleaved(input: str, target: str) -> str:
    """The text if it is a target of this input, else its `tags` after the input's words."""
    if invalid_interleaved(input, target) is None:
        return target
    return interleaved(input.split(), to_iob2(tags(input, target)))


INTERLEAVED = Format(invalid_interleaved, repair_interleaved)
FORMATS = {"slots": INTERLEAVED}
