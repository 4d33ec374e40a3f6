"""Names that recipes had before: each is refused with the name that it has now."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

# a field and its new name in the same section, or field=value and the value's new name; * stands for any text
RENAMED = {
    "answers": "pseudo_targets",
    "method.weigh": "weighting",
    "method.back_check": "consistency_filter",
    "student.training.dev_answer_rows": "dev_prediction_rows",
    "student.training.dev_answer_tokens": "dev_prediction_tokens",
    "teachers.*.fine_tune.dev_answer_rows": "dev_prediction_rows",
    "teachers.*.fine_tune.dev_answer_tokens": "dev_prediction_tokens",
    "teachers.*.sampling": "passes.pseudo_targets",
    "student.model.kind=cut": "pruned",
    "teachers.*.model.kind=cut": "pruned",
    "teachers.*.model.kind=served": "endpoint",
    "student.task=span": "extractive_qa",
    "teachers.*.task=span": "extractive_qa",
    "student.training.teacher.kind=actors": "remote",
    "teachers.*.fine_tune.teacher.kind=actors": "remote",
    "*.sequences.kind=gold": "union: [gold]",
    "*.sequences.kind=pseudo_targets": "union: [pseudo_targets]",
    "*.sequences.kind=mixture": "shares: {gold: 0.5, pseudo_targets: 0.5}, by: row",
    "*=raykd.tasks.pronunciation:cmudict": "raykd.data.tasks.pronunciation:cmudict",
    "*=raykd.tasks.slots:snips": "raykd.data.tasks.snips:snips",
    "*=raykd.tasks.slots:bio": "raykd.data.tasks.bio:bio",
    "*=raykd.tasks.slots:INTERLEAVED": "raykd.data.tasks.interleaved:INTERLEAVED",
    "*=raykd.tasks.slots:TOP": "raykd.data.tasks.top:TOP",
    "*=raykd.tasks.slots:INTENT_NAME": "raykd.data.tasks.intents:INTENT_NAME",
    "*=raykd.tasks.trees:penn": "raykd.data.tasks.penn:penn",
    "*=raykd.tasks.trees:translation": "raykd.data.tasks.translation:translation",
    "*=raykd.tasks.trees:UNLABELLED": "raykd.data.tasks.unlabelled_trees:UNLABELLED",
    "*=raykd.tasks.trees:LABELLED": "raykd.data.tasks.labelled_trees:LABELLED",
    "*=raykd.tasks.trees:RELEASE": "raykd.data.tasks.release_trees:RELEASE",
}
# a section that stands elsewhere now, or one of its fields, and the whole new name; fields come after their section
MOVED = {"teacher": "teachers.main", "teacher.sampling": "teachers.main.passes.pseudo_targets"}


def renamed_names(tree: dict[str, Any]) -> list[str]:
    """A line `field: renamed: new name` for each old name in a recipe as YAML has it.

    Within a section with an old name only fields that have a new place of their own have lines.
    """
    lines = []
    for field, value in _fields(tree):
        if field in MOVED:
            elsewhere = [name for name in value if f"{field}.{name}" in MOVED] if isinstance(value, dict) else []
            if not elsewhere or len(elsewhere) < len(value):
                lines.append(f"{field}: renamed: {MOVED[field]}")
            lines += [f"{field}.{name}: renamed: {MOVED[f'{field}.{name}']}" for name in elsewhere]
            continue
        for old, new in RENAMED.items():
            if "=" not in old and fnmatchcase(field, old):
                section, dot, _ = field.rpartition(".")
                lines.append(f"{field}: renamed: {section}{dot}{new}")
            elif isinstance(value, str) and fnmatchcase(f"{field}={value}", old):
                lines.append(f"{field}: renamed: {new}")
    return lines


def _fields(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every field and its value, sections before their fields, which a section of MOVED does not give.

    The items of a list are numbered.
    """
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in items:
        field = f"{at}.{name}" if at else str(name)
        yield field, part
        if field not in MOVED:
            yield from _fields(part, field)
