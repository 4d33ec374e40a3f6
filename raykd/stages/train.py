"""The stage `train`: models learn from examples or from a store of pseudo-targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raykd.data import pseudo_targets
from raykd.data.examples import Example
from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource, StoredSource
from raykd.data.splits import Splits
from raykd.models.files import content_hash, is_encoder_decoder, model_folder
from raykd.recipe.models import Checkpoint, EndpointModel, FromConfig, Model
from raykd.recipe.names import code_digests
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.training import Training
from raykd.run import remote
from raykd.run.files import fingerprint, write_text
from raykd.run.manifests import StageAbout
from raykd.run.session import EVERY_ARM, Session
from raykd.stages.labelling import read_as, read_pseudo_targets
from raykd.stages.prompts import prompt_parts, prompt_shots
from raykd.stages.publish import write_model_card
from raykd.stages.rows import file_digest, json_lines
from raykd.stages.tokenizer import shared_tokenizer
from raykd.training.job import MarkedSource, TrainingSpec

TrainingRows = list[Example] | tuple[StoredSource, ...]


def as_examples(rows: TrainingRows) -> list[Example]:
    """The rows of a training as examples; a labelling gives the pseudo-targets of its first source."""
    if isinstance(rows, list):
        return rows
    return [example for stored in rows for example in read_pseudo_targets(stored, stored.sources[0])]


def joined(parts: Iterable[TrainingRows]) -> TrainingRows:
    """The rows of several trainings in one: all examples if there are any, else the labellings of all parts."""
    parts = list(parts)
    examples = [example for part in parts if isinstance(part, list) for example in part]
    return examples or tuple(stored for part in parts if not isinstance(part, list) for stored in part)


@dataclass(frozen=True)
class NextStage:
    """A stage that begins as soon as its model is trained, while other models may still train.

    `start` is called with the model's folder.
    """

    name: str
    start: Callable[[str], Any]


@dataclass(frozen=True)
class TrainingData:
    """The data of one training, and what differs from the recipe's student.

    rows       examples, or the labellings whose pseudo-targets are learnt
    about      the arm, round and partition that the training belongs to
    training   the training section; None: that of the recipe's student
    dev        examples that select the checkpoint; None: a share of the rows is held out for it
    model      the model that training begins with; None: the role's
    weighting  how pseudo-targets are weighted, as in `recipe.Mckd.weighting`
    then       a stage that begins when the model is trained
    """

    rows: TrainingRows
    about: StageAbout = EVERY_ARM
    training: Training | None = None
    dev: list[Example] | None = None
    model: Model | None = None
    weighting: str | None = None
    then: NextStage | None = None


@dataclass(frozen=True)
class TrainedModel:
    """A trained model: its folder, its score on the dev rows (higher is better), and its arm."""

    folder: str
    score: float
    about: StageAbout


@dataclass(frozen=True)
class _Common:
    """The settings that all trainings of one `train_students` call share."""

    role: Teacher | Student
    tokenizer: str  # the folder of the tokenizer that models with random weights share
    teacher: str | None  # the teacher's folder
    threads: int  # CPU threads of each worker


@dataclass(frozen=True)
class _Plan:
    """One training with everything decided. `files` are examples by the name of the file that will hold them."""

    name: str
    rows: TrainingRows
    files: dict[str, list[Example]]
    marks: dict[str, str]  # fingerprints of the rows, and of the dev rows where there are any
    model: Model
    training: Training
    role: Teacher | Student
    tokenizer: str
    teacher: str | None
    threads: int


def train_students(
    session: Session,
    splits: Splits,
    trainings: Mapping[str, TrainingData],
    role: Teacher | Student | None = None,
    teacher: str | None = None,
) -> dict[str, TrainedModel]:
    """Run several trainings, at the same time as far as the cluster has room, else one after another.

    `trainings` maps names of stages to their data; the trained models are returned under the same names. `role` is the
    recipe's section of the models, None for the student's; `teacher` is the teacher's folder, for losses that need it.

    Raises TrainingError if a training cannot go on, DataError for more bad rows than data.max_bad_rows allows, and
    whatever the stages in `then` raise.
    """
    tokenizer = shared_tokenizer(session, splits)
    next_stages = [data.then.name for data in trainings.values() if data.then]
    at_once, threads = 1, 1
    if not all(map(session.folder.is_complete, [*trainings, *next_stages])):
        session.connect()
        from raykd.cluster.resources import trainings_at_once

        at_once, threads = trainings_at_once(session.recipe.cluster, 1 if session.fit else len(trainings))
    common = _Common(role or session.recipe.student, tokenizer, teacher, threads)
    labellings: list[Future] = []
    with session.labelling_passes(len(next_stages)) as passes, ThreadPoolExecutor(passes) as labellers:

        def train(name: str) -> TrainedModel:
            data = trainings[name]
            results = _train(session, _plan(session, name, data, common), data.about)
            if data.then:
                labellings.append(labellers.submit(data.then.start, results["model"]))
            return TrainedModel(results["model"], results["score"], data.about)

        with ThreadPoolExecutor(at_once) as trainers:
            models = dict(zip(trainings, trainers.map(train, trainings), strict=True))
        for labelling in labellings:
            labelling.result()
    return models


def _plan(session: Session, name: str, data: TrainingData, common: _Common) -> _Plan:
    model, training = data.model or common.role.model, data.training or session.recipe.student.training
    assert not isinstance(model, EndpointModel)  # the recipe refuses to train one
    rows, files = data.rows, {"dev": data.dev} if data.dev else {}
    if isinstance(rows, list):
        rows = files["rows"] = pseudo_targets.with_weights(rows, data.weighting)
    return _Plan(
        name=name,
        rows=rows,
        files=files,
        marks=_marks(rows, files),
        model=model,
        training=training,
        role=common.role,
        tokenizer=common.tokenizer if isinstance(model, FromConfig) else model.path,
        teacher=common.teacher if training.needs_teacher() else None,
        threads=common.threads,
    )


def _marks(rows: TrainingRows, files: dict[str, list[Example]]) -> dict[str, str]:
    marks = {
        name: fingerprint([[e.id, e.input, e.target, e.weight] for e in examples]) for name, examples in files.items()
    }
    if isinstance(rows, tuple):
        gold = [file_digest(Path(stored.gold)) if stored.gold else None for stored in rows]
        marks["rows"] = fingerprint(
            [[stored.mark, stored.samples, stored.sources, digest] for stored, digest in zip(rows, gold, strict=True)]
        )
    return marks


def _train(session: Session, plan: _Plan, about: StageAbout) -> dict[str, Any]:
    """Run the stage of one training; returns a `TrainingResult` without its stats."""
    inputs = {
        "model": plan.model.model_dump(mode="json"),
        "training": plan.training.model_dump(mode="json"),
        "prompt": prompt_parts(plan.role),
        "teacher": content_hash(model_folder(plan.teacher)) if plan.teacher else None,
        "seed": session.recipe.seed,
        **plan.marks,
        **code_digests(plan.training, session.recipe.modules),
    }

    def work(stage: Path) -> tuple[dict, dict]:
        from raykd.cluster.train import fit

        for name, examples in plan.files.items():
            write_text(stage / f"{name}.jsonl", json_lines(map(_line, examples)))
        remote.send(*(stage / f"{name}.jsonl" for name in plan.files))
        spec = _spec(session, plan, stage)
        workers = session.recipe.cluster.student
        session.await_resources(plan.name, workers.resources, workers.bounds()[0])
        with session.console.bar(plan.name, plan.training.max_steps or _estimated_steps(plan), "steps") as update:
            result = (session.fit or fit)(spec, session.recipe.cluster, update)
        write_model_card(session, spec, plan.role, Path(result["model"]), result["stats"])
        bad_rows = [{"file": plan.name, "line": None, **bad_row} for bad_row in result["bad_rows"]]
        session.tolerate(bad_rows)
        results = {name: value for name, value in result.items() if name != "stats"}
        return {**results, "bad_rows": bad_rows}, {**result["stats"], "bad_rows": len(bad_rows)}

    return session.stage(plan.name, "train", inputs, work, about)


def _spec(session: Session, plan: _Plan, stage: Path) -> TrainingSpec:
    """The spec that the workers get; it names files in the stage's folder."""
    recipe, writes = session.recipe, plan.role.task == "generation"
    if isinstance(plan.rows, list):
        source = FileSource(str(stage / "rows.jsonl"))
    else:
        source = tuple(read_as(stored, plan.training) for stored in plan.rows)
    return TrainingSpec(
        name=plan.name,
        run=recipe.name,
        model=plan.model,
        tokenizer=plan.tokenizer,
        training=plan.training,
        rows=MarkedSource(source, plan.marks["rows"]),
        dev=MarkedSource(FileSource(str(stage / "dev.jsonl")), plan.marks["dev"]) if "dev" in plan.files else None,
        student=prompt_encoder(plan.role, plan.tokenizer, writes and is_encoder_decoder(plan.model)),
        teacher=_teacher_encoder(recipe.teacher, plan.teacher) if plan.teacher else None,
        folder=str(stage),
        tokens=str(remote.folder(recipe.output) / "tokens"),
        seed=recipe.seed,
        threads=plan.threads,
        max_bad_rows=recipe.data.max_bad_rows,
        parallel=recipe.cluster.student.parallel,
        trackers=tuple(recipe.trackers),
    )


def _teacher_encoder(teacher: Teacher, folder: str) -> PromptEncoder:
    """How the teacher makes its prompts, which reads along or whose vocabulary is compared; `folder` is its model's."""
    model = Checkpoint(kind="checkpoint", path=folder)
    return prompt_encoder(teacher, folder, teacher.task == "generation" and is_encoder_decoder(model))


def prompt_encoder(role: Teacher | Student, tokenizer: str, encoder: bool) -> PromptEncoder:
    """How a role reads its prompts; `encoder`: its model is an encoder-decoder that writes."""
    return PromptEncoder(
        tokenizer=tokenizer,
        prompt=role.prompt,
        shots=tuple(prompt_shots(role)),
        encoder=encoder,
        task=role.task,
        labels=tuple(role.labels) if role.labels else None,
    )


def _line(example: Example) -> dict[str, Any]:
    """A line of the JSONL file of a training's rows: input and target, and for a pseudo-target its lineage."""
    line: dict[str, Any] = {"id": example.id, "input": example.input, "target": example.target}
    if example.weight != 1:
        line["weight"] = example.weight
    return line | ({"pseudo_target": True, **asdict(example.lineage)} if example.lineage else {})


def _estimated_steps(plan: _Plan) -> int | None:
    """The number of steps, estimated from characters, for the progress bar only; None for rows of a store."""
    if isinstance(plan.rows, tuple):
        return None
    characters = sum(len(e.input) + len(e.target or "") for e in plan.rows)
    return max(1, math.ceil((plan.training.epochs or 1) * characters / 3 / plan.training.batch_tokens))
