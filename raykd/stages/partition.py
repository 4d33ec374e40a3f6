"""The stage `partition`: the unlabelled inputs are split at random, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raykd.data.examples import save_examples
from raykd.data.splits import Splits
from raykd.errors import DataError
from raykd.run.files import fingerprint
from raykd.run.session import Session


def part_name(number: int) -> str:
    """The name of a partition among the sources of a labelling."""
    return f"part-{number}"


def partition_inputs(
    session: Session, name: str, splits: Splits, partitions: int, shares: Sequence[float] | None
) -> list[Path]:
    """Parquet files of examples, one per partition; rows with the same input are in the same partition.

    `shares` are the partitions' relative numbers of inputs, None for equal ones. Raises DataError for an empty one.
    """
    inputs = sorted({example.input for example in splits.unlabelled})
    sizes = shares or [1.0] * partitions
    order = np.random.default_rng([session.recipe.seed, 29]).permutation(len(inputs))
    ends = np.round(np.cumsum(sizes) / sum(sizes) * len(inputs)).astype(int)
    parts = np.searchsorted(ends, np.arange(len(inputs)), side="right")
    part_of = {inputs[i]: int(part) for i, part in zip(order, parts, strict=True)}
    if len(set(part_of.values())) < partitions:
        raise DataError(f"{len(inputs)} inputs cannot be split into {partitions} partitions")
    files = [session.path / name / f"{part_name(part)}.parquet" for part in range(partitions)]

    def work(_: Path) -> tuple[dict, dict]:
        rows = [[e for e in splits.unlabelled if part_of[e.input] == part] for part in range(partitions)]
        counts = [save_examples(file, part) for file, part in zip(files, rows, strict=True)]
        return {"partitions": partitions, "sizes": counts}, {"rows": sum(counts)}

    stage_inputs = {"partitions": partitions, "shares": shares, "seed": session.recipe.seed}
    session.stage(name, "partition", {**stage_inputs, "rows": fingerprint(inputs)}, work)
    return files
