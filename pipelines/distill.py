"""Sequence-level distillation (Kim and Rush 2016): the student learns what the teacher answers."""

from raykd import stages
from raykd.run import Run
from raykd.stages import Sets


def run(run: Run) -> str:
    """Teacher, pseudo-targets, student; returns the student's folder."""
    rows = stages.read_rows(run)
    teacher = stages.fine_tuned(run, rows)
    labelled = label(run, rows, teacher)
    student = distil(run, rows, labelled)
    control(run, rows)
    return student


def label(run: Run, rows: Sets, teacher: str) -> list[stages.Example]:
    """The unlabelled inputs with the teacher's answers; the test inputs go along, so that its engine starts once."""
    inputs = {e.input for e in rows.unlabelled}
    answered = stages.label(run, "teacher/labels", teacher, run.recipe.teacher, rows.unlabelled + rows.test)
    labelled = [e for e in answered if e.input in inputs]
    stages.quality(run, "teacher/quality", 0, "teacher", labelled, rows.unlabelled)
    stages.evaluate(run, "teacher", teacher, run.recipe.teacher, rows.test)
    return labelled


def distil(run: Run, rows: Sets, labelled: list[stages.Example]) -> str:
    """A student on all of the teacher's answers."""
    model = stages.train(run, rows, {"distilled": labelled})[0]["model"]
    stages.evaluate(run, "distilled", model, run.recipe.student, rows.test)
    return model


def control(run: Run, rows: Sets) -> None:
    """The same student on gold pairs alone, at the best of several learning rates, where the recipe asks for it."""
    arm = run.recipe.arms.gold_only
    if arm is None:
        return
    training = run.recipe.student.training
    rates = arm.learning_rates or [training.learning_rate]
    tries = {f"gold_only/lr-{rate:g}": training.model_copy(update={"learning_rate": rate}) for rate in rates}
    trained = stages.train(run, rows, dict.fromkeys(tries, rows.control), training=tries, dev=rows.dev)
    stages.evaluate(run, "gold_only", stages.best(trained)["model"], run.recipe.student, rows.test)
