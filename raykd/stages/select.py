"""The stage `choose`: the recipe's rules (retries, vote, format, consistency) select the pseudo-targets to learn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from raykd import metrics
from raykd.data import pseudo_targets
from raykd.data.examples import Example, Lineage
from raykd.data.sources import StoredSource
from raykd.data.tasks.formats import Format
from raykd.errors import DataError
from raykd.recipe.methods import ConsistencyFilter
from raykd.recipe.names import code_of
from raykd.recipe.pseudo_targets import PseudoTargetRules
from raykd.recipe.roles import Teacher
from raykd.run.files import fingerprint, write_text
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.label import label_inputs
from raykd.stages.labelling import LabellingRequest, read_samples
from raykd.stages.rows import json_lines, output_format

TEACHER = StageAbout(arm="teacher")


class Filtered(NamedTuple):
    """Pseudo-targets that pass a filter, and the dropped ones, each with its reason."""

    kept: list[Example]
    dropped: list[tuple[Example, str]]


@dataclass(frozen=True)
class _Selection:
    """The settings of a stage that selects pseudo-targets; `stats` are further figures for its manifest."""

    name: str
    about: StageAbout
    rules: PseudoTargetRules
    consistency: ConsistencyFilter | None = None
    stats: dict[str, int] = field(default_factory=dict)


def select_pseudo_targets(
    session: Session, stored: StoredSource, model: str, lineages: Mapping[str, Lineage]
) -> list[list[Example]]:
    """The teacher's pseudo-targets of each source in `lineages`, as the recipe's section `pseudo_targets` selects them.

    First the teacher labels an input again if all its samples are invalid, then the vote selects a sample of each
    input, and last the rule for invalid ones is applied. Dropped pseudo-targets are listed in the stage's
    dropped.jsonl. `model` is the teacher's folder or name.

    Raises DataError if no pseudo-target of a source is left, and the errors of `label_inputs`.
    """
    rules = session.recipe.pseudo_targets
    samples = {source: read_samples(stored, source, lineage) for source, lineage in lineages.items()}
    if rules == PseudoTargetRules():
        return [sum(by_input, []) for by_input in samples.values()]
    retried = _retry_invalid(session, model, samples, lineages)
    form = output_format(session)

    def voted(candidates: list[Example]) -> list[Example]:
        if not rules.vote:
            return candidates
        return [replace(best_sample(form, candidates), id=candidates[0].id.rpartition("#")[0] or candidates[0].id)]

    parts = [sum(map(voted, by_input), []) for by_input in samples.values()]
    return _select(session, _Selection("teacher/chosen", TEACHER, rules, stats={"retried": retried}), parts, {})


def _retry_invalid(
    session: Session, model: str, samples: dict[str, list[list[Example]]], lineages: Mapping[str, Lineage]
) -> int:
    """Label inputs without a valid sample again, as often as the recipe allows, and replace their `samples` in place.

    Returns how many inputs were labelled again; an input counts once for each retry.
    """
    form, retried = output_format(session), 0

    def is_invalid(candidates: list[Example]) -> bool:
        return all(form.invalid(e.input, e.target or "") is not None for e in candidates)

    for number in range(1, session.recipe.pseudo_targets.retries + 1):
        invalid = {
            source: [candidates[0] for candidates in by_input if is_invalid(candidates)]
            for source, by_input in samples.items()
        }
        if not any(invalid.values()):
            break
        retried += sum(map(len, invalid.values()))
        request = LabellingRequest(
            name=f"teacher/retry-{number}",
            model=model,
            role=_retrying_teacher(session, number),
            sources=invalid,
            rejected_are_bad=False,
            about=TEACHER,
        )
        stored = label_inputs(session, request)
        for source, lineage in lineages.items():
            last = {candidates[0].input: candidates[-1] for candidates in read_samples(stored, source, lineage)}
            samples[source] = [
                [replace(last[candidates[0].input], id=candidates[0].id)]
                if is_invalid(candidates) and candidates[0].input in last
                else candidates
                for candidates in samples[source]
            ]
    return retried


def _retrying_teacher(session: Session, number: int) -> Teacher:
    """The recipe's teacher for a retry: it writes one more sample, at the retries' temperature."""
    rules, teacher = session.recipe.pseudo_targets, session.recipe.teacher
    same_temperature = rules.retry_temperature == teacher.sampling.temperature
    before = teacher.sampling.n if same_temperature else 0  # samples that the same store holds already
    sampling = teacher.sampling.model_copy(update={"temperature": rules.retry_temperature, "n": before + number})
    return teacher.with_sampling(sampling)


def best_sample(form: Format, samples: list[Example]) -> Example:
    """The sample that wins the vote of an input's samples; invalid samples vote only if none is valid."""
    return pseudo_targets.vote([e for e in samples if form.invalid(e.input, e.target or "") is None] or samples)


def select_relabelled(
    session: Session,
    name: str,
    about: StageAbout,
    by_student: Sequence[Sequence[list[Example]]],
    before: Sequence[list[Example]],
    consistency: ConsistencyFilter | None = None,
) -> list[list[Example]]:
    """The new pseudo-targets of each partition: the students vote, then the recipe's rules and the consistency filter.

    by_student  for each partition a list per student that labelled it: the student's pseudo-targets
    before      for each partition the pseudo-targets that the consistency filter compares with

    Raises DataError if no pseudo-target of a partition is left.
    """
    rules = session.recipe.pseudo_targets.model_copy(update={"vote": False, "retries": 0})
    form = output_format(session)
    parts = [list(students[0]) if len(students) == 1 else _voted(form, students) for students in by_student]
    targets_before = {example.input: example.target for part in before for example in part}
    return _select(session, _Selection(name, about, rules, consistency), parts, targets_before)


def _voted(form: Format, by_student: Sequence[list[Example]]) -> list[Example]:
    """The pseudo-target with most votes for each input; a student that rejected an input has no vote on it."""
    votes: dict[str, list[Example]] = {}
    for example in itertools.chain(*by_student):
        votes.setdefault(example.id, []).append(example)
    return [best_sample(form, candidates) for candidates in votes.values()]


def _select(
    session: Session,
    selection: _Selection,
    parts: list[list[Example]],
    targets_before: Mapping[str, str | None],
) -> list[list[Example]]:
    """Run the stage: the pseudo-targets of each part that the rules keep; the others are listed in dropped.jsonl."""
    form, name, rules = output_format(session), selection.name, selection.rules
    file = session.path / name / "pseudo_targets.parquet"

    def work(folder: Path) -> tuple[dict, dict]:
        by_format = [pseudo_targets.filtered_by_format(part, form, rules.invalid) for part in parts]
        filtered = [
            _filtered_by_consistency(judged.kept, selection.consistency, targets_before) for judged in by_format
        ]
        dropped = [pair for stage in (by_format, filtered) for part in stage for pair in part.dropped]
        rows = ({"id": e.id, "input": e.input, "target": e.target, "reason": reason} for e, reason in dropped)
        write_text(folder / "dropped.jsonl", json_lines(rows))
        for number, (kept, _) in enumerate(filtered):
            if parts[number] and not kept:
                raise DataError(
                    f"{folder / 'dropped.jsonl'}: nothing is left of the {len(parts[number])} pseudo-targets of part "
                    f"{number}; the last reason: {dropped[-1][1]}"
                )
        stats = {
            "rows": pseudo_targets.save_pseudo_targets(file, (e for kept, _ in filtered for e in kept)),
            "dropped": len(dropped),
            **selection.stats,
            "invalid": sum(judged.invalid for judged in by_format),
            "repaired": sum(judged.repaired for judged in by_format),
        }
        return {"sizes": [len(kept) for kept, _ in filtered]}, stats

    targets = fingerprint([[e.id, e.input, e.target] for part in parts for e in part])
    code = code_of(session.recipe, "pseudo_targets", "method.consistency_filter")
    settings = selection.consistency and selection.consistency.model_dump()
    inputs = {"targets": targets, "rule": rules.model_dump(), "settings": settings, **code}
    sizes = session.stage(name, "choose", inputs, work, selection.about)["sizes"]
    rows = iter(pseudo_targets.load_pseudo_targets(file))
    return [list(itertools.islice(rows, size)) for size in sizes]


def _filtered_by_consistency(
    examples: list[Example], consistency: ConsistencyFilter | None, targets_before: Mapping[str, str | None]
) -> Filtered:
    """Pseudo-targets with their agreement with the earlier ones; those below the filter's `at_least` are dropped."""
    if consistency is None:
        return Filtered(examples, [])
    least, metric = consistency.at_least, metrics.get(consistency.metric)
    examples = pseudo_targets.with_agreement(examples, lambda e: targets_before.get(e.input), metric)

    def is_low(example: Example) -> bool:
        agreement = example.lineage.agreement if example.lineage and example.input in targets_before else None
        return least is not None and agreement is not None and 100 * agreement < least

    reason = f"{consistency.metric} against the label before is under {least}"
    return Filtered([e for e in examples if not is_low(e)], [(e, reason) for e in examples if is_low(e)])
