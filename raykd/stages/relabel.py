"""TODO: docstring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raykd import metrics
from raykd.data.examples import (
    Example,
    load_examples,
)
from raykd.errors import DataError
from raykd.recipe.generation import TextPayload, TopKPayload
from raykd.recipe.methods import Mckd
from raykd.run.session import Session
from raykd.stages.label import label_inputs
from raykd.stages.labelling import LabellingRequest, read_pseudo_targets
from raykd.stages.partition import part_name
from raykd.training.sources import StoredSource

MEMORISATION_ROWS = 256  # rows of its own partition that a student is asked again


def relabel_inputs(session: Session, name: str, model: str, inputs: Mapping[str, Path], own: Path) -> StoredSource:
    """A student's pseudo-targets for the files of `inputs`, by name, and for `own`: a sample of what it was trained on."""
    method = session.recipe.method
    known = list(load_examples(own))
    order = np.random.default_rng([session.recipe.seed, 37]).permutation(len(known))[:MEMORISATION_ROWS]
    sample = [known[i] for i in np.sort(order)]
    soft = isinstance(method, Mckd) and method.exchange == "top_k"
    payload = TopKPayload(kind="top_k") if soft else TextPayload(kind="text")
    request = LabellingRequest(
        name=name, model=model, role=session.recipe.student, sources={**inputs, "own": sample}, payload=payload
    )
    return label_inputs(session, request)


def measure_memorisation(
    session: Session,
    name: str,
    found: Sequence[StoredSource],
    old: Sequence[list[Example]],
    unseen: Sequence[Sequence[int]],
) -> None:
    """How well each student says again what it was taught, and how well it agrees with labels that it never saw.

    MCKD pays where students learn their noisy labels by heart and do not carry the noise to inputs they never saw (Zhao
    et al. 2024, section 5): the report shows both.
    """
    metric = (session.recipe.metrics or ["exact_match"])[0]
    labels = [{e.input: e.target or "" for e in part} for part in old]

    def agreement(answers: list[Example], part: int) -> float | None:
        known = [(e.target or "", labels[part][e.input]) for e in answers if e.input in labels[part]]
        try:
            return metrics.get(metric)([a for a, _ in known], [[right] for _, right in known]) if known else None
        except DataError:  # labels with nothing to score, such as empty ones
            return None

    def work(_: Path) -> tuple[dict, dict]:
        rows = []
        for i, one in enumerate(found):
            seen = agreement(read_pseudo_targets(one, "own"), i)
            rows.append({"partition": i, "seen": seen, "unseen": agreement(read_pseudo_targets(one, part_name(unseen[i][0])), unseen[i][0])})
        return {"metric": metric, "students": rows}, {}

    session.stage(name, "memory", {"answers": [one.mark for one in found], "metric": metric}, work)
