"""TODO: docstring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

from raykd.data import pseudo_targets
from raykd.data.examples import (
    Example,
)
from raykd.models.files import content_hash, is_encoder_decoder, model_folder
from raykd.recipe.models import EndpointModel, FromConfig, Model
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.training import Training
from raykd.run import remote
from raykd.run.files import fingerprint, write_text
from raykd.run.folder import Run
from raykd.run.manifests import MANIFEST

if TYPE_CHECKING:
    from raykd.data.prompts import PromptEncoder

from raykd.data.splits import Splits
from raykd.run.session import await_resources, connect
from raykd.stages.labelling import Labelling
from raykd.stages.prompts import prompt_parts, prompt_shots
from raykd.stages.publish import write_model_card
from raykd.stages.rows import file_digest, json_lines
from raykd.stages.tokenizer import shared_tokenizer


@dataclass(frozen=True)
class TrainingData:
    """What one model is to learn: examples, or what a teacher wrote; where they differ from the student's, the way of
    training and the model.

    Without dev rows a share of the examples is held out. `then` is a stage that begins when the model is ready,
    whatever else still trains: its name, and what is called with the model's folder.
    """

    examples: list[Example] | tuple[Labelling, ...]
    training: Training | None = None
    dev: list[Example] | None = None
    model: Model | None = None
    weighting: str | None = None  # as recipe.Mckd.weighting
    then: tuple[str, Callable[[str], Any]] | None = None


def train_students(
    run: Run, rows: Splits, trainings: dict[str, TrainingData], side: Teacher | Student | None = None
) -> dict[str, dict[str, Any]]:
    """Train a fresh model on each training_data, all at the same time where capacity allows, else in turn.

    Returns by name what `training.train` found: the folder of the model, its best step, its dev loss.
    """
    shared = shared_tokenizer(run, rows)
    place = (1, 1)  # trainings at the same time, threads of each worker
    after = [training_data.then[0] for training_data in trainings.values() if training_data.then]
    if not all((run.path / name / MANIFEST).exists() for name in [*trainings, *after]):
        connect(run)
        from raykd.cluster.train import together

        place = together(1 if run.fit else len(trainings), run.recipe.cluster)

    with ThreadPoolExecutor(max(1, len(after))) as labellers, _passes(run, len(after)) as leave:

        def one(name: str) -> tuple[dict[str, Any], Future | None]:
            trained = _train(run, rows, name, trainings[name], side or run.recipe.student, shared, place[1])
            then = trainings[name].then
            return trained, labellers.submit(begin, then[1], trained["model"]) if then else None

        def begin(then: Callable[[str], Any], model: str) -> None:
            with leave:
                then(model)

        with ThreadPoolExecutor(place[0]) as pool:
            found = dict(zip(trainings, pool.map(one, trainings), strict=True))
        for _, labelled in found.values():
            if labelled:
                labelled.result()
    return {name: trained for name, (trained, _) in found.items()}


@contextmanager
def _passes(run: Run, count: int) -> Iterator[BoundedSemaphore]:
    """Leave for as many of `count` labelling passes of students as fit at the same time."""
    if run.connected and count:
        from raykd.cluster import resources

        actors = run.recipe.cluster.labelling_students
        count = min(count, resources.at_once(actors.resources, max(1, actors.bounds()[0]), run.recipe.cluster))
    before, run.passes = run.passes, max(1, count)  # a training may come to another, as of the teacher
    try:
        yield BoundedSemaphore(run.passes)
    finally:
        run.passes = before


def _train(
    run: Run, rows: Splits, name: str, training_data: TrainingData, side: Teacher | Student, shared: str, threads: int
) -> dict[str, Any]:
    from raykd.stages.fine_tune import fine_tuned_teacher
    from raykd.training.sources import FileSource

    model, training = training_data.model or side.model, training_data.training or run.recipe.student.training
    assert not isinstance(model, EndpointModel)  # which the recipe sees to
    folder = shared if isinstance(model, FromConfig) else model.path
    teacher = fine_tuned_teacher(run, rows) if training.needs_teacher() else None
    given = training_data.examples
    if isinstance(given, list):
        given = pseudo_targets.with_weights(given, training_data.weighting)
    files = {"dev": training_data.dev} if training_data.dev else {}
    files |= {"rows": given} if isinstance(given, list) else {}
    texts = {file: json_lines(_row(example) for example in examples) for file, examples in files.items()}
    marks = {
        file: fingerprint([[e.id, e.input, e.target, e.weight] for e in examples]) for file, examples in files.items()
    }
    if not isinstance(given, list):
        marks["rows"] = fingerprint([[g.mark, g.n, g.sources, file_digest(g.gold) if g.gold else None] for g in given])
    inputs = {"model": model.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    inputs |= {
        "prompt": prompt_parts(side),
        "teacher": content_hash(model_folder(teacher)) if teacher else None,
    }

    def work(stage: Path) -> tuple[dict, dict]:
        from raykd.cluster.train import fit
        from raykd.training.job import TrainingSpec

        for file, text in texts.items():
            write_text(stage / f"{file}.jsonl", text)
        remote.send(*(stage / f"{file}.jsonl" for file in texts))
        job = TrainingSpec(
            name=name,
            run=run.recipe.name,
            model=model,
            tokenizer=folder,
            training=training,
            source=FileSource(str(stage / "rows.jsonl"))
            if isinstance(given, list)
            else tuple(one.source(training) for one in given),
            dev=FileSource(str(stage / "dev.jsonl")) if training_data.dev else None,
            student=_reading(side, folder, side.task == "generation" and is_encoder_decoder(model)),
            teacher=_reading(run.recipe.teacher, teacher, is_encoder_decoder(model)) if teacher else None,
            folder=str(stage),
            tokens=str(remote.folder(run.recipe.output) / "tokens"),
            marks=(marks["rows"], marks.get("dev", "")),
            seed=run.recipe.seed,
            threads=threads,
            max_bad_rows=run.recipe.data.max_bad_rows,
            parallel=run.recipe.cluster.student.parallel,
            trackers=tuple(run.recipe.trackers),
        )
        workers = run.recipe.cluster.student
        await_resources(run, name, workers.resources, workers.bounds()[0])
        with run.console.bar(name, training.max_steps or _steps(training, given), "steps") as update:
            result = (run.fit or fit)(job, run.recipe.cluster, update)
        stats = result.pop("stats")
        write_model_card(run, name, model, training, side, Path(result["model"]), stats)
        result["bad_rows"] = [{"file": name, "line": None, "reason": reason} for reason in result["bad_rows"]]
        run.tolerate(result["bad_rows"])
        return result, {**stats, "bad_rows": len(result["bad_rows"])}

    return run.stage(name, "train", {**inputs, "seed": run.recipe.seed, **marks}, work)


def _reading(side: Teacher | Student, folder: str, encoder: bool) -> PromptEncoder:
    from raykd.data.prompts import PromptEncoder

    labels = tuple(side.labels) if side.labels else None
    return PromptEncoder(folder, side.prompt, tuple(prompt_shots(side)), encoder, side.task, labels)


def _row(example: Example) -> dict[str, Any]:
    """A line of a training's rows: what is learnt, and where it is from."""
    row: dict[str, Any] = {"id": example.id, "input": example.input, "target": example.target}
    if example.weight != 1:
        row["weight"] = example.weight
    return row | (asdict(example.lineage) if example.lineage else {})


def _steps(training: Training, given: list[Example] | tuple[Labelling, ...]) -> int | None:
    """Steps of so many epochs, guessed from characters: for a bar's length only."""
    if not isinstance(given, list):
        return None
    characters = sum(len(e.input) + len(e.target or "") for e in given)
    return max(1, math.ceil((training.epochs or 1) * characters / 3 / training.batch_tokens))
