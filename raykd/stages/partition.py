"""TODO: docstring."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raykd.data.examples import (
    save_examples,
)
from raykd.data.splits import Splits
from raykd.errors import DataError
from raykd.recipe.methods import Mckd
from raykd.run.files import fingerprint
from raykd.run.session import Session


def part_name(number: int) -> str:
    """The name of a partition among the sources of a labelling."""
    return f"part-{number}"


def partition_inputs(session: Session, rows: Splits, method: Mckd) -> list[Path]:
    """Split the unlabelled inputs at random (MCKD, algorithm 1); rows of one input stay together. Returns files."""
    inputs = sorted({e.input for e in rows.unlabelled})
    shares = method.shares or [1.0] * method.partitions
    order = np.random.default_rng([session.recipe.seed, 29]).permutation(len(inputs))
    ends = np.round(np.cumsum(shares) / sum(shares) * len(inputs)).astype(int)
    places = np.searchsorted(ends, np.arange(len(inputs)), side="right")
    place = {inputs[i]: int(part) for i, part in zip(order, places, strict=True)}
    if len(set(place.values())) < method.partitions:
        raise DataError(f"{len(inputs)} inputs cannot be split into {method.partitions} partitions")

    def file(number: int) -> Path:
        return session.path / "mckd/partition" / f"{part_name(number)}.parquet"

    def work(_: Path) -> tuple[dict, dict]:
        split = [[e for e in rows.unlabelled if place[e.input] == part] for part in range(method.partitions)]
        sizes = [save_examples(file(number), part) for number, part in enumerate(split)]
        return {"partitions": method.partitions, "sizes": sizes}, {"rows": sum(sizes)}

    given = {"partitions": method.partitions, "shares": method.shares, "seed": session.recipe.seed}
    session.stage("mckd/partition", "partition", {**given, "rows": fingerprint(inputs)}, work)
    return [file(number) for number in range(method.partitions)]
