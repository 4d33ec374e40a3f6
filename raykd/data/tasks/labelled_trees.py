"""The target form `labelled` of trees: brackets with labels around every constituent.

`(S (NP The dog ) (VP barks ) )`; unary chains are kept, parts of speech left out.
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


def labelled(tree: Tree) -> str:
    """The target `labelled` of a gold tree. A word alone is in a bracket `TOP`, which no metric counts."""
    return written([word for word, _ in leaves(tree)], brackets(tree) or [Bracket(0, 1, "TOP")])


def invalid_labelled(input: str, target: str) -> str | None:
    """Why a text is no `labelled` target of this input, in one line; None if it is one."""
    return invalid_tree(input, target, labels=True)


def repair_labelled(input: str, target: str) -> str:
    """The text if it is a target of this input, else its brackets around the input's words, within an `S` of them all.

    A bracket without a label becomes an `X`.
    """
    if invalid_labelled(input, target) is None:
        return target
    words = words_of(input)
    inner = [Bracket(start, end, label or "X") for start, end, label in aligned(words, target)]
    has_whole = any(start == 0 and end == len(words) for start, end, _ in inner)
    return written(words, not_too_deep(inner if has_whole else [Bracket(0, len(words), "S"), *inner]))


LABELLED = Format(invalid_labelled, repair_labelled)
FORMATS = {"labelled_trees": LABELLED}
