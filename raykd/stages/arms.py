"""The control arm that a method is compared with, and the scores of all arms."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from raykd.data.splits import Splits
from raykd.recipe.losses import CrossEntropy
from raykd.recipe.training import Sequences
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.evaluate import compare_trees, evaluate_arm
from raykd.stages.schedule import run_at_once
from raykd.stages.train import TrainedModel, TrainingData


def gold_only(session: Session, splits: Splits) -> dict[str, TrainingData]:
    """The trainings of the control arm, by stage: the student learns gold pairs alone, once per learning rate.

    Empty if the recipe has no `arms.gold_only`.
    """
    arm, student = session.recipe.arms.gold_only, session.recipe.student
    if arm is None:
        return {}
    model = student.model
    if arm.settings and model.kind == "config":
        model = model.model_copy(update={"settings": {**model.settings, **arm.settings}})
    without_teacher = {
        "losses": {"cross_entropy": CrossEntropy(kind="cross_entropy")},
        "sequences": Sequences(union=["pseudo_targets"]),
    }
    trainings = {}
    for rate in arm.learning_rates or [student.training.learning_rate]:
        training = student.training.model_copy(update={**without_teacher, "learning_rate": rate})
        about = StageAbout(arm="gold_only")
        trainings[f"gold_only/lr-{rate:g}"] = TrainingData(splits.control, about, training, splits.dev, model)
    return trainings


def score_arms(session: Session, splits: Splits, models: Iterable[TrainedModel]) -> None:
    """Evaluate one student per arm on the test rows: the one with the best dev score. Compares trees as well.

    Does nothing if the recipe has no test rows.
    """
    if not splits.test:
        return
    best = {model.about.arm: model for model in sorted(models, key=lambda model: model.score)}
    student = session.recipe.student
    calls = {
        f"evaluate/{arm}-predictions": partial(evaluate_arm, session, model.about, model.folder, student, splits.test)
        for arm, model in best.items()
    }
    run_at_once(session, calls)
    compare_trees(session, [str(arm) for arm in best])
