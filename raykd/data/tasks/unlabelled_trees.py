"""The target form `unlabelled` of trees: brackets around every constituent of more than one word.

`( ( The dog ) barks )`; a unary chain is one bracket.
"""

from __future__ import annotations

from raykd.data.tasks.formats import Format
from raykd.data.tasks.trees import (
    Bracket,
    Tree,
    aligned,
    brackets,
    invalid_tree,
    leaves,
    not_too_deep,
    words_of,
    written,
)


def unlabelled(tree: Tree) -> str:
    """The target `unlabelled` of a gold tree."""
    words = [word for word, _ in leaves(tree)]
    spans = dict.fromkeys(Bracket(start, end, "") for start, end, _ in brackets(tree) if end - start > 1)
    return written(words, list(spans) or [Bracket(0, len(words), "")])


def invalid_unlabelled(input: str, target: str) -> str | None:
    """Why a text is no `unlabelled` target of this input, in one line; None if it is one."""
    return invalid_tree(input, target, labels=False)


def repair_unlabelled(input: str, target: str) -> str:
    """The text if it is a target of this input, else its brackets around the input's words, and one around them all."""
    if invalid_unlabelled(input, target) is None:
        return target
    words = words_of(input)
    whole = Bracket(0, len(words), "")
    spans = {Bracket(start, end, "") for start, end, _ in aligned(words, target) if end - start > 1}
    return written(words, not_too_deep([whole, *(spans - {whole})]))


UNLABELLED = Format(invalid_unlabelled, repair_unlabelled)
FORMATS = {"trees": UNLABELLED}
