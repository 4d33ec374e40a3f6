"""TODO: docstring."""

from __future__ import annotations

from collections.abc import Sequence
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
from raykd.run.folder import Run
from raykd.stages.label import label_inputs
from raykd.stages.labelling import Labelling

MEMORISATION_ROWS = 256  # rows of its own partition that a student is asked again


def relabel_inputs(run: Run, name: str, model: str, inputs: Sequence[Path], own: Path) -> Labelling:
    """A student's answers: sources 0, 1, ... are the inputs' files, the last is a sample of what it was trained on."""
    method = run.recipe.method
    known = list(load_examples(own))
    order = np.random.default_rng([run.recipe.seed, 37]).permutation(len(known))[:MEMORISATION_ROWS]
    sample = [known[i] for i in np.sort(order)]
    soft = isinstance(method, Mckd) and method.exchange == "top_k"
    payload = TopKPayload(kind="top_k") if soft else TextPayload(kind="text")
    return label_inputs(run, name, model, run.recipe.student, [*inputs, sample], payload=payload)


def measure_memorisation(
    run: Run, name: str, found: Sequence[Labelling], old: Sequence[list[Example]], unseen: Sequence[Sequence[int]]
) -> None:
    """How well each student says again what it was taught, and how well it agrees with labels that it never saw.

    MCKD pays where students learn their noisy labels by heart and do not carry the noise to inputs they never saw (Zhao
    et al. 2024, section 5): the report shows both.
    """
    metric = (run.recipe.metrics or ["exact_match"])[0]
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
            seen = agreement(one.examples(len(unseen[i])), i)
            rows.append({"partition": i, "seen": seen, "unseen": agreement(one.examples(0), unseen[i][0])})
        return {"metric": metric, "students": rows}, {}

    run.stage(name, "memory", {"answers": [one.mark for one in found], "metric": metric}, work)
