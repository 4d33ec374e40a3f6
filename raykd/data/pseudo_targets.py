"""Pseudo-targets before a student learns them: votes, rules for invalid ones, consistency filters, weights.

Each function takes pseudo-targets and returns new ones, in the same order; nothing is changed in place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raykd.data.examples import Example, Lineage, save_rows
from raykd.data.tasks.formats import Format
from raykd.errors import DataError
from raykd.metrics import Metric

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "input", "target")),
        ("weight", pa.float32()),
        ("by", pa.string()),
        ("round", pa.int32()),
        ("partition", pa.int32()),
        ("score", pa.float32()),
        ("agreement", pa.float32()),
    ]
)


@dataclass(frozen=True)
class FilteredByFormat:
    """The pseudo-targets that a rule keeps, and the dropped ones with reasons.

    `invalid` is the number of pseudo-targets that did not have the format, `repaired` the number that were repaired.
    """

    kept: list[Example]
    invalid: int
    repaired: int
    dropped: list[tuple[Example, str]]


def save_pseudo_targets(path: Path, examples: Iterable[Example]) -> int:
    """Write pseudo-targets with their lineage to a parquet file of SCHEMA; returns how many."""

    def row(example: Example) -> tuple:
        lineage = example.lineage or Lineage("")
        cells = (lineage.by, lineage.round, lineage.partition, lineage.score, lineage.agreement)
        return (example.id, example.input, example.target, example.weight, *cells)

    return save_rows(path, map(row, examples), SCHEMA)


def load_pseudo_targets(path: Path) -> list[Example]:
    """The pseudo-targets that `save_pseudo_targets` wrote."""
    of_example = ("id", "input", "target", "weight")
    return [
        Example(**{name: row.pop(name) for name in of_example}, lineage=Lineage(**row))
        for row in pq.read_table(path, schema=SCHEMA).to_pylist()
    ]


def vote(candidates: Sequence[Example]) -> Example:
    """The most frequent of several pseudo-targets of one input; `agreement` is its share of the candidates.

    Between equally frequent ones the highest mean score wins, then the first one (self-consistency, Wang et al., ICLR
    2023). The winner's score is the mean score of the candidates with the same target.
    """
    counts = Counter(candidate.target for candidate in candidates)
    scores: dict[str | None, list[float]] = {}
    for candidate in candidates:
        score = candidate.lineage.score if candidate.lineage else None
        scores.setdefault(candidate.target, []).extend([] if score is None else [score])
    means = {target: sum(s) / len(s) if s else -math.inf for target, s in scores.items()}
    best = max(counts, key=lambda target: (counts[target], means[target]))
    first = next(candidate for candidate in candidates if candidate.target == best)
    by = "+".join(dict.fromkeys(c.lineage.by for c in candidates if c.target == best and c.lineage))
    lineage = replace(
        first.lineage or Lineage(by),
        by=by,
        score=None if math.isinf(means[best]) else means[best],
        agreement=counts[best] / len(candidates),
    )
    return replace(first, lineage=lineage)


def filtered_by_format(examples: Sequence[Example], form: Format, rule: str) -> FilteredByFormat:
    """Apply the recipe's rule for invalid pseudo-targets: keep, drop or repair.

    With repair, pseudo-targets that cannot be repaired are dropped.
    """
    kept, dropped, repaired = [], [], 0
    reasons = [form.invalid(example.input, example.target or "") for example in examples]
    for example, reason in zip(examples, reasons, strict=True):
        if reason is None or rule == "keep":
            kept.append(example)
        else:
            target = form.repair(example.input, example.target or "") if rule == "repair" else None
            if target is None:
                dropped.append((example, reason))
            else:
                kept.append(replace(example, target=target))
                repaired += 1
    invalid = sum(reason is not None for reason in reasons)
    return FilteredByFormat(kept=kept, invalid=invalid, repaired=repaired, dropped=dropped)


def with_agreement(
    examples: Sequence[Example], before: Callable[[Example], str | None], metric: Metric
) -> list[Example]:
    """The examples with `agreement`: the metric's score, 0 to 1, of each target against its input's earlier target.

    `before` returns the earlier target of an example; if it returns None, the example is unchanged.
    """

    def scored(example: Example) -> Example:
        target_before = before(example)
        if target_before is None or example.lineage is None:
            return example
        try:
            score = metric([example.target or ""], [[target_before]]) / 100
        except DataError:  # the earlier target has nothing to score, for example no slot
            score = float(example.target == target_before)
        return replace(example, lineage=replace(example.lineage, agreement=score))

    return [scored(example) for example in examples]


def with_weights(examples: Sequence[Example], weighting: str | None) -> list[Example]:
    """The examples with weights of at least 0 by the recipe's `weighting`; unchanged if it is None.

    confidence  exp of the pseudo-target's mean log-probability per token
    agreement   the pseudo-target's agreement

    A pseudo-target without a score, or without agreement, has weight 1.
    """

    def weight(lineage: Lineage) -> float:
        if weighting == "confidence":
            return 1.0 if lineage.score is None else math.exp(min(0.0, lineage.score))
        return 1.0 if lineage.agreement is None else max(0.0, lineage.agreement)

    if weighting is None:
        return list(examples)
    return [replace(e, weight=weight(e.lineage)) if e.lineage else e for e in examples]
