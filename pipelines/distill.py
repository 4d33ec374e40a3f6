"""Sequence-level distillation (Kim and Rush 2016): the student learns what the teacher writes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from raykd.data.examples import Example, Lineage
from raykd.data.sources import StoredSource
from raykd.data.splits import Splits
from raykd.recipe.methods import Distill
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.arms import gold_only, score_arms
from raykd.stages.evaluate import evaluate_arm, score_pseudo_targets
from raykd.stages.fine_tune import fine_tuned_teacher
from raykd.stages.label import label_inputs
from raykd.stages.labelling import LabellingRequest
from raykd.stages.publish import publish_student
from raykd.stages.rows import read_rows
from raykd.stages.schedule import train_while_labelling
from raykd.stages.select import select_pseudo_targets
from raykd.stages.train import TrainedModel, TrainingData, train_students

STUDENT = "distilled"  # the training of the method's student
ARM = StageAbout(arm="distilled", own=True)
TEACHER = StageAbout(arm="teacher")
UNLABELLED = {"unlabelled": Lineage("teacher")}  # the source whose pseudo-targets are learnt


class PseudoTargets(NamedTuple):
    """What the teacher wrote: the labelling, and for each source the examples that the recipe's rules select."""

    stored: StoredSource
    selected: list[list[Example]]


def run(session: Session, alone: bool = False) -> str:
    """Teacher, pseudo-targets, student; returns the student's folder. `alone`: without the arms it is compared with."""
    splits, method = read_rows(session), session.recipe.method
    baselines = {} if alone else gold_only(session, splits)
    if isinstance(method, Distill) and method.overlap:
        train = partial(train_student, session, splits)
        models = train_while_labelling(session, STUDENT, partial(labels, session), train)
        teacher(session, splits)
        models |= train_students(session, splits, baselines)
    else:
        pseudo_targets = teacher(session, splits)
        if session.recipe.pseudo_targets.selects():
            data = TrainingData(sum(pseudo_targets.selected, []), ARM)
        else:
            data = training_data(session, splits, pseudo_targets.stored)
        trainings = {STUDENT: data, **baselines}
        models = train_students(session, splits, trainings, teacher=fine_tuned_teacher(session, splits))
    score_arms(session, splits, models.values())
    student = models[STUDENT].folder
    if not alone:
        publish_student(session, student)
    return student


def labels(session: Session, on_start: Callable[[StoredSource], None] = lambda stored: None) -> StoredSource:
    """The teacher's pseudo-targets for the unlabelled inputs, and its predictions for the test inputs."""
    splits = read_rows(session)
    return label_by_teacher(session, splits, {"unlabelled": splits.file("unlabelled")}, on_start)


def teacher(session: Session, splits: Splits) -> PseudoTargets:
    """The teacher's pseudo-targets; they and the teacher are scored."""
    stored = labels(session)
    return PseudoTargets(stored, select_and_score(session, splits, stored, UNLABELLED))


def train_student(session: Session, splits: Splits, stored: StoredSource) -> dict[str, TrainedModel]:
    """The student alone."""
    trainings = {STUDENT: training_data(session, splits, stored)}
    return train_students(session, splits, trainings, teacher=fine_tuned_teacher(session, splits))


def training_data(session: Session, splits: Splits, stored: StoredSource) -> TrainingData:
    """What the student learns: the teacher's pseudo-targets, and the gold targets that its sequences take in."""
    sequences = session.recipe.student.training.sequences
    if "gold" not in sequences.sources():
        return TrainingData((replace(stored, sources=("unlabelled",)),), ARM)
    sources = ("unlabelled", "gold") if sequences.passes() else ("gold",)
    return TrainingData((replace(stored, sources=sources, gold=str(splits.file("gold"))),), ARM)


def label_by_teacher(
    session: Session, splits: Splits, inputs: Mapping[str, Path], on_start: Callable[[StoredSource], None]
) -> StoredSource:
    """The teacher's pseudo-targets for inputs, and its predictions for the test inputs, in one start of its engine.

    Also for the gold inputs, where the student learns both. `on_start` is called before the first pseudo-target.
    """
    sources = {**inputs, **({"test": splits.file("test")} if "test" in splits.names else {})}
    if "gold" in session.recipe.student.training.sequences.sources():
        sources["gold"] = splits.file("gold")
    request = LabellingRequest(
        name="teacher/labels",
        model=fine_tuned_teacher(session, splits),
        role=session.recipe.teacher,
        sources=sources,
        about=TEACHER,
    )
    return label_inputs(session, request, on_start)


def select_and_score(
    session: Session, splits: Splits, stored: StoredSource, lineages: Mapping[str, Lineage]
) -> list[list[Example]]:
    """The teacher's pseudo-targets of each source that has a lineage; they and the teacher are scored."""
    model = fine_tuned_teacher(session, splits)
    selected = select_pseudo_targets(session, stored, model, lineages)
    score_pseudo_targets(session, "teacher/quality", TEACHER, sum(selected, []), splits.unlabelled)
    evaluate_arm(session, TEACHER, model, session.recipe.teacher, splits.test)
    return selected
