"""Label on Ray Data: prompts stream through engine actors, which land shards in a store."""

from __future__ import annotations

import hashlib
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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

SMALLEST = 8  # the last shards of a pass with several replicas have an eighth of the rows of a whole one
COUNTED = {"rows_labelled": "rows", "tokens_generated": "output_tokens", "engine_deaths": "engine_deaths"}
MOST_CALLS = 32  # shards that an engine works on at the same time
MOST_BLOCKS = 256  # tasks of a pass: each costs the driver some 57 kB in Ray Data, as long as the pass runs


@dataclass(frozen=True)
class Piece:
    """What is asked of an engine at once, and lands as one shard: rows of the prompts' file, and which samples."""

    rows: np.ndarray  # (N,) int64, rising
    samples: range


@dataclass
class Done:
    """What a pass has done so far. Rows are prompts."""

    rows: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    engine_deaths: int = 0
    began: float = math.inf  # when an engine was first asked, Unix time
    ended: float = 0.0  # when the last shard landed
    refused: dict[bytes, str] = field(default_factory=dict)  # key -> reason


def pieces(rows: np.ndarray, samples: range, shard_rows: int, replicas: int) -> Iterator[Piece]:
    """Consecutive rows in pieces of `shard_rows`.

    With several replicas the pieces shrink towards the end, so that none works on a long one while the others have
    nothing left (guided self-scheduling, Polychronopoulos and Kuck 1987).
    """
    at = 0
    while at < len(rows):
        size = shard_rows
        if replicas > 1:
            share = math.ceil((len(rows) - at) / (2 * replicas))
            size = min(shard_rows, max(share, shard_rows // SMALLEST, 1))
        yield Piece(rows[at : at + size], samples)
        at += size


def label(
    prompts: str,
    todo: list[Piece],
    opening: EngineConfig,
    store: Store,
    actors: Actors,
    landed: Callable[[Done], None],
    run: str,
    name: str,
) -> Done:
    """Answer pieces of the parquet file `prompts` (key, prompt, target) and land the answers in the store.

    Where a target is given, it is read as the answer instead of one being written.

    `run` and the stage's `name` are what the dashboards show. `landed` is called with the sum so far as each shard
    lands. Raises EngineError where an engine cannot be opened or
    dies for good; shards that landed before stay.
    """
    least, most = actors.bounds()
    per_block = math.ceil(len(todo) / max(MOST_BLOCKS, 8 * most))
    blocks = [_block(some) for some in batched(todo, per_block)]
    calls = _calls(opening, max(len(piece.rows) * len(piece.samples) for piece in todo))
    with warnings.catch_warnings():  # Ray has no other way yet to bound the restarts of an actor
        warnings.simplefilter("ignore", RayDeprecationWarning)
        stream = ray.data.from_arrow(blocks).map_batches(
            # the dashboard's name of the actors is the class's
            type(f"Label {name}", (_Labeller,), {"__module__": "__main__"}),
            fn_constructor_args=(opening, store, prompts, actors.max_failures, run, name),
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
            max_task_retries=-1,  # of a node that is just dying many tries fail; its deaths are bounded above
        )
    done = Done()
    try:
        for row in stream.iter_rows():
            done.rows += row["rows"]
            done.prompt_tokens += row["prompt_tokens"]
            done.output_tokens += row["output_tokens"]
            done.engine_deaths += row["engine_deaths"]
            done.began, done.ended = min(done.began, row["began"]), max(done.ended, row["ended"])
            done.refused |= dict(zip(row["refused_keys"], row["reasons"], strict=True))
            for counted, column in COUNTED.items():
                counters.add(counted, row[column], run, name)
            landed(done)
    except (RayError, RuntimeError) as error:
        raise EngineError(f"labelling stopped: {_cause(error)}") from error
    return done


class _Labeller:
    """The actor: an engine that answers several pieces at the same time, and a store to land in."""

    def __init__(self, opening: EngineConfig, store: Store, prompts: str, max_failures: int, run: str, name: str):
        self.opening, self.store, self.prompts, self.max_failures = opening, store, prompts, max_failures
        self.busy = counters.Busy(run, name)
        remote.fetch(prompts, opening.model)
        self.lock = threading.Lock()
        self.deaths = 0
        self.told = {"prompt_tokens": 0, "output_tokens": 0, "engine_deaths": 0}
        self.gone = {"prompt_tokens": 0, "output_tokens": 0}  # tokens of engines that died
        self.engine: Engine = open_engine(opening)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Answer and land the pieces of a block, one after the other; returns a row with what that took."""
        began, count = time.time(), 0
        refused: list[tuple[bytes, str]] = []
        with self.busy:
            for rows, (start, stop) in zip(block["rows"], block["samples"].to_pylist(), strict=True):
                refused += self._land(np.asarray(rows.values), range(start, stop))
                count += len(rows)
        return pa.table(
            {
                "rows": [count],
                "began": [began],
                "ended": [time.time()],
                **{name: [count] for name, count in self._news().items()},
                "refused_keys": pa.array([[k for k, _ in refused]], pa.list_(pa.binary())),
                "reasons": pa.array([[r for _, r in refused]], pa.list_(pa.string())),
            }
        )

    def _land(self, rows: np.ndarray, samples: range) -> list[tuple[bytes, str]]:
        """Answer a piece and land it; returns keys and reasons of what the engine refused."""
        keys, prompts, targets = _read(self.prompts, rows)
        answers = self._answers(keys, prompts, targets, samples)
        good = [(k, a) for k, a in zip(keys, answers, strict=True) if not isinstance(a, Rejected)]
        if good:
            self.store.write(shard_table([k for k, _ in good], samples, [a for _, a in good], self.opening.payload))
        return [(k, a.reason) for k, a in zip(keys, answers, strict=True) if isinstance(a, Rejected)]

    def _answers(
        self, keys: list[bytes], prompts: list[str], targets: list[str | None], samples: range
    ) -> list[list[PseudoTarget] | Rejected]:
        given = [target for target in targets if target is not None]
        seeds = [_seed(self.opening.seed, key) for key in keys] if self.opening.sampling.seeded else None
        while True:
            engine = self.engine
            try:
                if not given:
                    return engine.generate(prompts, samples, seeds)
                return [a if isinstance(a, Rejected) else [a] for a in engine.score(prompts, given)]
            except EngineDead as error:
                self._open_again(engine, error)

    def _open_again(self, dead: Engine, error: EngineDead) -> None:
        """Put a new engine in the place of a dead one; the first of several calls to notice does."""
        with self.lock:
            if self.engine is not dead:
                return
            self.deaths += 1
            if self.deaths > self.max_failures:
                raise EngineError(f"{error} ({self.deaths} times, {self.max_failures} tolerated)")
            for name in self.gone:
                self.gone[name] += getattr(dead, name)
            dead.close()
            self.engine = open_engine(self.opening)

    def _news(self) -> dict[str, int]:
        """What was counted since the last call."""
        with self.lock:
            now = {name: gone + getattr(self.engine, name) for name, gone in self.gone.items()}
            now["engine_deaths"] = self.deaths
            news = {name: count - self.told[name] for name, count in now.items()}
            self.told = now
        return news


def _block(some: list[Piece]) -> pa.Table:
    """A row for each piece."""
    rows = pa.array([piece.rows for piece in some], pa.list_(pa.int64()))
    return pa.table({"rows": rows, "samples": [[piece.samples.start, piece.samples.stop] for piece in some]})


def _calls(opening: EngineConfig, sequences: int) -> int:
    """Pieces of so many sequences that an engine should have at once, to be never idle."""
    if isinstance(opening.spec, VllmEngine):
        batch = opening.spec.arguments.get("max_num_seqs") or 256
    elif isinstance(opening.spec, EndpointEngine):
        batch = opening.spec.concurrency
    else:
        return 2  # one is worked on while another is read or written
    return min(MOST_CALLS, 2 + math.ceil(2 * batch / sequences))


def _read(path: str, rows: np.ndarray) -> tuple[list[bytes], list[str], list[str | None]]:
    """Keys, prompts and targets of these rows; only their row groups are read."""
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.unique(np.searchsorted(ends, rows, side="right"))
        found = file.read_row_groups(groups.tolist(), columns=["key", "prompt", "target"])
        starts = (ends - sizes)[groups]
        before = np.concatenate([[0], np.cumsum(np.asarray(sizes)[groups])[:-1]])
        at = np.searchsorted(groups, np.searchsorted(ends, rows, side="right"))
        found = found.take(rows - starts[at] + before[at])
    return found["key"].to_pylist(), found["prompt"].to_pylist(), found["target"].to_pylist()


def _seed(seed: int, key: bytes) -> int:
    """The seed of a prompt's samples, from the run's seed and the prompt alone."""
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8, "big", signed=True) + key).digest()[:4], "big")


def _cause(error: BaseException) -> str:
    """What raykd said of it in the actor, else the last line, which is where Ray puts what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    ours = [line.partition(": ")[2] for line in lines if line.startswith("raykd.errors.")]
    return ours[-1] if ours else lines[-1]


def share(actors: Actors, passes: int) -> int:
    """CPU threads of each engine while `passes` passes run at the same time."""
    return resources.threads(actors.threads, actors.bounds()[1] * passes)
