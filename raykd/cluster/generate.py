"""A labelling pass on Ray Data: prompts stream through engine actors, which write shards into a store."""

from __future__ import annotations

import hashlib
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from raykd.cluster import counters, resources
from raykd.data.examples import batched
from raykd.engines.engine import Engine, EngineConfig, PseudoTarget, Rejected, open_engine
from raykd.errors import EngineDead, EngineError
from raykd.recipe.cluster import Actors
from raykd.recipe.generation import EndpointEngine, VllmEngine
from raykd.run import remote
from raykd.store.schema import shard_table
from raykd.store.store import Store
from raykd.store.write import write_shard

SMALLEST = 8  # the last shards of a pass with several replicas have an eighth of the rows of a whole one
COUNTED = {"rows_labelled": "rows", "tokens_generated": "output_tokens", "engine_deaths": "engine_deaths"}
MOST_CALLS = 32  # shards that an engine works on at the same time
MOST_BLOCKS = 256  # tasks of a pass: each costs the driver some 57 kB in Ray Data, as long as the pass runs


@dataclass(frozen=True)
class LabellingPass:
    """A pass: an engine on some actors that labels prompts into a store.

    prompts     the parquet file; its columns key, prompt and target are read
    run, stage  names of the run and its stage, for dashboards
    """

    prompts: str
    engine: EngineConfig
    store: Store
    actors: Actors
    run: str
    stage: str


@dataclass(frozen=True)
class Piece:
    """Rows of the prompts' file, and the samples to write: one call of the engine, whose result is one shard."""

    rows: np.ndarray  # (N,) int64
    samples: range

    def __len__(self) -> int:
        """The number of sequences that the engine writes for it."""
        return len(self.rows) * len(self.samples)


@dataclass
class Progress:
    """The counts of a pass so far. Rows are prompts."""

    rows: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    engine_deaths: int = 0
    began: float = math.inf  # when the first engine call started, Unix time
    ended: float = 0.0  # when the last shard landed
    rejected: dict[bytes, str] = field(default_factory=dict)  # key -> reason


class Prompts(NamedTuple):
    """Some rows of a prompts' file; a target is None if the model has to write it."""

    keys: list[bytes]
    prompts: list[str]
    targets: list[str | None]


def cut_pieces(rows: np.ndarray, samples: range, shard_rows: int, replicas: int) -> Iterator[Piece]:
    """Consecutive rows in pieces of `shard_rows`.

    With several replicas the pieces shrink towards the end, so that no replica works on a long piece while the others
    have no work left (guided self-scheduling, Polychronopoulos and Kuck 1987).
    """
    at = 0
    while at < len(rows):
        size = shard_rows
        if replicas > 1:
            share = math.ceil((len(rows) - at) / (2 * replicas))
            size = min(shard_rows, max(share, shard_rows // SMALLEST, 1))
        yield Piece(rows[at : at + size], samples)
        at += size


def label_pieces(labelling_pass: LabellingPass, pieces: list[Piece], on_shard: Callable[[Progress], None]) -> Progress:
    """Label pieces, and write their pseudo-targets into the store; returns the counts of the pass.

    A prompt whose target is in the file is scored with this target, and nothing is generated. `on_shard` is called with
    the progress so far when a block of pieces is done. Raises EngineError if an engine cannot be opened or dies too
    often; shards that were written before stay.
    """
    run, stage = labelling_pass.run, labelling_pass.stage
    progress = Progress()
    try:
        for block in _stream(labelling_pass, pieces).iter_rows():
            progress.rows += block["rows"]
            progress.prompt_tokens += block["prompt_tokens"]
            progress.output_tokens += block["output_tokens"]
            progress.engine_deaths += block["engine_deaths"]
            progress.began = min(progress.began, block["began"])
            progress.ended = max(progress.ended, block["ended"])
            progress.rejected |= dict(zip(block["rejected_keys"], block["reasons"], strict=True))
            for counter, column in COUNTED.items():
                counters.add(counter, block[column], run, stage)
            on_shard(progress)
    except (RayError, RuntimeError) as error:
        raise EngineError(f"labelling stopped: {_cause(error)}") from error
    return progress


def _stream(labelling_pass: LabellingPass, pieces: list[Piece]) -> ray.data.Dataset:
    """A Ray data set whose iteration labels the pieces; it has a row of figures for each block of pieces."""
    actors = labelling_pass.actors
    least, most = actors.bounds()
    per_block = math.ceil(len(pieces) / max(MOST_BLOCKS, 8 * most))
    blocks = [_block(block_pieces) for block_pieces in batched(pieces, per_block)]
    calls = _calls(labelling_pass.engine, max(map(len, pieces)))
    with warnings.catch_warnings():  # Ray has no other way yet to bound the restarts of an actor
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return ray.data.from_arrow(blocks).map_batches(
            # the dashboard's name of the actors is the class's
            type(f"Label {labelling_pass.stage}", (_Labeller,), {"__module__": "__main__"}),
            fn_constructor_args=(labelling_pass,),
            batch_size=per_block,  # a block at once
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=min(max(1, least), len(blocks)),
                max_size=min(most, len(blocks)),
                max_tasks_in_flight_per_actor=calls + 1,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=actors.resources.get("CPU", 0),
            num_gpus=actors.resources.get("GPU", 0),
            resources={k: v for k, v in actors.resources.items() if k not in ("CPU", "GPU")} or None,
            max_restarts=actors.max_failures,
            max_task_retries=-1,  # many tries fail on a dying node; max_restarts limits the deaths
        )


class _Labeller:
    """The actor: an engine that works on several pieces at the same time, and the store to which it writes them."""

    def __init__(self, labelling_pass: LabellingPass):
        self.labelling_pass, self.config = labelling_pass, labelling_pass.engine
        self.busy = counters.Busy(labelling_pass.run, labelling_pass.stage)
        remote.fetch(labelling_pass.prompts, self.config.model)
        self.lock = threading.Lock()
        self.deaths = 0
        self.reported = {"prompt_tokens": 0, "output_tokens": 0, "engine_deaths": 0}
        self.dead_tokens = {"prompt_tokens": 0, "output_tokens": 0}  # of engines that died
        self.engine: Engine = open_engine(self.config)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Label the pieces of a block, one after the other, and write them; returns a row of figures."""
        began, count = time.time(), 0
        rejected: list[tuple[bytes, str]] = []
        with self.busy:
            for rows, (start, stop) in zip(block["rows"], block["samples"].to_pylist(), strict=True):
                rejected += self._land(np.asarray(rows.values), range(start, stop))
                count += len(rows)
        return pa.table(
            {
                "rows": [count],
                "began": [began],
                "ended": [time.time()],
                **{name: [count] for name, count in self._new_counts().items()},
                "rejected_keys": pa.array([[key for key, _ in rejected]], pa.list_(pa.binary())),
                "reasons": pa.array([[reason for _, reason in rejected]], pa.list_(pa.string())),
            }
        )

    def _land(self, rows: np.ndarray, samples: range) -> list[tuple[bytes, str]]:
        """Label a piece and write its shard; returns (key, reason) of each prompt that the engine rejected."""
        prompts = read_prompts(self.labelling_pass.prompts, rows)
        keys: list[bytes] = []
        pseudo_targets: list[list[PseudoTarget]] = []
        rejected: list[tuple[bytes, str]] = []
        for key, result in zip(prompts.keys, self._pseudo_targets(prompts, samples), strict=True):
            if isinstance(result, Rejected):
                rejected.append((key, result.reason))
            else:
                keys.append(key)
                pseudo_targets.append(result)
        if keys:
            write_shard(self.labelling_pass.store, shard_table(keys, samples, pseudo_targets, self.config.payload))
        return rejected

    def _pseudo_targets(self, prompts: Prompts, samples: range) -> list[list[PseudoTarget] | Rejected]:
        """For each prompt its samples, or the scored target; a dead engine is replaced."""
        targets = [target for target in prompts.targets if target is not None]
        seeds = [_seed(self.config.seed, key) for key in prompts.keys] if self.config.sampling.seeded else None
        while True:
            engine = self.engine
            try:
                if not targets:
                    return engine.generate(prompts.prompts, samples, seeds)
                scored = engine.score(prompts.prompts, targets)
                return [result if isinstance(result, Rejected) else [result] for result in scored]
            except EngineDead as error:
                self._open_again(engine, error)

    def _open_again(self, dead: Engine, error: EngineDead) -> None:
        """Replace a dead engine by a new one, unless another call has done so already."""
        with self.lock:
            if self.engine is not dead:
                return
            self.deaths += 1
            most = self.labelling_pass.actors.max_failures
            if self.deaths > most:
                raise EngineError(f"{error} ({self.deaths} times, {most} tolerated)")
            for name in self.dead_tokens:
                self.dead_tokens[name] += getattr(dead, name)
            dead.close()
            self.engine = open_engine(self.config)

    def _new_counts(self) -> dict[str, int]:
        """The counts since the last call."""
        with self.lock:
            totals = {name: count + getattr(self.engine, name) for name, count in self.dead_tokens.items()}
            totals["engine_deaths"] = self.deaths
            new_counts = {name: count - self.reported[name] for name, count in totals.items()}
            self.reported = totals
        return new_counts


def _block(pieces: list[Piece]) -> pa.Table:
    """A table with a row for each piece."""
    rows = pa.array([piece.rows for piece in pieces], pa.list_(pa.int64()))
    return pa.table({"rows": rows, "samples": [[piece.samples.start, piece.samples.stop] for piece in pieces]})


def _calls(config: EngineConfig, sequences: int) -> int:
    """How many pieces, each of `sequences`, an engine should have at once so that it is never idle."""
    if isinstance(config.engine, VllmEngine):
        batch = config.engine.arguments.get("max_num_seqs") or 256
    elif isinstance(config.engine, EndpointEngine):
        batch = config.engine.concurrency
    else:
        return 2  # one is worked on while another is read or written
    return min(MOST_CALLS, 2 + math.ceil(2 * batch / sequences))


def read_prompts(path: str, rows: np.ndarray) -> Prompts:
    """These rows of a prompts' file; only their row groups are read."""
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.unique(np.searchsorted(ends, rows, side="right"))
        table = file.read_row_groups(groups.tolist(), columns=["key", "prompt", "target"])
        starts = (ends - sizes)[groups]
        before = np.concatenate([[0], np.cumsum(np.asarray(sizes)[groups])[:-1]])
        at = np.searchsorted(groups, np.searchsorted(ends, rows, side="right"))
        table = table.take(rows - starts[at] + before[at])
    return Prompts(*(table[name].to_pylist() for name in ("key", "prompt", "target")))


def _seed(seed: int, key: bytes) -> int:
    """The seed of a prompt's samples, from the run's seed and the prompt alone."""
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8, "big", signed=True) + key).digest()[:4], "big")


def _cause(error: BaseException) -> str:
    """The message of raykd's own error in the actor, else the last line of Ray's message, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    messages = [line.partition(": ")[2] for line in lines if line.startswith("raykd.errors.")]
    return messages[-1] if messages else lines[-1]


def share(actors: Actors, passes: int) -> int:
    """CPU threads of each engine while `passes` passes run at the same time."""
    return resources.threads(actors.threads, actors.bounds()[1] * passes)
