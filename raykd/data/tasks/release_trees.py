"""The target form `release` of trees: that of MCKD's release (Zhao et al. 2024).

A bracket around every word, and around a constituent once more for every unary ancestor,
`( ( ( The ) ( dog ) ) ( barks ) )`.
"""

from __future__ import annotations

import re

from raykd.data.tasks.formats import Format
from raykd.data.tasks.trees import Tree, leaves, parse

CONTRACTIONS = {"won't": "wo n't", "don't": "do n't", "can't": "ca n't"}


def release(tree: Tree) -> str:
    """The target `release` of a gold tree, as the release's code has it (its README and parserlib)."""

    def pieces(tree: Tree) -> list[str]:
        if isinstance(tree.children[0], str):
            return [f"( {tree.children[0]} )"]
        inner = [piece for child in tree.children for piece in pieces(child)]
        return ["(", *inner, ")"] if len(inner) > 1 else inner

    return " ".join(pieces(tree))


def release_words(target: str) -> list[str]:
    """The words of a tree in the form `release`. Raises ValueError where the text is not exactly one tree.

    No bracket has a label: a text after a bracket is a word, as in the release.
    """
    trees = parse(target.replace("(", "( "))
    if len(trees) != 1:
        raise ValueError(f"{len(trees)} trees")
    return [word for word, _ in leaves(trees[0])]


def invalid_release(input: str, target: str) -> str | None:
    """Why a text is no tree over as many words as the input has, which is all that the release requires."""
    try:
        words = release_words(target)
    except ValueError as error:
        return str(error)
    expected = len(input.split())
    return None if len(words) == expected else f"{len(words)} words, the input has {expected}"


def repair_release(input: str, target: str) -> str:
    """The text if it is a target of this input, else repaired as in the release, which need not make it one."""
    return target if invalid_release(input, target) is None else release_repair(input, target)


def release_repair(input: str, target: str) -> str:
    """A target as the release's scorer repairs it: brackets are balanced, words separated as the input has them."""
    missing = target.count("(") - target.count(")")
    target, end = target + " )" * missing, len(target)
    if missing < 0:
        while missing < 0 and target.endswith(" )", 0, end):
            missing, end = missing + 1, end - 2
        target = target[:end]
    for mark in "/-":
        pieces = target.split()
        for place, piece in enumerate(pieces):
            parts = piece.split(mark)
            if len(piece) > 1 and len(parts) > 1 and f" {mark} ".join(parts) in input:
                pieces[place] = f" ( {mark} ) ".join(f"( {part} )" for part in parts)
        target = " ".join(pieces)
    pieces = target.split()
    for place, piece in enumerate(pieces):
        separated = CONTRACTIONS.get(piece)
        if separated and separated in input:
            pieces[place] = f"( {separated} )"
        elif piece.endswith("'s") and piece not in input:
            pieces[place] = f"( {piece[:-2]} 's )"
    return re.sub(r"\(\s*", "( ", " ".join(pieces))


RELEASE = Format(invalid_release, repair_release)
FORMATS = {"release_trees": RELEASE}
