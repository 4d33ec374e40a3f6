"""Multistage collaborative knowledge distillation (Zhao et al., ACL 2024).

    The teacher labels all inputs; they are split into partitions once.
    In every round but the last, a fresh student learns each partition, and then labels a partition it never saw.
    The final student learns what the last round's students wrote.
"""

from pipelines import distill
from raykd import stages
from raykd.run import Run


def run(run: Run) -> str:
    """Teacher, partitions, rounds of students that relabel each other's part, final student; returns its folder."""
    method, student = run.recipe.method, run.recipe.student
    rows = stages.read_rows(run)
    teacher = stages.fine_tuned(run, rows)
    labelled = distill.label(run, rows, teacher)
    parts = stages.partition(run, labelled, method.partitions)

    for number in range(1, method.stages):
        at = f"mckd/round-{number}"
        students = stages.train(run, rows, {f"{at}/student-{i}": part for i, part in enumerate(parts)})
        parts = stages.together(
            run,
            [
                # partition i by the student of the next one, which never saw it
                lambda i=i, part=part: stages.label(
                    run, f"{at}/labels-{i}", students[(i + 1) % len(parts)]["model"], student, part
                )
                for i, part in enumerate(parts)
            ],
        )
        stages.quality(run, f"{at}/quality", number, "students", sum(parts, []), rows.unlabelled)

    final = stages.train(run, rows, {"mckd/final": sum(parts, [])})[0]["model"]
    stages.evaluate(run, "mckd", final, student, rows.test)
    if run.recipe.arms.distilled:
        distill.distil(run, rows, labelled)
    distill.control(run, rows)
    return final
