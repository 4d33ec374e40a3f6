"""Output formats: what the targets of a task look like, by the names that recipes have for them.

A file of this package that has a format ends with FORMATS, a literal dict from the names that recipes have to its
formats. A file that stands there is known; recipes are checked against it without importing it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raykd.errors import RecipeError
from raykd.recipe import names


@dataclass(frozen=True)
class Format:
    """What the targets of a task look like.

    invalid(input, text)  why a text cannot be a target of the input, in one line; None where it can
    repair(input, text)   the nearest text that can, a valid one unchanged; None where none is near
    """

    invalid: Callable[[str, str], str | None]
    repair: Callable[[str, str], str | None]


TREES = ("trees", "labelled_trees", "release_trees")
TEXT = Format(lambda input, text: None, lambda input, text: text)
FORMATS = {"text": TEXT}


def label_format(labels: Sequence[str]) -> Format:
    """One of the labels and nothing else; a text is repaired to the label it names last, else to the most similar.

    A label is named by whole words or numbers, in capitals or not; of labels in one place the longest counts. No label
    is near a text that has nothing in common with any of them.
    """
    by_length = sorted(labels, key=len, reverse=True)
    named = re.compile(rf"(?<!\w)(?<!\d\.)(?:{'|'.join(map(re.escape, by_length))})(?!\w|\.\d)", re.IGNORECASE)
    lower = {label.lower(): label for label in reversed(labels)}

    def invalid(input: str, text: str) -> str | None:
        return None if text.strip() in labels else f"{text.strip()!r:.40} is none of the labels"

    def repair(input: str, text: str) -> str | None:
        if invalid(input, text) is None:
            return text
        mentioned = named.findall(text)
        if mentioned:
            return mentioned[-1] if mentioned[-1] in labels else lower[mentioned[-1].lower()]
        near = {label: difflib.SequenceMatcher(None, label.lower(), text.lower()).ratio() for label in labels}
        best = max(labels, key=lambda label: near[label])
        return best if near[best] else None

    return Format(invalid, repair)


def get_format(name: str, labels: Sequence[str] | None = None) -> Format:
    """The format of that name, or a user's own as `module:name`; `labels` are the student's classes.

    Raises RecipeError if there is none.
    """
    if name == "labels":
        if not labels:
            raise RecipeError(
                "pseudo_targets.format: labels are those of student.labels, which the recipe does not give"
            )
        return label_format(labels)
    form = names.load(names.FORMAT, name, "pseudo_targets.format")
    if not isinstance(form, Format):
        raise RecipeError(f"pseudo_targets.format: {name}: expected a Format, found a {type(form).__name__}")
    return form
