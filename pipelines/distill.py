"""Sequence-level distillation (Kim and Rush 2016): the student learns what the teacher answers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from raykd.data.examples import Example, Lineage
from raykd.data.splits import Splits
from raykd.recipe.losses import Loss
from raykd.recipe.methods import Distill
from raykd.recipe.training import PseudoTargets
from raykd.run.session import Session
from raykd.stages.evaluate import compare_trees, evaluate_arm, score_pseudo_targets
from raykd.stages.fine_tune import fine_tuned_teacher
from raykd.stages.label import label_inputs
from raykd.stages.labelling import LabellingRequest
from raykd.stages.publish import publish_student
from raykd.stages.rows import read_rows
from raykd.stages.schedule import run_at_once, train_while_labelling
from raykd.stages.select import select_pseudo_targets
from raykd.stages.train import TrainingData, train_students
from raykd.training.sources import StoredSource

UNLABELLED = {"unlabelled": Lineage("teacher")}  # the source whose pseudo-targets are learnt


def run(session: Session, alone: bool = False) -> str:
    """Teacher, pseudo-targets, student; returns the student's folder. `alone`: without what it is compared with."""
    rows, method = read_rows(session), session.recipe.method
    trainings = {} if alone else gold_only(session, rows)
    if isinstance(method, Distill) and method.overlap:

        def train(given: StoredSource) -> dict[str, dict]:
            return train_students(session, rows, {"distilled": training_data(session, rows, given)})

        trained = train_while_labelling(session, "distilled", partial(labels, session), train)
        teacher(session, rows)
        trained |= train_students(session, rows, trainings)
    else:
        given, (chosen,) = teacher(session, rows)
        what = TrainingData(chosen) if session.recipe.pseudo_targets.chosen() else training_data(session, rows, given)
        trained = train_students(session, rows, {"distilled": what, **trainings})
    score(session, rows, trained)
    student = trained["distilled"]["model"]
    if not alone:
        publish_student(session, student)
    return student


def teacher(session: Session, rows: Splits) -> tuple[StoredSource, list[list[Example]]]:
    """The teacher's answers, and what of them is learnt; it is scored."""
    given = labels(session)
    return given, taught(session, rows, given)


def control(session: Session) -> None:
    """The control arm alone, and its score."""
    rows = read_rows(session)
    score(session, rows, train_students(session, rows, gold_only(session, rows)))


def training_data(session: Session, rows: Splits, given: StoredSource) -> TrainingData:
    """What the student learns: the teacher's answers, and the gold targets that its sequences ask for."""
    kind = session.recipe.student.training.sequences.kind
    if kind == "pseudo_targets":
        return TrainingData((replace(given, sources=("unlabelled",)),))
    sources = ("gold",) if kind == "gold" else ("unlabelled", "gold")
    return TrainingData((replace(given, sources=sources, gold=str(rows.file("gold"))),))


def labels(session: Session, begun: Callable[[StoredSource], None] = lambda given: None) -> StoredSource:
    """The teacher's pseudo-targets for the unlabelled inputs and the test inputs."""
    rows = read_rows(session)
    return asked(session, rows, {"unlabelled": rows.file("unlabelled")}, begun)


def asked(session: Session, rows: Splits, inputs: Mapping[str, Path], begun: Callable[[StoredSource], None]) -> StoredSource:
    """The teacher's answers to inputs and to the test inputs, asked together so that its engine starts once.

    Those to the gold inputs as well, where the student learns both. `begun` is called before the first answer.
    """
    sources = {**inputs, **({"test": rows.file("test")} if "test" in rows.names else {})}
    if session.recipe.student.training.sequences.kind != "pseudo_targets":
        sources["gold"] = rows.file("gold")
    request = LabellingRequest(
        name="teacher/labels",
        model=fine_tuned_teacher(session, rows),
        role=session.recipe.teacher,
        sources=sources,
    )
    return label_inputs(session, request, begun)


def taught(
    session: Session, rows: Splits, given: StoredSource, lineages: Mapping[str, Lineage] = UNLABELLED
) -> list[list[Example]]:
    """The teacher's pseudo-targets of each source that has a lineage; they and the teacher are scored."""
    model = fine_tuned_teacher(session, rows)
    parts = select_pseudo_targets(session, given, model, lineages)
    score_pseudo_targets(session, "teacher/quality", 0, "teacher", sum(parts, []), rows.unlabelled)
    evaluate_arm(session, "teacher", model, session.recipe.teacher, rows.test)
    return parts


def gold_only(session: Session, rows: Splits) -> dict[str, TrainingData]:
    """The control arm: the student on gold pairs alone, at several learning rates; empty if not asked for."""
    arm, student = session.recipe.arms.gold_only, session.recipe.student
    if arm is None:
        return {}
    model = student.model
    if arm.settings and model.kind == "config":
        model = model.model_copy(update={"settings": {**model.settings, **arm.settings}})
    rates = arm.learning_rates or [student.training.learning_rate]
    alone = {
        "losses": {"cross_entropy": Loss()},
        "sequences": PseudoTargets(kind="pseudo_targets"),
    }  # without a teacher
    ways = {rate: student.training.model_copy(update={**alone, "learning_rate": rate}) for rate in rates}
    return {f"gold_only/lr-{rate:g}": TrainingData(rows.control, way, rows.dev, model) for rate, way in ways.items()}


def score(session: Session, rows: Splits, trained: dict[str, dict]) -> None:
    """Evaluate each arm's student; of the control arm's, the one that the dev rows speak for."""
    if not rows.test:
        return
    best = {}
    for name, result in sorted(trained.items(), key=lambda item: item[1]["score"]):
        best["mckd" if name.startswith("mckd") else name.partition("/")[0]] = result["model"]
    student = session.recipe.student
    run_at_once(
        session,
        {
            f"evaluate/{arm}-predictions": partial(evaluate_arm, session, arm, model, student, rows.test)
            for arm, model in best.items()
        },
    )
    compare_trees(session, best)
