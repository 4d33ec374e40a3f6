"""Multistage collaborative knowledge distillation (Zhao et al., ACL 2024).

The teacher labels all inputs; they are split into partitions once.
In every round but the last, a fresh student learns each partition, and then labels a partition it never saw.
The final student learns what the last round's students wrote.
"""

from functools import partial

from pipelines import distill
from raykd import stages
from raykd.recipe import Mckd
from raykd.run import Run
from raykd.stages import Example, Lesson

labels = distill.labels


def run(run: Run) -> str:
    """Teacher, partitions, rounds of students that relabel each other's part, final student; returns its folder."""
    method = run.recipe.method
    assert isinstance(method, Mckd)
    rows = stages.read_rows(run)
    labelled = distill.taught(run, rows)
    parts = stages.partition(run, labelled, method.partitions)

    for number in range(1, method.stages):
        at = f"mckd/round-{number}"
        trained = stages.train(run, rows, {f"{at}/student-{i}": Lesson(part) for i, part in enumerate(parts)})
        students = [result["model"] for result in trained.values()]
        parts = relabel(run, at, parts, students[1:] + students[:1])
        stages.quality(run, f"{at}/quality", number, "students", sum(parts, []), rows.unlabelled)

    lessons = {"mckd/final": Lesson(sum(parts, []))}
    if run.recipe.arms.distilled:
        lessons["distilled"] = Lesson(labelled)
    trained = stages.train(run, rows, {**lessons, **distill.gold_only(run, rows)})
    distill.score(run, rows, trained)
    return trained["mckd/final"]["model"]


def relabel(run: Run, at: str, parts: list[list[Example]], students: list[str]) -> list[list[Example]]:
    """Each partition with the labels of the student beside it, which never saw it."""

    def one(number: int) -> list[Example]:
        name = f"{at}/labels-{number}"
        return stages.label(run, name, students[number], run.recipe.student, [parts[number]]).examples()

    return stages.together(run, {f"{at}/labels-{number}": partial(one, number) for number in range(len(parts))})
