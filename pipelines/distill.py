"""Sequence-level distillation (Kim and Rush 2016): the student learns what the teacher answers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from raykd import stages
from raykd.data import Lineage
from raykd.recipe import Distill, Loss, PseudoTargets
from raykd.run import Run
from raykd.stages import Example, Labels, Lesson, Sets


def run(run: Run, alone: bool = False) -> str:
    """Teacher, pseudo-targets, student; returns the student's folder. `alone`: without what it is compared with."""
    rows, method = stages.read_rows(run), run.recipe.method
    lessons = {} if alone else gold_only(run, rows)
    if isinstance(method, Distill) and method.overlap:

        def train(given: Labels) -> dict[str, dict]:
            return stages.train(run, rows, {"distilled": lesson(run, rows, given)})

        trained = stages.following(run, "distilled", partial(labels, run), train)
        teacher(run, rows)
        trained |= stages.train(run, rows, lessons)
    else:
        given, (chosen,) = teacher(run, rows)
        what = Lesson(chosen) if run.recipe.answers.chosen() else lesson(run, rows, given)
        trained = stages.train(run, rows, {"distilled": what, **lessons})
    score(run, rows, trained)
    student = trained["distilled"]["model"]
    if not alone:
        stages.publish(run, student)
    return student


def teacher(run: Run, rows: Sets) -> tuple[Labels, list[list[Example]]]:
    """The teacher's answers, and what of them is learnt; it is scored."""
    given = labels(run)
    return given, taught(run, rows, given)


def control(run: Run) -> None:
    """The control arm alone, and its score."""
    rows = stages.read_rows(run)
    score(run, rows, stages.train(run, rows, gold_only(run, rows)))


def lesson(run: Run, rows: Sets, given: Labels) -> Lesson:
    """What the student learns: the teacher's answers, and the gold targets that its sequences ask for."""
    kind = run.recipe.student.training.sequences.kind
    if kind == "pseudo_targets":
        return Lesson((given,))
    return Lesson((replace(given, sources=(2,) if kind == "gold" else (0, 2), gold=rows.file("gold")),))


def labels(run: Run, begun: Callable[[Labels], None] = lambda given: None) -> Labels:
    """The teacher's answers: source 0 are the unlabelled inputs, then come the test inputs."""
    rows = stages.read_rows(run)
    return asked(run, rows, [rows.file("unlabelled")], begun)


def asked(run: Run, rows: Sets, inputs: list[Path], begun: Callable[[Labels], None]) -> Labels:
    """The teacher's answers to inputs and to the test inputs, asked together so that its engine starts once.

    Those to the gold inputs as well, where the student learns both. `begun` is called before the first answer.
    """
    sources: list[Path | list[Example]] = [*inputs, rows.file("test") if "test" in rows.names else []]
    if run.recipe.student.training.sequences.kind != "pseudo_targets":
        sources.append(rows.file("gold"))
    return stages.label(run, "teacher/labels", stages.fine_tuned(run, rows), run.recipe.teacher, sources, begun=begun)


def taught(
    run: Run, rows: Sets, given: Labels, lineages: Sequence[Lineage] = (Lineage("teacher"),)
) -> list[list[Example]]:
    """The teacher's pseudo-targets of each source that has a lineage; they and the teacher are scored."""
    model = stages.fine_tuned(run, rows)
    parts = stages.chosen(run, given, model, lineages)
    stages.quality(run, "teacher/quality", 0, "teacher", sum(parts, []), rows.unlabelled)
    stages.evaluate(run, "teacher", model, run.recipe.teacher, rows.test)
    return parts


def gold_only(run: Run, rows: Sets) -> dict[str, Lesson]:
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
    return {f"gold_only/lr-{rate:g}": Lesson(rows.control, way, rows.dev, model) for rate, way in ways.items()}


def score(run: Run, rows: Sets, trained: dict[str, dict]) -> None:
    """Evaluate each arm's student; of the control arm's, the one that the dev rows speak for."""
    if not rows.test:
        return
    best = {}
    for name, result in sorted(trained.items(), key=lambda item: item[1]["score"]):
        best["mckd" if name.startswith("mckd") else name.partition("/")[0]] = result["model"]
    student = run.recipe.student
    stages.together(
        run,
        {
            f"evaluate/{arm}-answers": partial(stages.evaluate, run, arm, model, student, rows.test)
            for arm, model in best.items()
        },
    )
    stages.compare_trees(run, best)
