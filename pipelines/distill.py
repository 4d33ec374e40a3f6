"""Sequence-level distillation (Kim and Rush 2016): the student learns what the teacher answers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from raykd.data.examples import Example, Lineage
from raykd.data.splits import Splits
from raykd.recipe.losses import Loss
from raykd.recipe.methods import Distill
from raykd.recipe.training import PseudoTargets
from raykd.run.folder import Run
from raykd.stages.evaluate import compare_trees, evaluate_arm, score_pseudo_targets
from raykd.stages.fine_tune import fine_tuned_teacher
from raykd.stages.label import label_inputs
from raykd.stages.labelling import Labelling
from raykd.stages.publish import publish_student
from raykd.stages.rows import read_rows
from raykd.stages.schedule import run_at_once, train_while_labelling
from raykd.stages.select import select_pseudo_targets
from raykd.stages.train import TrainingData, train_students


def run(run: Run, alone: bool = False) -> str:
    """Teacher, pseudo-targets, student; returns the student's folder. `alone`: without what it is compared with."""
    rows, method = read_rows(run), run.recipe.method
    trainings = {} if alone else gold_only(run, rows)
    if isinstance(method, Distill) and method.overlap:

        def train(given: Labelling) -> dict[str, dict]:
            return train_students(run, rows, {"distilled": training_data(run, rows, given)})

        trained = train_while_labelling(run, "distilled", partial(labels, run), train)
        teacher(run, rows)
        trained |= train_students(run, rows, trainings)
    else:
        given, (chosen,) = teacher(run, rows)
        what = TrainingData(chosen) if run.recipe.pseudo_targets.chosen() else training_data(run, rows, given)
        trained = train_students(run, rows, {"distilled": what, **trainings})
    score(run, rows, trained)
    student = trained["distilled"]["model"]
    if not alone:
        publish_student(run, student)
    return student


def teacher(run: Run, rows: Splits) -> tuple[Labelling, list[list[Example]]]:
    """The teacher's answers, and what of them is learnt; it is scored."""
    given = labels(run)
    return given, taught(run, rows, given)


def control(run: Run) -> None:
    """The control arm alone, and its score."""
    rows = read_rows(run)
    score(run, rows, train_students(run, rows, gold_only(run, rows)))


def training_data(run: Run, rows: Splits, given: Labelling) -> TrainingData:
    """What the student learns: the teacher's answers, and the gold targets that its sequences ask for."""
    kind = run.recipe.student.training.sequences.kind
    if kind == "pseudo_targets":
        return TrainingData((given,))
    return TrainingData((replace(given, sources=(2,) if kind == "gold" else (0, 2), gold=rows.file("gold")),))


def labels(run: Run, begun: Callable[[Labelling], None] = lambda given: None) -> Labelling:
    """The teacher's answers: source 0 are the unlabelled inputs, then come the test inputs."""
    rows = read_rows(run)
    return asked(run, rows, [rows.file("unlabelled")], begun)


def asked(run: Run, rows: Splits, inputs: list[Path], begun: Callable[[Labelling], None]) -> Labelling:
    """The teacher's answers to inputs and to the test inputs, asked together so that its engine starts once.

    Those to the gold inputs as well, where the student learns both. `begun` is called before the first answer.
    """
    sources: list[Path | list[Example]] = [*inputs, rows.file("test") if "test" in rows.names else []]
    if run.recipe.student.training.sequences.kind != "pseudo_targets":
        sources.append(rows.file("gold"))
    return label_inputs(run, "teacher/labels", fine_tuned_teacher(run, rows), run.recipe.teacher, sources, begun=begun)


def taught(
    run: Run, rows: Splits, given: Labelling, lineages: Sequence[Lineage] = (Lineage("teacher"),)
) -> list[list[Example]]:
    """The teacher's pseudo-targets of each source that has a lineage; they and the teacher are scored."""
    model = fine_tuned_teacher(run, rows)
    parts = select_pseudo_targets(run, given, model, lineages)
    score_pseudo_targets(run, "teacher/quality", 0, "teacher", sum(parts, []), rows.unlabelled)
    evaluate_arm(run, "teacher", model, run.recipe.teacher, rows.test)
    return parts


def gold_only(run: Run, rows: Splits) -> dict[str, TrainingData]:
    """The control arm: the student on gold pairs alone, at several learning rates; empty if not asked for."""
    arm, student = run.recipe.arms.gold_only, run.recipe.student
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


def score(run: Run, rows: Splits, trained: dict[str, dict]) -> None:
    """Evaluate each arm's student; of the control arm's, the one that the dev rows speak for."""
    if not rows.test:
        return
    best = {}
    for name, result in sorted(trained.items(), key=lambda item: item[1]["score"]):
        best["mckd" if name.startswith("mckd") else name.partition("/")[0]] = result["model"]
    student = run.recipe.student
    run_at_once(
        run,
        {
            f"evaluate/{arm}-predictions": partial(evaluate_arm, run, arm, model, student, rows.test)
            for arm, model in best.items()
        },
    )
    compare_trees(run, best)
