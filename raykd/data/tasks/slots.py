"""Slot filling: the words of an utterance that fill slots, and its speaker's intent.

Three target forms, all of pieces that blanks separate, each in a file of its own:

- `interleaved`: each word and its BIO tag, `play O Madonna B-artist` (MCKD's release, Zhao et al. 2024).
- `top`: brackets with labels, `[IN:PlayMusic play [SL:artist Madonna ] ]` (Gupta et al. 2018), here without nesting.
- `intent`: the intent's name alone.

A tag is `O`, `B-label` or `I-label`; a label holds no blank and no square bracket. This file reads targets of every
form, also damaged ones.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import NamedTuple

LABEL = re.compile(r"[^\s\[\]]+")
TAG = re.compile(rf"O|[BI]-{LABEL.pattern}")
INTENT = re.compile(rf"\[IN:({LABEL.pattern})")
SLOT = re.compile(rf"\[SL:({LABEL.pattern})")
OPENING = re.compile(r"\[(IN|SL):")
LIKE_A_BRACKET = re.compile(r"\\*(\]$|\[(IN|SL):)")


class Chunk(NamedTuple):
    """The words that fill a slot: its label, the place of the first word and the place after the last."""

    label: str
    start: int
    end: int


def chunks(tags: list[str]) -> list[Chunk]:
    """The chunks of a sentence's tags, in order.

    An I- that continues no chunk of its label begins one, as for conlleval and seqeval's default.
    """
    in_order: list[Chunk] = []
    for place, tag in enumerate(tags):
        kind, _, label = tag.partition("-")
        if kind == "I" and in_order and (in_order[-1].label, in_order[-1].end) == (label, place):
            in_order[-1] = in_order[-1]._replace(end=place + 1)
        elif kind in ("B", "I"):
            in_order.append(Chunk(label, place, place + 1))
    return in_order


def to_iob2(tags: list[str]) -> list[str]:
    """Tags of the same chunks in the scheme IOB2: every chunk begins with B-."""
    starts = {chunk.start for chunk in chunks(tags)}
    return [f"B{tag[1:]}" if place in starts else tag for place, tag in enumerate(tags)]


def words(target: str) -> list[str]:
    """The words of a target in the form `interleaved` or `top`."""
    return _read(target, [])[0]


def tags(input: str, target: str) -> list[str]:
    """A tag for each word of the input, from a target in the form `interleaved` or, if it opens a bracket, `top`.

    Where the target's words are not the input's, they are aligned (difflib): words changed one for one keep their
    tags, words that the target lacks are O. A piece in a tag's place that is no tag is O, too. An I- may stand without
    a B- before it.
    """
    expected = input.split()
    written, written_tags = _read(target, expected)
    if written == expected:
        return written_tags
    aligned = ["O"] * len(expected)
    matcher = SequenceMatcher(None, expected, written, autojunk=False)
    for _, start, end, written_start, written_end in matcher.get_opcodes():
        if end - start == written_end - written_start:  # the same words, or as many others
            aligned[start:end] = written_tags[written_start:written_end]
    return aligned


def intent(target: str) -> str | None:
    """The label of the first `[IN:` bracket, or a target that is one label and nothing else; else None."""
    match = INTENT.search(target) or re.fullmatch(rf"\s*({LABEL.pattern})\s*", target)
    return match[1] if match else None


def _read(target: str, expected: list[str]) -> tuple[list[str], list[str]]:
    """The words of a target, however damaged, and a tag for each; `expected` are the input's words, where known."""
    pieces = target.split()
    written, written_tags = pieces[::2], pieces[1::2]
    if len(written) == len(written_tags) and all(map(TAG.fullmatch, written_tags)):
        return written, written_tags  # never in brackets: the last piece is a tag
    if any(map(OPENING.match, pieces)):
        return _read_brackets(pieces, set(expected))
    if written != expected:
        written, written_tags = [], []
        for piece in pieces:  # a tag belongs to the word before it; any other piece, or a second tag, is a word
            if TAG.fullmatch(piece) and len(written_tags) < len(written):
                written_tags.append(piece)
            else:
                written_tags += ["O"] * (len(written) - len(written_tags))
                written.append(piece)
    written_tags += ["O"] * (len(written) - len(written_tags))
    return written, [tag if TAG.fullmatch(tag) else "O" for tag in written_tags]


def _read_brackets(pieces: list[str], expected: set[str]) -> tuple[list[str], list[str]]:
    """The words of pieces in the form `top`, and a tag for each."""
    written, written_tags, tag = [], [], "O"
    for piece in pieces:
        if OPENING.match(piece):
            slot = SLOT.match(piece)
            tag = f"B-{slot[1]}" if slot else "O"
            continue
        word = unescaped(piece)
        # some write `Madonna]`
        closes = piece == "]" or bool(expected) and word.endswith("]") and word not in expected
        word = word.rstrip("]") if closes else word
        if word:
            written.append(word)
            written_tags.append(tag)
        tag = "O" if closes or tag == "O" else f"I{tag[1:]}"
    return written, written_tags


def escaped(word: str) -> str:
    """A word as it stands in the form `top`: with a backslash before it where it would read as a bracket."""
    return f"\\{word}" if LIKE_A_BRACKET.match(word) else word


def unescaped(piece: str) -> str:
    """The word that a piece of the form `top` stands for."""
    return piece[1:] if piece.startswith("\\") and LIKE_A_BRACKET.match(piece) else piece
