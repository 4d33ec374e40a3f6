"""Tasks: the rows and the output formats of one task per file."""

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

    invalid(input, answer)  why the answer cannot be a target of the input, in one line; None where it can
    repair(input, answer)   the nearest answer that can, a well-formed one unchanged; None where none is near
    """

    invalid: Callable[[str, str], str | None]
    repair: Callable[[str, str], str | None]


# name -> where it is; a module is loaded when its format is asked for
FORMATS = {
    "text": "raykd.data.tasks.formats:TEXT",
    "trees": "raykd.data.tasks.trees:UNLABELLED",
    "labelled_trees": "raykd.data.tasks.trees:LABELLED",
    "release_trees": "raykd.data.tasks.trees:RELEASE",
    "slots": "raykd.data.tasks.slots:INTERLEAVED",
    "top": "raykd.data.tasks.slots:TOP",
    "intent": "raykd.data.tasks.slots:INTENT_NAME",
}
TREES = [name for name, place in FORMATS.items() if place.startswith("raykd.data.tasks.trees:")]
TEXT = Format(lambda text, answer: None, lambda text, answer: answer)


def of_labels(labels: Sequence[str]) -> Format:
    """One of the labels and nothing else; an answer is repaired to the one it names last, else to the most similar.

    Named is a whole word or number, in capitals or not; of labels in one place the longest. To what has nothing in
    common with any label none is near.
    """
    by_length = sorted(labels, key=len, reverse=True)
    named = re.compile(rf"(?<!\w)(?<!\d\.)(?:{'|'.join(map(re.escape, by_length))})(?!\w|\.\d)", re.IGNORECASE)
    lower = {label.lower(): label for label in reversed(labels)}

    def invalid(text: str, answer: str) -> str | None:
        return None if answer.strip() in labels else f"{answer.strip()!r:.40} is none of the labels"

    def repair(text: str, answer: str) -> str | None:
        if invalid(text, answer) is None:
            return answer
        found = named.findall(answer)
        if found:
            return found[-1] if found[-1] in labels else lower[found[-1].lower()]
        near = {label: difflib.SequenceMatcher(None, label.lower(), answer.lower()).ratio() for label in labels}
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
        return of_labels(labels)
    module, colon, attribute = FORMATS.get(name, name).partition(":")
    if not colon:
        near = difflib.get_close_matches(name, [*FORMATS, "labels"], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(FORMATS)}, labels, or module:name"
        raise RecipeError(f"pseudo_targets.format: unknown format {name!r}; {hint}")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError) as error:  # ValueError: an empty module name
        raise RecipeError(f"pseudo_targets.format: {name}: {error}") from None
    if not isinstance(found, Format):
        raise RecipeError(f"pseudo_targets.format: {name}: {module} has no Format of that name")
    return found
