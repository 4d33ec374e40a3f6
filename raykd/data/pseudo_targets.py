"""What becomes of answers before a student learns them: votes, rules for invalid ones, consistency filters, weights.

Each of these takes pseudo-targets and gives back new ones, in the same order; nothing is changed in place.
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
class Judged:
    """Pseudo-targets that follow a rule, and how many were invalid, and of those repaired; `dropped`, with reasons."""

    kept: list[Example]
    invalid: int
    repaired: int
    dropped: list[tuple[Example, str]]


def save_pseudo_targets(path: Path, examples: Iterable[Example]) -> int:
    """Write pseudo-targets with their lineage to a parquet file of SCHEMA; returns how many."""

    def row(example: Example) -> tuple:
        from_ = example.lineage or Lineage("")
        lineage = (from_.by, from_.round, from_.partition, from_.score, from_.agreement)
        return (example.id, example.input, example.target, example.weight, *lineage)

    return save_rows(path, map(row, examples), SCHEMA)


def load_pseudo_targets(path: Path) -> list[Example]:
    """The pseudo-targets that `save` wrote."""
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    return [
        Example(r.pop("id"), r.pop("input"), r.pop("target"), weight=r.pop("weight"), lineage=Lineage(**r))
        for r in rows
    ]


def vote(candidates: Sequence[Example]) -> Example:
    """Of several answers to one input the most frequent, and how many of them it is as `agreement`.

    Of equally frequent ones the one whose writer was surest (score), then the first (self-consistency, Wang et al.,
    ICLR 2023). Its score is the mean of those who gave it.
    """
    counts = Counter(candidate.target for candidate in candidates)
    scores: dict[str | None, list[float]] = {}
    for candidate in candidates:
        known = candidate.lineage.score if candidate.lineage else None
        scores.setdefault(candidate.target, []).extend([] if known is None else [known])
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


def filtered_by_format(examples: Sequence[Example], form: Format, rule: str) -> Judged:
    """What the recipe's rule for invalid answers (keep, drop, repair) leaves of them; beyond repair is dropped."""
    kept, dropped, repaired = [], [], 0
    reasons = [form.invalid(example.input, example.target or "") for example in examples]
    for example, reason in zip(examples, reasons, strict=True):
        if reason is None or rule == "keep":
            kept.append(example)
        else:
            mended = form.repair(example.input, example.target or "") if rule == "repair" else None
            if mended is None:
                dropped.append((example, reason))
            else:
                kept.append(replace(example, target=mended))
                repaired += 1
    return Judged(kept, sum(reason is not None for reason in reasons), repaired, dropped)


def with_agreement(
    examples: Sequence[Example], before: Callable[[Example], str | None], metric: Metric
) -> list[Example]:
    """The same with `agreement`: each target's score by the metric, 0 to 1, against what its input had before."""

    def one(example: Example) -> Example:
        right = before(example)
        if right is None or example.lineage is None:
            return example
        try:
            score = metric([example.target or ""], [[right]]) / 100
        except DataError:  # the label before holds nothing to score, such as no slot
            score = float(example.target == right)
        return replace(example, lineage=replace(example.lineage, agreement=score))

    return [one(example) for example in examples]


def with_weights(examples: Sequence[Example], how: str | None) -> list[Example]:
    """The same with weights: a label's mean probability per token (confidence), or its agreement; at least 0."""

    def weight(lineage: Lineage) -> float:
        if how == "confidence":
            return 1.0 if lineage.score is None else math.exp(min(0.0, lineage.score))
        return 1.0 if lineage.agreement is None else max(0.0, lineage.agreement)

    if how is None:
        return list(examples)
    return [replace(e, weight=weight(e.lineage)) if e.lineage else e for e in examples]
