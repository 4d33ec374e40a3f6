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
from raykd.run.session import Session
from raykd.stages.evaluate import score_pseudo_targets
from raykd.stages.labelling import read_pseudo_targets
from raykd.stages.partition import part_name, partition_inputs
from raykd.stages.publish import publish_student
from raykd.stages.relabel import measure_memorisation, relabel_inputs
from raykd.stages.rows import read_rows
from raykd.stages.select import select_relabelled
from raykd.stages.train import TrainingData, train_students
from raykd.training.sources import StoredSource

Taught = list[Example] | tuple[StoredSource, ...]  # what a partition's student learns: texts, or what a store keeps


def run(session: Session, alone: bool = False) -> str:
    """Partitions, teacher, rounds of students that relabel each other's part, final student; returns its folder.

    `alone`: without what it is compared with.
    """
    rows, method = read_rows(session), settings(session)
    given, labelled = teacher(session, rows)
    count = method.partitions
    parts: list[Taught] = list(labelled)
    if method.exchange == "top_k":
        parts = [(replace(given, sources=(part_name(i),)),) for i in range(count)]

    students: list[str] = []
    for number in range(1, method.stages):
        parts, students = round(session, rows, number, parts, students)

    trainings = {"mckd/final": training_data(session, rows, together(parts))}
    if not alone:
        trainings |= distill.gold_only(session, rows)
    if session.recipe.arms.distilled and not alone:
        whole = replace(given, sources=tuple(map(part_name, range(count))))
        trainings["distilled"] = TrainingData((whole,) if method.exchange == "top_k" else sum(labelled, []))
    trained = train_students(session, rows, trainings)
    distill.score(session, rows, trained)
    if not alone:
        publish_student(session, trained["mckd/final"]["model"])
    return trained["mckd/final"]["model"]


def settings(session: Session) -> Mckd:
    """The recipe's method."""
    assert isinstance(session.recipe.method, Mckd)
    return session.recipe.method


def labels(session: Session, begun: Callable[[StoredSource], None] = lambda given: None) -> StoredSource:
    """The teacher's pseudo-targets for the partitions, and for the test inputs."""
    rows = read_rows(session)
    files = partition_inputs(session, rows, settings(session))
    return distill.asked(session, rows, {part_name(i): file for i, file in enumerate(files)}, begun)


def teacher(session: Session, rows: Splits) -> tuple[StoredSource, list[list[Example]]]:
    """The teacher's answers, and what of them is learnt, by partition; it is scored."""
    given = labels(session)
    lineages = {part_name(i): Lineage("teacher", partition=i) for i in range(settings(session).partitions)}
    return given, distill.taught(session, rows, given, lineages)


def training_data(
    session: Session, rows: Splits, taught: Taught, unseen: Sequence[Path] = (), **changes
) -> TrainingData:
    """What a student learns: pseudo-targets, and gold where the recipe mixes it in, but of `unseen` inputs."""
    if settings(session).gold and isinstance(taught, list):
        hidden = {example.input for file in unseen for example in load_examples(file)}
        taught = taught + [example for example in rows.gold if example.input not in hidden]
    return TrainingData(taught, weighting=settings(session).weighting, **changes)


def together(parts: list[Taught]) -> Taught:
    """All partitions as one."""
    texts = [example for part in parts if isinstance(part, list) for example in part]
    return texts or tuple(labels for part in parts if not isinstance(part, list) for labels in part)


def round(
    session: Session, rows: Splits, number: int, parts: list[Taught], before: list[str]
) -> tuple[list[Taught], list[str]]:
    """A student for each partition, which labels others as soon as it is ready; the new labels, and the students."""
    at, method, count = f"mckd/round-{number}", settings(session), len(parts)
    files = partition_inputs(session, rows, method)
    unseen = [[(i + shift) % count for shift in SHIFTS[method.relabel](count)] for i in range(count)]
    found: dict[int, StoredSource] = {}

    def one(i: int) -> TrainingData:
        others = {part_name(j): files[j] for j in unseen[i]}

        def relabel(model: str) -> None:
            found[i] = relabel_inputs(session, f"{at}/labels-by-{i}", model, others, files[i])

        warm = Checkpoint(kind="checkpoint", path=before[i]) if method.warm_start and before else None
        return training_data(session, rows, parts[i], list(others.values()), model=warm, then=(f"{at}/labels-by-{i}", relabel))

    trained = train_students(session, rows, {f"{at}/student-{i}": one(i) for i in range(count)})
    written: list[list[list[Example]]] = [[] for _ in parts]  # of each partition, by each student that labelled it
    for i in range(count):
        for j in unseen[i]:
            lineage = Lineage(f"{at}/student-{i}", number, j)
            written[j].append(read_pseudo_targets(found[i], part_name(j), lineage))
    old = [
        taught if isinstance(taught, list) else sum((read_pseudo_targets(one, one.sources[0]) for one in taught), [])
        for taught in parts
    ]
    new = select_relabelled(session, f"{at}/labels", written, old)
    if method.relabel != "own":
        measure_memorisation(session, f"{at}/memory", [found[i] for i in range(count)], old, unseen)
    score_pseudo_targets(session, f"{at}/quality", number, "students", sum(new, []), rows.unlabelled)
    students = [result["model"] for result in trained.values()]
    if method.exchange == "text":
        return list(new), students
    return [(replace(found[i], sources=(part_name(j),)),) for j in range(count) for i in range(count) if j in unseen[i]], students


# which partitions the student of partition i labels: i plus each of these
SHIFTS: dict[str, Callable[[int], list[int]]] = {
    "next": lambda count: [count - 1],  # the one before it
    "vote": lambda count: list(range(1, count)),
    "own": lambda count: [0],
}
