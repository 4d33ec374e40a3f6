"""Multistage collaborative knowledge distillation (Zhao et al., ACL 2024).

All inputs are split into partitions once, and the teacher labels them. In every round but the last, a fresh student
learns each partition, and then labels partitions it never saw. The final student learns what the last round's students
wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines import distill
from raykd.data.examples import Example, Lineage, load_examples
from raykd.data.splits import Splits
from raykd.recipe.methods import Mckd
from raykd.recipe.models import Checkpoint
from raykd.run.folder import Run
from raykd.stages.evaluate import score_pseudo_targets
from raykd.stages.labelling import Labelling
from raykd.stages.partition import partition_inputs
from raykd.stages.publish import publish_student
from raykd.stages.relabel import measure_memorisation, relabel_inputs
from raykd.stages.rows import read_rows
from raykd.stages.select import select_relabelled
from raykd.stages.train import TrainingData, train_students

Taught = list[Example] | tuple[Labelling, ...]  # what a partition's student learns: texts, or what a store keeps


def run(run: Run, alone: bool = False) -> str:
    """Partitions, teacher, rounds of students that relabel each other's part, final student; returns its folder.

    `alone`: without what it is compared with.
    """
    rows, method = read_rows(run), settings(run)
    given, labelled = teacher(run, rows)
    count = method.partitions
    parts: list[Taught] = list(labelled)
    if method.exchange == "top_k":
        parts = [(replace(given, sources=(i,)),) for i in range(count)]

    students: list[str] = []
    for number in range(1, method.stages):
        parts, students = round(run, rows, number, parts, students)

    trainings = {"mckd/final": training_data(run, rows, together(parts))}
    if not alone:
        trainings |= distill.gold_only(run, rows)
    if run.recipe.arms.distilled and not alone:
        whole = replace(given, sources=tuple(range(count)))
        trainings["distilled"] = TrainingData((whole,) if method.exchange == "top_k" else sum(labelled, []))
    trained = train_students(run, rows, trainings)
    distill.score(run, rows, trained)
    if not alone:
        publish_student(run, trained["mckd/final"]["model"])
    return trained["mckd/final"]["model"]


def settings(run: Run) -> Mckd:
    """The recipe's method."""
    assert isinstance(run.recipe.method, Mckd)
    return run.recipe.method


def labels(run: Run, begun: Callable[[Labelling], None] = lambda given: None) -> Labelling:
    """The teacher's answers: sources 0 to P - 1 are the partitions, then come the test inputs."""
    rows = read_rows(run)
    return distill.asked(run, rows, partition_inputs(run, rows, settings(run)), begun)


def teacher(run: Run, rows: Splits) -> tuple[Labelling, list[list[Example]]]:
    """The teacher's answers, and what of them is learnt, by partition; it is scored."""
    given = labels(run)
    lineages = [Lineage("teacher", partition=i) for i in range(settings(run).partitions)]
    return given, distill.taught(run, rows, given, lineages)


def training_data(run: Run, rows: Splits, taught: Taught, unseen: Sequence[Path] = (), **changes) -> TrainingData:
    """What a student learns: pseudo-targets, and gold where the recipe mixes it in, but of `unseen` inputs."""
    if settings(run).gold and isinstance(taught, list):
        hidden = {example.input for file in unseen for example in load_examples(file)}
        taught = taught + [example for example in rows.gold if example.input not in hidden]
    return TrainingData(taught, weighting=settings(run).weighting, **changes)


def together(parts: list[Taught]) -> Taught:
    """All partitions as one."""
    texts = [example for part in parts if isinstance(part, list) for example in part]
    return texts or tuple(labels for part in parts if not isinstance(part, list) for labels in part)


def round(
    run: Run, rows: Splits, number: int, parts: list[Taught], before: list[str]
) -> tuple[list[Taught], list[str]]:
    """A student for each partition, which labels others as soon as it is ready; the new labels, and the students."""
    at, method, count = f"mckd/round-{number}", settings(run), len(parts)
    files = partition_inputs(run, rows, method)
    unseen = [[(i + shift) % count for shift in SHIFTS[method.relabel](count)] for i in range(count)]
    found: dict[int, Labelling] = {}

    def one(i: int) -> TrainingData:
        others = [files[j] for j in unseen[i]]

        def relabel(model: str) -> None:
            found[i] = relabel_inputs(run, f"{at}/labels-by-{i}", model, others, files[i])

        warm = Checkpoint(kind="checkpoint", path=before[i]) if method.warm_start and before else None
        return training_data(run, rows, parts[i], others, model=warm, then=(f"{at}/labels-by-{i}", relabel))

    trained = train_students(run, rows, {f"{at}/student-{i}": one(i) for i in range(count)})
    written: list[list[list[Example]]] = [[] for _ in parts]  # of each partition, by each student that labelled it
    for i in range(count):
        for place, j in enumerate(unseen[i]):
            lineage = Lineage(f"{at}/student-{i}", number, j)
            written[j].append(found[i].examples(place, lineage))
    old = [
        part if isinstance(part, list) else sum((one.examples(one.sources[0]) for one in part), []) for part in parts
    ]
    new = select_relabelled(run, f"{at}/labels", written, old)
    if method.relabel != "own":
        measure_memorisation(run, f"{at}/memory", [found[i] for i in range(count)], old, unseen)
    score_pseudo_targets(run, f"{at}/quality", number, "students", sum(new, []), rows.unlabelled)
    students = [result["model"] for result in trained.values()]
    if method.exchange == "text":
        return list(new), students
    return [(replace(found[i], sources=(0,)),) for j in range(count) for i in range(count) if j in unseen[i]], students


# which partitions the student of partition i labels: i plus each of these
SHIFTS: dict[str, Callable[[int], list[int]]] = {
    "next": lambda count: [count - 1],  # the one before it
    "vote": lambda count: list(range(1, count)),
    "own": lambda count: [0],
}
