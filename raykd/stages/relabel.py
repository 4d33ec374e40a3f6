"""Students label inputs that they never saw; and a measure of how well they memorised what they learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raykd import metrics
from raykd.data.examples import Example, Lineage, load_examples
from raykd.data.sources import StoredSource
from raykd.errors import DataError
from raykd.recipe.generation import TextPayload, TopKPayload
from raykd.recipe.metrics import metric_kinds
from raykd.recipe.names import own_code
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.label import label_inputs
from raykd.stages.labelling import LabellingRequest, read_pseudo_targets
from raykd.stages.partition import part_name

MEMORISATION_ROWS = 256  # rows of its own partition that a student labels again
OWN = "own"  # the name of the source that holds these rows
PAYLOADS = {"text": TextPayload(kind="text"), "top_k": TopKPayload(kind="top_k")}


@dataclass(frozen=True)
class Relabelling:
    """A labelling by a student: the name of its training, the partitions that it labelled, and the round."""

    student: str
    stored: StoredSource
    partitions: list[int]
    round: int

    def source(self, partition: int) -> StoredSource:
        """The labelling of one partition alone."""
        return replace(self.stored, sources=(part_name(partition),))

    def examples(self, partition: int) -> list[Example]:
        """The pseudo-targets of one partition, with their lineage."""
        return read_pseudo_targets(self.stored, part_name(partition), Lineage(self.student, self.round, partition))


def relabel_inputs(session: Session, request: LabellingRequest, own: Path, exchange: str) -> StoredSource:
    """A student's labelling of the sources of a request, and of OWN, a sample of the examples that it was trained on.

    `own` is the parquet file of these examples. `exchange` is a key of PAYLOADS and selects what is recorded. Raises
    the errors of `label_inputs`.
    """
    learnt = list(load_examples(own))
    order = np.random.default_rng([session.recipe.seed, 37]).permutation(len(learnt))[:MEMORISATION_ROWS]
    sample = [learnt[i] for i in np.sort(order)]
    sources = {**request.sources, OWN: sample}
    return label_inputs(session, replace(request, sources=sources, payload=PAYLOADS[exchange]))


def measure_memorisation(
    session: Session,
    name: str,
    about: StageAbout,
    relabellings: Sequence[Relabelling],
    before: Sequence[list[Example]],
) -> None:
    """Measure how well each student repeats the pseudo-targets it learnt, and agrees with those it never saw.

    Multistage collaborative distillation pays where students learn their noisy pseudo-targets by heart and do not carry
    the noise to inputs they never saw (Zhao et al. 2024, section 5): the report shows both. Agreement is the recipe's
    first metric, else exact match. The unseen inputs of a student are the first partition that it labelled.

    relabellings  for each partition the labelling by its student
    before        for each partition the pseudo-targets that its student learnt
    """
    metric = next(iter(metric_kinds(session.recipe.metrics)), "exact_match")
    learnt = [{example.input: example.target or "" for example in part} for part in before]

    def agreement(stored: StoredSource, source: str, part: int) -> float | None:
        rewritten = [example for example in read_pseudo_targets(stored, source) if example.input in learnt[part]]
        if not rewritten:
            return None
        predictions = [example.target or "" for example in rewritten]
        try:
            return metrics.get(metric)(predictions, [[learnt[part][example.input]] for example in rewritten])
        except DataError:  # the pseudo-targets hold nothing to score, such as empty ones
            return None

    def work(_: Path) -> tuple[dict, dict]:
        students = [
            {
                "partition": part,
                "seen": agreement(student.stored, OWN, part),
                "unseen": agreement(student.stored, part_name(student.partitions[0]), student.partitions[0]),
            }
            for part, student in enumerate(relabellings)
        ]
        return {"metric": metric, "students": students}, {}

    inputs = {"labellings": [student.stored.mark for student in relabellings], "metric": metric}
    inputs |= own_code([metric], session.recipe.modules)
    session.stage(name, "memorisation", inputs, work, about)
