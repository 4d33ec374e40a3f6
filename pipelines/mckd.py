"""Multistage collaborative knowledge distillation (Zhao et al., ACL 2024).

All inputs are split into partitions once, and the teacher labels them. In every round but the last, a fresh student
learns each partition, and then labels partitions it never saw. The final student learns what the last round's students
wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipelines import distill
from raykd.data.examples import Example, Lineage, load_examples
from raykd.data.sources import StoredSource
from raykd.data.splits import Splits
from raykd.recipe.methods import Mckd
from raykd.recipe.models import Checkpoint
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.arms import gold_only, score_arms
from raykd.stages.evaluate import score_pseudo_targets
from raykd.stages.fine_tune import fine_tuned_teacher
from raykd.stages.labelling import LabellingRequest
from raykd.stages.partition import part_name, partition_inputs
from raykd.stages.publish import publish_student
from raykd.stages.relabel import Relabelling, measure_memorisation, relabel_inputs
from raykd.stages.rows import read_rows
from raykd.stages.select import select_relabelled
from raykd.stages.train import NextStage, TrainingData, TrainingRows, as_examples, joined, train_students

STUDENT = "mckd/final"  # the training of the method's student
ARM = StageAbout(arm="mckd", own=True)
# which partitions the student of partition i labels: i plus each of these, modulo their number
SHIFTS: dict[str, Callable[[int], list[int]]] = {
    "next": lambda count: [count - 1],  # the partition before it
    "vote": lambda count: list(range(1, count)),
    "own": lambda count: [0],
}


class Round(NamedTuple):
    """By partition: what the students of the next round learn, and the folders of this round's students."""

    number: int
    parts: list[TrainingRows]
    students: list[str]


def run(session: Session, alone: bool = False) -> str:
    """Algorithm 1; returns the final student's folder. `alone`: without the arms that it is compared with."""
    splits, method = read_rows(session), settings(session)
    stored, selected = teacher(session, splits)
    names = [part_name(i) for i in range(method.partitions)]
    by_teacher = [(replace(stored, sources=(name,)),) for name in names] if method.exchange == "top_k" else selected
    latest = Round(0, list(by_teacher), [])
    while latest.number < method.stages - 1:
        latest = next_round(session, splits, latest)

    trainings = {STUDENT: training_data(session, splits, joined(latest.parts))}
    trainings |= {} if alone else gold_only(session, splits)
    if session.recipe.arms.distilled and not alone:
        whole = (replace(stored, sources=tuple(names)),) if method.exchange == "top_k" else sum(selected, [])
        trainings[distill.STUDENT] = TrainingData(whole, StageAbout(arm="distilled"))
    models = train_students(session, splits, trainings, teacher=fine_tuned_teacher(session, splits))
    score_arms(session, splits, models.values())
    if not alone:
        publish_student(session, models[STUDENT].folder)
    return models[STUDENT].folder


def settings(session: Session) -> Mckd:
    """The recipe's section of this method."""
    assert isinstance(session.recipe.method, Mckd)
    return session.recipe.method


def partition_files(session: Session, splits: Splits) -> list[Path]:
    """The files of the partitions."""
    method = settings(session)
    return partition_inputs(session, "mckd/partition", splits, method.partitions, method.shares)


def labels(session: Session, on_start: Callable[[StoredSource], None] = lambda stored: None) -> StoredSource:
    """The teacher's pseudo-targets for the partitions."""
    splits = read_rows(session)
    inputs = {part_name(i): file for i, file in enumerate(partition_files(session, splits))}
    return distill.label_by_teacher(session, splits, inputs, on_start)


def teacher(session: Session, splits: Splits) -> distill.PseudoTargets:
    """The teacher's pseudo-targets by partition; they and the teacher are scored."""
    stored = labels(session)
    lineages = {part_name(i): Lineage("teacher", partition=i) for i in range(settings(session).partitions)}
    return distill.PseudoTargets(stored, distill.select_and_score(session, splits, stored, lineages))


def training_data(
    session: Session, splits: Splits, rows: TrainingRows, unseen: Iterable[Path] = (), about: StageAbout = ARM
) -> TrainingData:
    """What a student learns: pseudo-targets, and gold where the recipe mixes it in, but not of `unseen` inputs."""
    method = settings(session)
    if method.gold and isinstance(rows, list):
        hidden = {example.input for file in unseen for example in load_examples(file)}
        rows = rows + [example for example in splits.gold if example.input not in hidden]
    return TrainingData(rows, about, weighting=method.weighting)


def next_round(session: Session, splits: Splits, before: Round) -> Round:
    """A student learns each partition, and labels others as soon as it is trained."""
    number, method, count = before.number + 1, settings(session), len(before.parts)
    name, files = f"mckd/round-{number}", partition_files(session, splits)
    others = [[(i + shift) % count for shift in SHIFTS[method.relabel](count)] for i in range(count)]
    relabellings: dict[int, Relabelling] = {}

    def student(i: int) -> TrainingData:
        about, stage = replace(ARM, round=number, partition=i), f"{name}/labels-by-{i}"
        inputs = {part_name(j): files[j] for j in others[i]}

        def relabel(folder: str) -> None:
            request = LabellingRequest(stage, folder, role=session.recipe.student, sources=inputs, about=about)
            stored = relabel_inputs(session, request, files[i], method.exchange)
            relabellings[i] = Relabelling(f"{name}/student-{i}", stored, partitions=others[i], round=number)

        warm = Checkpoint(kind="checkpoint", path=before.students[i]) if method.warm_start and before.students else None
        data = training_data(session, splits, before.parts[i], inputs.values(), about)
        return replace(data, model=warm, then=NextStage(stage, relabel))

    trainings = {f"{name}/student-{i}": student(i) for i in range(count)}
    models = train_students(session, splits, trainings, teacher=fine_tuned_teacher(session, splits))
    by_student = [relabellings[i] for i in range(count)]
    parts: list[TrainingRows] = list(select(session, splits, before, by_student))
    if method.exchange == "top_k":
        parts = [(student.source(j),) for j in range(count) for student in by_student if j in student.partitions]
    return Round(number, parts, [model.folder for model in models.values()])


def select(session: Session, splits: Splits, before: Round, relabellings: list[Relabelling]) -> list[list[Example]]:
    """The pseudo-targets of each partition, selected of what students wrote by the recipe's rules; they are scored."""
    name, about = f"mckd/round-{before.number + 1}", replace(ARM, round=before.number + 1)
    method, learnt = settings(session), [as_examples(part) for part in before.parts]
    by_student = [[r.examples(j) for r in relabellings if j in r.partitions] for j in range(len(learnt))]
    selected = select_relabelled(session, f"{name}/labels", about, by_student, learnt, method.consistency_filter)
    if method.relabel != "own":
        measure_memorisation(session, f"{name}/memorisation", about, relabellings, learnt)
    score_pseudo_targets(session, f"{name}/quality", about, sum(selected, []), splits.unlabelled)
    return selected
