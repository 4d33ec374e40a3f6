"""TODO: docstring."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
from raykd.run.session import Session

if TYPE_CHECKING:
    from raykd.data.prompts import PromptEncoder

from raykd.data.splits import Splits
from raykd.stages.labelling import read_as
from raykd.stages.prompts import prompt_parts, prompt_shots
from raykd.stages.publish import write_model_card
from raykd.stages.rows import file_digest, json_lines
from raykd.stages.tokenizer import shared_tokenizer
from raykd.training.sources import FileSource, StoredSource


@dataclass(frozen=True)
class TrainingData:
    """What one model is to learn: examples, or what a teacher wrote; where they differ from the student's, the way of
    training and the model.

    Without dev rows a share of the examples is held out. `then` is a stage that begins when the model is ready,
    whatever else still trains: its name, and what is called with the model's folder.
    """

    examples: list[Example] | tuple[StoredSource, ...]
    training: Training | None = None
    dev: list[Example] | None = None
    model: Model | None = None
    weighting: str | None = None  # as recipe.Mckd.weighting
    then: tuple[str, Callable[[str], Any]] | None = None


def train_students(
    session: Session, rows: Splits, trainings: dict[str, TrainingData], side: Teacher | Student | None = None
) -> dict[str, dict[str, Any]]:
    """Train a fresh model on each training_data, all at the same time where capacity allows, else in turn.

    Returns by name what `training.train` found: the folder of the model, its best step, its dev loss.
    """
    shared = shared_tokenizer(session, rows)
    place = (1, 1)  # trainings at the same time, threads of each worker
    after = [training_data.then[0] for training_data in trainings.values() if training_data.then]
    if not all(map(session.folder.is_complete, [*trainings, *after])):
        session.connect()
        from raykd.cluster.train import together

        place = together(1 if session.fit else len(trainings), session.recipe.cluster)

    with ThreadPoolExecutor(max(1, len(after))) as labellers, session.labelling_passes(len(after)) as at_once:
        leave = BoundedSemaphore(at_once)

        def one(name: str) -> tuple[dict[str, Any], Future | None]:
            trained = _train(session, rows, name, trainings[name], side or session.recipe.student, shared, place[1])
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


def _train(
    session: Session,
    rows: Splits,
    name: str,
    training_data: TrainingData,
    side: Teacher | Student,
    shared: str,
    threads: int,
) -> dict[str, Any]:
    from raykd.stages.fine_tune import fine_tuned_teacher

    model, training = training_data.model or side.model, training_data.training or session.recipe.student.training
    assert not isinstance(model, EndpointModel)  # which the recipe sees to
    folder = shared if isinstance(model, FromConfig) else model.path
    teacher = fine_tuned_teacher(session, rows) if training.needs_teacher() else None
    given = training_data.examples
    if isinstance(given, list):
        given = pseudo_targets.with_weights(given, training_data.weighting)
    files = {"dev": training_data.dev} if training_data.dev else {}
    files |= {"rows": given} if isinstance(given, list) else {}
    marks = {
        file: fingerprint([[e.id, e.input, e.target, e.weight] for e in examples]) for file, examples in files.items()
    }
    if not isinstance(given, list):
        marks["rows"] = fingerprint([[g.mark, g.samples, g.sources, file_digest(Path(g.gold)) if g.gold else None] for g in given])
    inputs = {"model": model.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    inputs |= {
        "prompt": prompt_parts(side),
        "teacher": content_hash(model_folder(teacher)) if teacher else None,
    }

    def work(stage: Path) -> tuple[dict, dict]:
        from raykd.cluster.train import fit
        from raykd.training.job import TrainingSpec

        for file, examples in files.items():
            write_text(stage / f"{file}.jsonl", json_lines(map(_row, examples)))
        remote.send(*(stage / f"{file}.jsonl" for file in files))
        job = TrainingSpec(
            name=name,
            run=session.recipe.name,
            model=model,
            tokenizer=folder,
            training=training,
            source=FileSource(str(stage / "rows.jsonl"))
            if isinstance(given, list)
            else tuple(read_as(stored, training) for stored in given),
            dev=FileSource(str(stage / "dev.jsonl")) if training_data.dev else None,
            student=_reading(side, folder, side.task == "generation" and is_encoder_decoder(model)),
            teacher=_reading(session.recipe.teacher, teacher, is_encoder_decoder(model)) if teacher else None,
            folder=str(stage),
            tokens=str(remote.folder(session.recipe.output) / "tokens"),
            marks=(marks["rows"], marks.get("dev", "")),
            seed=session.recipe.seed,
            threads=threads,
            max_bad_rows=session.recipe.data.max_bad_rows,
            parallel=session.recipe.cluster.student.parallel,
            trackers=tuple(session.recipe.trackers),
        )
        workers = session.recipe.cluster.student
        session.await_resources(name, workers.resources, workers.bounds()[0])
        with session.console.bar(name, training.max_steps or _steps(training, given), "steps") as update:
            result = (session.fit or fit)(job, session.recipe.cluster, update)
        stats = result.pop("stats")
        write_model_card(session, name, model, training, side, Path(result["model"]), stats)
        result["bad_rows"] = [{"file": name, "line": None, **bad_row} for bad_row in result["bad_rows"]]
        session.tolerate(result["bad_rows"])
        return result, {**stats, "bad_rows": len(result["bad_rows"])}

    return session.stage(name, "train", {**inputs, "seed": session.recipe.seed, **marks}, work)


def _reading(side: Teacher | Student, folder: str, encoder: bool) -> PromptEncoder:
    from raykd.data.prompts import PromptEncoder

    labels = tuple(side.labels) if side.labels else None
    return PromptEncoder(folder, side.prompt, tuple(prompt_shots(side)), encoder, side.task, labels)


def _row(example: Example) -> dict[str, Any]:
    """A line of a training's rows: what is learnt, and where it is from."""
    row: dict[str, Any] = {"id": example.id, "input": example.input, "target": example.target}
    if example.weight != 1:
        row["weight"] = example.weight
    return row | ({"pseudo_target": True, **asdict(example.lineage)} if example.lineage else {})


def _steps(training: Training, given: list[Example] | tuple[StoredSource, ...]) -> int | None:
    """Steps of so many epochs, guessed from characters: for a bar's length only."""
    if not isinstance(given, list):
        return None
    characters = sum(len(e.input) + len(e.target or "") for e in given)
    return max(1, math.ceil((training.epochs or 1) * characters / 3 / training.batch_tokens))
