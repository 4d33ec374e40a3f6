"""Constituency trees: which words of a sentence belong together.

Three target forms, all of pieces that blanks separate, each in a file of its own:

- `unlabelled`: brackets around every constituent of more than one word, `( ( The dog ) barks )`. Unary chains are one.
- `labelled`: the same with labels, unary chains kept and parts of speech left out, `(S (NP The dog ) (VP barks ) )`.
- `release`: that of MCKD's release (Zhao et al. 2024): a bracket around every word, and around a constituent once more
  for every unary ancestor, `( ( ( The ) ( dog ) ) ( barks ) )`.

A word that holds a bracket is written as in the Penn treebank, `-LRB-` for `(`. Gold trees have a part of speech above
each word. This file reads trees and targets of every form, also damaged ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import NamedTuple

from raykd.data.tasks.words import other_words

PENN = re.compile(r"\(\S+ [^\s()]+\)")  # a part of speech and its word, which no target form has
DEEPEST = 200  # brackets within brackets; a deeper text is no tree
ROOTS = ("", "TOP", "ROOT", "S1")  # labels of a bracket around the whole that carries no information
PIECES = re.compile(r"\([^\s()]*|\)|[^\s()]+")


class Tree(NamedTuple):
    """A constituent: its label, and trees or words."""

    label: str
    children: list


class Bracket(NamedTuple):
    """A constituent's extent: the place of its first word, the place after its last, and its label."""

    start: int
    end: int
    label: str


def parse(text: str) -> list[Tree]:
    """The trees of a text in brackets. Raises ValueError, in one line, for brackets that do not match."""
    whole = Tree("", [])
    open_ = [whole]
    for piece in PIECES.findall(text):
        if piece.startswith("("):
            if len(open_) > DEEPEST:
                raise ValueError(f"more than {DEEPEST} brackets within each other")
            tree = Tree(piece[1:], [])
            open_[-1].children.append(tree)
            open_.append(tree)
        elif piece != ")":
            open_[-1].children.append(piece)
        elif len(open_) == 1:
            raise ValueError("a bracket is closed that was not opened")
        else:
            open_.pop()
    if len(open_) > 1:
        raise ValueError(f"{len(open_) - 1} brackets are not closed")
    if any(isinstance(child, str) for child in whole.children):
        raise ValueError("words outside of brackets")
    return whole.children


# ------------------------------------------------------------------------------------------------- gold trees


def clean(tree: Tree) -> Tree | None:
    """A gold tree without traces, function tags and a root without information; None where no word is left."""
    without_traces = stripped(tree)
    return without_traces and rootless(without_traces)


def stripped(tree: Tree) -> Tree | None:
    """A gold tree without traces and function tags; None where no word is left.

    Raises ValueError for a part of speech above several words, and for words beside constituents.
    """
    label, children = tree
    if children and all(isinstance(child, str) for child in children):
        if len(children) > 1:
            raise ValueError(f"{len(children)} words under the one part of speech {label!r:.20}")
        return None if label == "-NONE-" else Tree(label, [_without_brackets(children[0])])
    parts = [part for part in map(stripped, (c for c in children if not isinstance(c, str))) if part]
    if len(children) != sum(not isinstance(child, str) for child in children):
        raise ValueError(f"words and constituents together under {label!r:.20}")
    return Tree(_bare(label) or "TOP", parts) if parts else None  # no target form has labels that are empty


def rootless(tree: Tree) -> Tree:
    """A tree without a root that carries no information."""
    while tree.label in ROOTS and len(tree.children) == 1 and not isinstance(tree.children[0], str):
        tree = tree.children[0]
    return tree


def lowered(tree: Tree) -> Tree:
    """The same tree with its words in lower case."""
    return Tree(tree.label, [child.lower() if isinstance(child, str) else lowered(child) for child in tree.children])


def leaves(tree: Tree) -> list[tuple[str, str]]:
    """The words of a tree, each with the label above it."""
    return [pair for c in tree.children for pair in ([(c, tree.label)] if isinstance(c, str) else leaves(c))]


def brackets(tree: Tree) -> list[Bracket]:
    """The constituents of a gold tree, outer ones first, parts of speech left out."""
    outer_first: list[Bracket] = []

    def add(tree: Tree, start: int) -> int:
        if isinstance(tree.children[0], str):
            return start + 1
        place = len(outer_first)
        outer_first.append(Bracket(start, start, tree.label))
        end = start
        for child in tree.children:
            end = add(child, end)
        outer_first[place] = Bracket(start, end, tree.label)
        return end

    add(tree, 0)
    return outer_first


def one_line(tree: Tree) -> str:
    """A gold tree as text, `(S (NP (DT The) (NN dog)) ...)`."""
    return f"({tree.label} {' '.join(c if isinstance(c, str) else one_line(c) for c in tree.children)})"


def gold_tree(references: Iterable[str]) -> Tree | None:
    """The first of several references that is a gold tree with parts of speech, clean."""
    for reference in references:
        if PENN.search(reference):
            try:
                (tree,) = parse(reference)
                return clean(tree)
            except ValueError:
                continue
    return None


def _bare(label: str) -> str:
    """A label without function tags and indices, `NP-SBJ=2` -> NP; `-LRB-` stays."""
    return re.split(r"[-=]", label, maxsplit=1)[0] or label


def _without_brackets(word: str) -> str:
    return word.replace("(", "-LRB-").replace(")", "-RRB-")


# ------------------------------------------------------------------------------------------------- targets


def words_of(input: str) -> list[str]:
    """The words of an input as they stand in its targets."""
    return [_without_brackets(word) for word in input.split()]


def written(words: list[str], brackets: list[Bracket]) -> str:
    """Words in brackets that do not cross; of equal brackets the first is outside."""
    pieces: list[str] = []
    outer_first = sorted(brackets, key=lambda b: (b.start, -b.end))
    for place, word in enumerate(words):
        pieces += [f"({bracket.label}" for bracket in outer_first if bracket.start == place]
        pieces.append(word)
        pieces += [")"] * sum(bracket.end == place + 1 for bracket in brackets)
    return " ".join(pieces)


def read(target: str) -> tuple[list[str], list[Bracket]]:
    """The words of a target in any form, however damaged, and its brackets, outer ones first, without empty ones.

    A bracket that is not closed ends with the target; a closing one too many is ignored.
    """
    words: list[str] = []
    outer_first: list[Bracket] = []
    open_: list[int] = []
    for piece in PIECES.findall(target):
        if piece.startswith("("):
            open_.append(len(outer_first))
            outer_first.append(Bracket(len(words), -1, piece[1:]))
        elif piece != ")":
            words.append(piece)
        elif open_:
            place = open_.pop()
            outer_first[place] = outer_first[place]._replace(end=len(words))
    closed = [Bracket(start, len(words) if end < 0 else end, label) for start, end, label in outer_first]
    return words, [bracket for bracket in closed if bracket.start < bracket.end]


def aligned(words: list[str], target: str) -> list[Bracket]:
    """The brackets of a target in places of these words, outer ones first.

    Where the target's words are others, they are aligned (difflib): words changed one for one keep their place, others
    have none. Of brackets that then cross, the first counts.
    """
    target_words, target_brackets = read(target)
    if target_words == words:
        return target_brackets
    place: dict[int, int] = {}
    matcher = SequenceMatcher(None, words, target_words, autojunk=False)
    for _, start, end, target_start, target_end in matcher.get_opcodes():
        if end - start == target_end - target_start:
            place |= dict(zip(range(target_start, target_end), range(start, end), strict=True))
    in_place: list[Bracket] = []
    for start, end, label in target_brackets[: 10 * len(words) + DEEPEST]:
        inside = [place[i] for i in range(start, end) if i in place]
        if not inside:
            continue
        first, last = inside[0], inside[-1] + 1
        if not any(a < first < b < last or first < a < last < b for a, b, _ in in_place):
            in_place.append(Bracket(first, last, label))
    return in_place


def invalid_tree(input: str, target: str, labels: bool) -> str | None:
    """Why a text is no tree over the input's words, in one line; None if it is one.

    labels: whether its brackets have labels, as in `labelled`, or have none, as in `unlabelled`.
    """
    expected = words_of(input)
    if not expected:
        return "the input is empty"
    try:
        trees = parse(target)
    except ValueError as error:
        return str(error)
    if len(trees) != 1:
        return f"{len(trees)} trees"
    for piece in PIECES.findall(target):
        if piece.startswith("(") and (len(piece) > 1) != labels:
            return f"{piece!r:.40} is a bracket {'without' if labels else 'with'} a label"
    reason = other_words(expected, read(target)[0])
    return reason or ("a bracket holds no word" if re.search(r"\([^\s()]*\s*\)", target) else None)


def not_too_deep(brackets: list[Bracket]) -> list[Bracket]:
    """Brackets that do not cross, without those within DEEPEST others; of equal ones the first is outside."""
    outer: list[Bracket] = []
    ends: list[int] = []  # of the brackets that a word is in
    for bracket in sorted(brackets, key=lambda b: (b.start, -b.end)):
        while ends and ends[-1] <= bracket.start:
            ends.pop()
        if len(ends) < DEEPEST:
            ends.append(bracket.end)
            outer.append(bracket)
    return outer
