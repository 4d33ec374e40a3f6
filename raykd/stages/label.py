"""TODO: docstring."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raykd.data import prompts
from raykd.data.examples import (
    Example,
)
from raykd.errors import RunError
from raykd.models.files import content_hash, head_sizes, model_folder, parameter_count
from raykd.recipe.generation import AutoPayload, EndpointEngine, Payload, Price, TextPayload
from raykd.recipe.losses import WITHOUT_TEACHER
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.training import StoredOutputs
from raykd.run import remote
from raykd.run.files import fingerprint, write_json
from raykd.run.folder import Run
from raykd.run.manifests import read_manifest

if TYPE_CHECKING:
    from raykd.cluster import generate
    from raykd.store.store import Store

from raykd.run.session import await_resources, connect
from raykd.stages.labelling import PASS, SPENT, Labelling
from raykd.stages.prompts import in_chunk_order, missing_samples, prompt_parts, rejected_rows, write_prompts
from raykd.stages.rows import file_digest


def label_inputs(
    run: Run,
    name: str,
    model: str,
    side: Teacher | Student,
    sources: Sequence[Path | list[Example]],
    score: bool = False,
    begun: Callable[[Labelling], None] = lambda labels: None,
    payload: Payload | None = None,
    again: bool = False,
) -> Labelling:
    """Ask a model for its answers to the inputs of every source, and keep them in the store.

    `payload` is what to record beside texts; default: as `_payload` has it. `begun` is called as soon as there are
    prompts and a store, before the first answer: a student may follow.

    Only what the store does not hold is asked of the engine. A source is a file of examples, or a list. An input the
    model refused is a bad row, unless it is asked `again`. With `score` the model writes nothing: it reads the targets
    of the examples, and what is kept is their log-probabilities and payload.
    """
    folder = Path(model) if isinstance(side.engine, EndpointEngine) else model_folder(model)
    payload, why = (payload, "the method needs it") if payload else _payload(run, side, folder)
    n = 1 if score else side.sampling.n
    sampled = {"sampling": side.sampling.model_dump(mode="json", exclude={"n"})}
    parts = {
        "model": f"{model} at {side.engine.url}" if isinstance(side.engine, EndpointEngine) else content_hash(folder),
        "prompt": prompt_parts(side),
        "engine": side.engine.kind,
        **({"scored": True} if score else sampled),
        **({"seed": run.recipe.seed} if side.sampling.temperature and not score else {}),
    }

    def labels(store: str) -> Labelling:
        chunk, mark = side.shard_rows, fingerprint(inputs)
        return Labelling(run.path / name / "prompts.parquet", store, n, mark, payload, chunk, run.recipe.seed)

    def work(stage: Path) -> tuple[dict, dict]:
        from raykd.store.store import Store

        store = Store.open(run.stores, parts, payload, side.store if isinstance(side, Teacher) else None)
        with tempfile.TemporaryFile(dir=stage) as keys:
            count = write_prompts(run, name, stage / "prompts.parquet", keys, side, folder, sources, score)
            todo, reused = missing_samples(store, keys, count, n)
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
        failed = rejected_rows(name, stage / "prompts.parquet", refused)
        bad = [] if again else failed
        run.tolerate(bad)
        return {"store": store.path, "bad_rows": bad}, {**stats, **took, "failed_rows": len(failed)}

    rows = [
        file_digest(s)
        if isinstance(s, Path)
        else fingerprint([[e.id, e.input, e.target if score else None] for e in s])
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
    if not isinstance(training.teacher, StoredOutputs):
        return TextPayload(kind="text"), f"training.teacher is {training.teacher.kind}, so nothing else is read from it"
    from raykd.store.payloads import choose_payload

    taught = {name: loss for name, loss in training.losses.items() if name not in WITHOUT_TEACHER}
    drawn = all(name == "soft_cross_entropy" and loss.temperature == 1 for name, loss in taught.items())
    return choose_payload(*head_sizes(folder), parameter_count(run.recipe.student.model), drawn)


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
    connect(run)
    from raykd.cluster import counters, generate
    from raykd.engines.engine import EngineConfig

    counters.add("rows_reused", reused, run.recipe.name, name)

    cluster = run.recipe.cluster
    actors = cluster.teacher if isinstance(side, Teacher) else cluster.labelling_students
    opening = EngineConfig(
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
    ordered = [(in_chunk_order(rows, shard, run.recipe.seed), samples) for rows, samples in todo]
    pieces = [piece for rows, samples in ordered for piece in generate.pieces(rows, samples, shard, most)]
    await_resources(run, name, actors.resources, max(1, actors.bounds()[0]))
    begun = time.monotonic()
    with run.console.bar(name, count, "rows") as update:

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
