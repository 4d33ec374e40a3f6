"""Output formats: what the targets of a task look like, by the names that recipes have for them."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raykd.errors import RecipeError


@dataclass(frozen=True)
class Format:
    """What the targets of a task look like.

    invalid(input, text)  why a text cannot be a target of the input, in one line; None where it can
    repair(input, text)   the nearest text that can, a valid one unchanged; None where none is near
    """

    invalid: Callable[[str, str], str | None]
    repair: Callable[[str, str], str | None]


# name -> where it is; a module is loaded when its format is needed
FORMATS = {
    "text": "raykd.data.tasks.formats:TEXT",
    "trees": "raykd.data.tasks.unlabelled_trees:UNLABELLED",
    "labelled_trees": "raykd.data.tasks.labelled_trees:LABELLED",
    "release_trees": "raykd.data.tasks.release_trees:RELEASE",
    "slots": "raykd.data.tasks.interleaved:INTERLEAVED",
    "top": "raykd.data.tasks.top:TOP",
    "intent": "raykd.data.tasks.intents:INTENT_NAME",
}
TREES = ("trees", "labelled_trees", "release_trees")
TEXT = Format(lambda input, text: None, lambda input, text: text)


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
        names = named.findall(text)
        if names:
            return names[-1] if names[-1] in labels else lower[names[-1].lower()]
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
    module, colon, attribute = FORMATS.get(name, name).partition(":")
    if not colon:
        near = difflib.get_close_matches(name, [*FORMATS, "labels"], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(FORMATS)}, labels, or module:name"
        raise RecipeError(f"pseudo_targets.format: unknown format {name!r}; {hint}")
    try:
        form = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError) as error:  # ValueError: an empty module name
        raise RecipeError(f"pseudo_targets.format: {name}: {error}") from None
    if not isinstance(form, Format):
        raise RecipeError(f"pseudo_targets.format: {name}: {module} has no Format of that name")
    return form
