"""The stage `label`: a model writes pseudo-targets for inputs, and a store keeps them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raykd.data import prompts
from raykd.data.examples import Example
from raykd.data.sources import StoredSource
from raykd.engines.engine import EngineConfig
from raykd.errors import RunError
from raykd.models.files import content_hash, head_sizes, model_folder, parameter_count
from raykd.recipe.cluster import Actors
from raykd.recipe.generation import AutoPayload, EndpointEngine, Payload, Price, TextPayload
from raykd.recipe.losses import SoftCrossEntropy
from raykd.recipe.names import code_digests
from raykd.recipe.roles import Student, Teacher
from raykd.run import remote
from raykd.run.files import fingerprint, write_json
from raykd.run.manifests import read_manifest
from raykd.run.session import Session
from raykd.stages.labelling import LabellingRequest
from raykd.stages.prompts import Missing, in_chunk_order, missing_samples, prompt_parts, rejected_rows, write_prompts
from raykd.stages.rows import file_digest
from raykd.store.follow import PASS
from raykd.store.open import open_store
from raykd.store.payloads import choose_payload
from raykd.store.store import Store

if TYPE_CHECKING:
    from raykd.cluster import generate

USAGE = "spent.json"  # beside a labelling's prompts: its Usage


class RecordedPayload(NamedTuple):
    """The payload that a store keeps beside texts, and the reason for it in one sentence."""

    payload: Payload
    reason: str


@dataclass(frozen=True)
class Usage:
    """Counts of a labelling, summed over all its starts. Rows are prompts; seconds exclude the start of engines."""

    rows: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0

    def plus(self, progress: generate.Progress) -> Usage:
        """The sum of this usage and the progress of one pass."""
        return Usage(
            rows=self.rows + progress.rows,
            prompt_tokens=self.prompt_tokens + progress.prompt_tokens,
            output_tokens=self.output_tokens + progress.output_tokens,
            seconds=self.seconds + max(0.0, progress.ended - progress.began),
        )


@dataclass(frozen=True)
class _Plan:
    """A labelling with everything decided: the request, and what is derived from it and the recipe."""

    request: LabellingRequest
    folder: Path  # the model's folder; for an endpoint the model's name
    parts: dict[str, Any]  # the settings that, with the payload, give a store its name
    samples: int
    recorded: RecordedPayload

    @property
    def endpoint(self) -> bool:
        """Whether the model is behind an endpoint, and has no folder."""
        return isinstance(self.request.role.engine, EndpointEngine)


def label_inputs(
    session: Session, request: LabellingRequest, on_start: Callable[[StoredSource], None] = lambda stored: None
) -> StoredSource:
    """Let a model write pseudo-targets for the inputs of every source, and keep them in a store.

    The model only writes the samples that the store does not hold yet. Returns the prompts of all sources and their
    store, with the payload that was requested. `on_start` is called with the same value as soon as the prompts are
    written and the store is open, before the first pseudo-target, so that a student can follow the labelling.

    Raises StoreError if the teacher's `store` holds other pseudo-targets or a shard is damaged, EngineError if the
    engine cannot be opened or dies too often, DataError for more bad rows than data.max_bad_rows allows, RunError if
    the stage is complete with other inputs.
    """
    plan = _plan(session, request)
    inputs = {
        **plan.parts,
        "n": plan.samples,
        "payload": plan.recorded.payload.model_dump(mode="json"),
        "rows": {name: _digest(source, request.score) for name, source in request.sources.items()},
    }
    stored = StoredSource(
        prompts=str(session.path / request.name / "prompts.parquet"),
        store="",  # known once it is open
        sources=tuple(request.sources),
        samples=plan.samples,
        chunk=request.role.shard_rows,
        seed=session.recipe.seed,
        payload=plan.recorded.payload,
        mark=fingerprint(inputs),
    )

    def work(stage: Path) -> tuple[dict, dict]:
        return _label(session, plan, stage, lambda store: on_start(replace(stored, store=store.path)))

    results = session.stage(request.name, "label", inputs, work, request.about)
    return replace(stored, store=results["store"])


def _plan(session: Session, request: LabellingRequest) -> _Plan:
    role = request.role
    endpoint = role.engine if isinstance(role.engine, EndpointEngine) else None
    folder = Path(request.model) if endpoint else model_folder(request.model)
    parts = {
        "model": f"{request.model} at {endpoint.url}" if endpoint else content_hash(folder),
        **decoding_parts(role, session.recipe.seed, request.score),
        **code_digests(role.engine, session.recipe.modules),
    }
    recorded = (
        RecordedPayload(request.payload, request.payload_reason)
        if request.payload
        else recorded_payload(session, role, folder)
    )
    return _Plan(request, folder, parts, samples=1 if request.score else role.sampling.n, recorded=recorded)


def decoding_parts(role: Teacher | Student, seed: int, score: bool = False) -> dict[str, Any]:
    """What, beside the model, decides the pseudo-targets of a store, as JSON values. `score`: targets are scored."""
    sampling = {"sampling": role.sampling.model_dump(mode="json", exclude={"n"})}
    return {
        "prompt": prompt_parts(role),
        "engine": role.engine.kind,
        **({"scored": True} if score else sampling),
        **({"seed": seed} if role.sampling.temperature and not score else {}),
    }


def _digest(source: Path | list[Example], score: bool) -> str:
    """A hash of the part of a source's content that decides pseudo-targets."""
    if isinstance(source, Path):
        return file_digest(source)
    return fingerprint([[e.id, e.input, e.target if score else None] for e in source])


def recorded_payload(session: Session, role: Teacher | Student, folder: Path) -> RecordedPayload:
    """The payload if the method requires none: the recipe's, or for kind auto the one that its losses need.

    `folder` is the model's folder.
    """
    if isinstance(role, Student):
        return RecordedPayload(
            TextPayload(kind="text", logprobs=False), "a student's pseudo-targets are learnt as texts"
        )
    if not isinstance(role.payload, AutoPayload):
        return RecordedPayload(role.payload, "the recipe says so")
    training = session.recipe.student.training
    if not training.needs_teacher():
        return RecordedPayload(TextPayload(kind="text"), f"{' and '.join(training.losses)} learns texts")
    if not training.reads_store():
        reason = f"training.teacher is {training.outputs_for(False).kind}, so nothing else is read from it"
        return RecordedPayload(TextPayload(kind="text"), reason)
    losses = [loss for loss in training.losses.values() if loss.reads_teacher()]
    draws_serve = all(isinstance(loss, SoftCrossEntropy) and loss.temperature == 1 for loss in losses)
    sizes = *head_sizes(folder), parameter_count(session.recipe.student.model)
    return RecordedPayload(*choose_payload(*sizes, draws_serve))


def _label(session: Session, plan: _Plan, stage: Path, on_start: Callable[[Store], None]) -> tuple[dict, dict]:
    """The stage's work: prompts, then the pseudo-targets that are missing. Returns the stage's results and stats."""
    request, prompts_file = plan.request, stage / "prompts.parquet"
    role = request.role
    store = open_store(
        session.stores, plan.parts, plan.recorded.payload, role.store if isinstance(role, Teacher) else None
    )
    with tempfile.TemporaryFile(dir=stage) as keys:
        count = write_prompts(session, request, plan.folder, prompts_file, keys)
        missing = missing_samples(store, keys, count, plan.samples)
    remote.send(stage)
    with _pass_file(stage / PASS) as note_rejected:
        if missing.parts:
            store.begin()
        on_start(store)
        figures, rejected = _generate(session, plan, store, stage, missing, note_rejected)
    store.close()
    failed = rejected_rows(request.name, prompts_file, rejected)
    bad_rows = failed if request.rejected_are_bad else []
    session.tolerate(bad_rows)
    stats = {
        "rows": count,
        "samples": plan.samples,
        "reused_rows": missing.complete,
        "engine": role.engine.kind,
        "model": str(plan.folder),
        "payload": store.payload.model_dump(mode="json"),
        "payload_why": plan.recorded.reason,
        **figures,
        "failed_rows": len(failed),
    }
    return {"store": store.path, "bad_rows": bad_rows}, stats


@contextmanager
def _pass_file(path: Path) -> Iterator[Callable[[dict[bytes, str]], None]]:
    """Write the file PASS for readers that follow: the keys that the model rejected, and whether the labelling failed.

    Yields a function that takes all keys rejected so far, with their reasons.
    """
    rejected_keys: list[str] = []

    def write(failed: str | None) -> None:
        write_json(path, {"refused": rejected_keys, "failed": failed})
        with suppress(RunError):  # without the file, readers only wait a little longer
            remote.send(path)

    def note_rejected(rejected: dict[bytes, str]) -> None:
        if len(rejected) > len(rejected_keys):
            rejected_keys[:] = [key.hex() for key in rejected]
            write(None)

    write(None)
    try:
        yield note_rejected
    except BaseException as error:
        write(str(error) or type(error).__name__)
        raise


def _generate(
    session: Session,
    plan: _Plan,
    store: Store,
    stage: Path,
    missing: Missing,
    note_rejected: Callable[[dict[bytes, str]], None],
) -> tuple[dict[str, Any], dict[bytes, str]]:
    """Let the engine write the missing samples. Returns figures for the stats, and rejected keys with their reasons."""
    request, role, usage_file = plan.request, plan.request.role, stage / USAGE
    before = _read_usage(usage_file)
    if not missing.parts:
        return _figures(role, before, 0), {}
    session.connect()
    from raykd.cluster import counters, generate

    counters.add("rows_reused", missing.complete, session.recipe.name, request.name)
    actors = _actors(session, role)
    labelling_pass = generate.LabellingPass(
        prompts=str(stage / "prompts.parquet"),
        engine=_engine_config(session, plan, store, generate.share(actors, session.passes)),
        store=store,
        actors=actors,
        run=session.recipe.name,
        stage=request.name,
    )
    least, most = actors.bounds()
    pieces = [
        piece
        for rows, samples in missing.parts
        for piece in generate.cut_pieces(
            in_chunk_order(rows, role.shard_rows, session.recipe.seed), samples, role.shard_rows, most
        )
    ]
    session.await_resources(request.name, actors.resources, max(1, least))
    started = time.monotonic()
    with session.console.bar(request.name, missing.count(), "rows") as update:

        def on_shard(progress: generate.Progress) -> None:
            update(progress.rows, f"{progress.output_tokens / (time.monotonic() - started):.0f} tokens/s")
            write_json(usage_file, asdict(before.plus(progress)))
            if plan.endpoint:
                remote.send(usage_file)
            note_rejected(progress.rejected)

        progress = generate.label_pieces(labelling_pass, pieces, on_shard)
    figures = _figures(role, before.plus(progress), progress.rows - len(progress.rejected))
    figures |= {
        "engine_deaths": progress.engine_deaths,
        "replicas": actors.replicas,
        "threads": labelling_pass.engine.threads,
    }
    return figures, progress.rejected


def _actors(session: Session, role: Teacher | Student) -> Actors:
    cluster = session.recipe.cluster
    return cluster.teacher if isinstance(role, Teacher) else cluster.labelling_students


def _engine_config(session: Session, plan: _Plan, store: Store, threads: int) -> EngineConfig:
    role, seed = plan.request.role, session.recipe.seed
    return EngineConfig(
        engine=role.engine,
        model=plan.request.model if plan.endpoint else str(plan.folder),
        sampling=role.sampling,
        # a pass that is resumed needs another seed, so that it does not draw the same samples again
        seed=int(fingerprint([seed, len(store.shards())])[:8], 16) if role.sampling.temperature else seed,
        threads=threads,
        payload=store.payload,  # perhaps richer than the requested one
        special_tokens=prompts.special_tokens(role.prompt),
        hang_seconds=_actors(session, role).hang_minutes * 60,
    )


def _read_usage(path: Path) -> Usage:
    """The usage of a labelling's earlier starts; zeros if there are none."""
    return Usage(**read_manifest(path)) if path.exists() else Usage()


def _figures(role: Teacher | Student, usage: Usage, new_rows: int) -> dict[str, Any]:
    """A labelling's figures for its manifest; `new_rows` are prompts that this start labelled."""
    figures = {
        "new_rows": new_rows,
        "prompt_tokens": usage.prompt_tokens,
        "output_tokens": usage.output_tokens,
        "seconds": usage.seconds,
    }
    if isinstance(role.engine, EndpointEngine):
        price = role.engine.price or Price(prompt=0, output=0)
        cost = (usage.prompt_tokens * price.prompt + usage.output_tokens * price.output) / 1e6
        figures |= {"endpoint_rows": usage.rows, "endpoint_cost": cost}
    return figures | {"tokens_per_second": usage.output_tokens / max(usage.seconds, 1e-9)}
