"""TODO: docstring."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raykd import metrics
from raykd.data import pseudo_targets
from raykd.data.examples import (
    Example,
    Lineage,
)
from raykd.data.tasks.formats import Format
from raykd.errors import DataError
from raykd.recipe.methods import ConsistencyFilter, Mckd
from raykd.recipe.pseudo_targets import PseudoTargetRules
from raykd.run.files import fingerprint, write_text
from raykd.run.session import Session
from raykd.stages.label import label_inputs
from raykd.stages.labelling import LabellingRequest, read_samples
from raykd.stages.rows import json_lines, output_format
from raykd.training.sources import StoredSource


def select_pseudo_targets(
    session: Session, given: StoredSource, model: str, lineages: Mapping[str, Lineage]
) -> list[list[Example]]:
    """The teacher's pseudo-targets of the sources that have a lineage, by the recipe's rules for them.

    Where every sample of an input is invalid, the teacher is asked again; then follow the vote, and the rule for what
    is invalid still. What is dropped is in the stage's dropped.jsonl.
    """
    rule, side = session.recipe.pseudo_targets, session.recipe.teacher
    found = [read_samples(given, source, lineage) for source, lineage in lineages.items()]
    if rule == PseudoTargetRules():
        return [sum(part, []) for part in found]
    form = output_format(session)

    def wrong(several: list[Example]) -> bool:
        return all(form.invalid(e.input, e.target or "") is not None for e in several)

    before = side.sampling.n if rule.retry_temperature == side.sampling.temperature else 0
    retried = 0
    for number in range(1, rule.retries + 1):
        again = [[several[0] for several in part if wrong(several)] for part in found]
        if not any(again):
            break
        retried += sum(map(len, again))
        sampling = side.sampling.model_copy(update={"temperature": rule.retry_temperature, "n": before + number})
        store = None if sampling.temperature != side.sampling.temperature else side.store
        asked = side.model_copy(update={"sampling": sampling, "store": store})
        request = LabellingRequest(
            name=f"teacher/retry-{number}",
            model=model,
            role=asked,
            sources=dict(zip(lineages, again, strict=True)),
            rejected_are_bad=False,
        )
        answers = label_inputs(session, request)
        for place, (source, lineage) in enumerate(lineages.items()):
            new = {several[0].input: several[-1] for several in read_samples(answers, source, lineage)}
            found[place] = [
                [replace(new[s[0].input], id=s[0].id)] if wrong(s) and s[0].input in new else s for s in found[place]
            ]

    def voted(several: list[Example]) -> list[Example]:
        if not rule.vote:
            return several
        return [replace(best_sample(form, several), id=several[0].id.rpartition("#")[0] or several[0].id)]

    parts = [sum((voted(several) for several in part), []) for part in found]
    return _kept(session, "teacher/chosen", parts, rule, {"retried": retried})


def best_sample(form: Format, several: list[Example]) -> Example:
    """The vote of an input's samples; those that are not of the form have none, where others are."""
    return pseudo_targets.vote([e for e in several if form.invalid(e.input, e.target or "") is None] or several)


def select_relabelled(
    session: Session, name: str, written: Sequence[Sequence[list[Example]]], old: Sequence[list[Example]]
) -> list[list[Example]]:
    """The new labels of each partition, of which `written` holds what each student wrote: voted, then by the rules.

    `old` are the labels before, which the consistency filter compares with.
    """
    method = session.recipe.method
    assert isinstance(method, Mckd)
    back, before = method.consistency_filter, {e.input: e.target for part in old for e in part}
    rule = session.recipe.pseudo_targets.model_copy(update={"vote": False, "retries": 0})

    def check(examples: list[Example]) -> tuple[list[Example], list[tuple[Example, str]]]:
        if back is None:
            return examples, []
        examples = pseudo_targets.with_agreement(examples, lambda e: before.get(e.input), metrics.get(back.metric))
        low = [e.input in before and e.lineage and _under(e.lineage.agreement, back) for e in examples]
        kept = [e for e, bad in zip(examples, low, strict=True) if not bad]
        reason = f"{back.metric} against the label before is under {back.at_least}"
        return kept, [(e, reason) for e, bad in zip(examples, low, strict=True) if bad]

    parts = [list(by[0]) if len(by) == 1 else _voted(output_format(session), by) for by in written]
    return _kept(session, name, parts, rule, {}, back and back.model_dump(), check)


def _under(agreement: float | None, back: ConsistencyFilter) -> bool:
    return back.at_least is not None and agreement is not None and 100 * agreement < back.at_least


def _voted(form: Format, by: Sequence[list[Example]]) -> list[Example]:
    """Of what several students wrote the majority, in the order of the inputs; one that refused has no vote."""
    several: dict[str, list[Example]] = {}
    for example in itertools.chain(*by):
        several.setdefault(example.id, []).append(example)
    return [best_sample(form, candidates) for candidates in several.values()]


def _kept(
    session: Session,
    name: str,
    parts: list[list[Example]],
    rule: PseudoTargetRules,
    stats: dict[str, Any],
    settings: Any = None,
    check: Callable[[list[Example]], tuple[list[Example], list[tuple[Example, str]]]] = lambda examples: (examples, []),
) -> list[list[Example]]:
    """Pseudo-targets by partition, by the rule for invalid ones and a check, in a stage with what was dropped."""
    form = output_format(session)
    file = session.path / name / "pseudo_targets.parquet"

    def work(folder: Path) -> tuple[dict, dict]:
        judged = [pseudo_targets.filtered_by_format(part, form, rule.invalid) for part in parts]
        checked = [check(one.kept) for one in judged]
        dropped = [pair for one in judged for pair in one.dropped] + [pair for _, bad in checked for pair in bad]
        rows = ({"id": e.id, "input": e.input, "target": e.target, "reason": reason} for e, reason in dropped)
        write_text(folder / "dropped.jsonl", json_lines(rows))
        for number, (kept, _) in enumerate(checked):
            if parts[number] and not kept:
                raise DataError(
                    f"{folder / 'dropped.jsonl'}: nothing is left of the {len(parts[number])} pseudo-targets of part "
                    f"{number}; the last reason: {dropped[-1][1]}"
                )
        count = pseudo_targets.save_pseudo_targets(file, (e for kept, _ in checked for e in kept))
        counts = {"rows": count, "dropped": len(dropped), **stats}
        counts |= {name: sum(getattr(one, name) for one in judged) for name in ("invalid", "repaired")}
        return {"sizes": [len(kept) for kept, _ in checked]}, counts

    targets = fingerprint([[e.id, e.input, e.target] for part in parts for e in part])
    inputs = {"targets": targets, "rule": rule.model_dump(), "settings": settings}
    sizes = session.stage(name, "choose", inputs, work)["sizes"]
    rows = iter(pseudo_targets.load_pseudo_targets(file))
    return [list(itertools.islice(rows, size)) for size in sizes]
