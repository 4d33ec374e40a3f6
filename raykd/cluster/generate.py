"""Label on Ray Data: prompts stream through engine actors, which land shards in a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray
from ray.exceptions import RayError

from raykd.cluster import resources
from raykd.engines import Answer, Opening, Refusal, open_engine
from raykd.errors import EngineError
from raykd.recipe import Actors
from raykd.store import SCHEMA, Store


@dataclass(frozen=True)
class Landed:
    """What one pass did."""

    rows: int
    prompt_tokens: int
    output_tokens: int
    refused: dict[str, str]  # key -> reason


class _Labeller:
    """The actor: an engine, and a store to land in."""

    def __init__(self, opening: Opening, store: Path):
        self.engine, self.store = open_engine(opening), Store(store)

    def __call__(self, block: pa.Table) -> pa.Table:
        keys, prompts = block["key"].to_pylist(), block["prompt"].to_pylist()
        before = (self.engine.prompt_tokens, self.engine.output_tokens)
        answers = self.engine.generate(prompts)
        rows = to_rows(keys, answers)
        if rows.num_rows:
            self.store.write(rows)
        refused = [(k, a.reason) for k, a in zip(keys, answers, strict=True) if isinstance(a, Refusal)]
        return pa.table(
            {
                "rows": [len(keys)],
                "prompt_tokens": [self.engine.prompt_tokens - before[0]],
                "output_tokens": [self.engine.output_tokens - before[1]],
                "refused_keys": pa.array([[k for k, _ in refused]], pa.list_(pa.string())),
                "reasons": pa.array([[r for _, r in refused]], pa.list_(pa.string())),
            }
        )


def to_rows(keys: list[str], answers: list[list[Answer] | Refusal]) -> pa.Table:
    """Rows of store.SCHEMA, one per sample of every prompt that was answered."""
    flat = [
        {"key": key, "sample": number, **sample._asdict()}
        for key, samples in zip(keys, answers, strict=True)
        if not isinstance(samples, Refusal)
        for number, sample in enumerate(samples)
    ]
    return pa.Table.from_pylist(flat, schema=SCHEMA)


def label(
    prompts: dict[str, str],
    opening: Opening,
    store: Store,
    shard_rows: int,
    actors: Actors,
    landed: Callable[[Landed], None],
) -> Landed:
    """Answer every prompt (key -> text) and land the answers; returns the sum of what the pass did.

    `landed` is called for each shard as it lands. Raises EngineError where the engine cannot be opened or dies for
    good; shards that landed before stay.
    """
    keys = list(prompts)
    blocks = [
        pa.table({"key": part, "prompt": [prompts[k] for k in part]})
        for part in (keys[i : i + shard_rows] for i in range(0, len(keys), shard_rows))
    ]
    replicas = min(actors.replicas, len(blocks))
    special = {k: v for k, v in actors.resources.items() if k not in ("CPU", "GPU")}
    stream = ray.data.from_arrow(blocks).map_batches(
        _Labeller,
        fn_constructor_args=(opening, store.path),
        batch_size=None,  # a block is a shard
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=replicas, max_tasks_in_flight_per_actor=2),
        num_cpus=actors.resources.get("CPU", 0),
        num_gpus=actors.resources.get("GPU", 0),
        resources=special or None,
    )
    done = Landed(0, 0, 0, {})
    try:
        for row in stream.iter_rows():
            refused = dict(zip(row["refused_keys"], row["reasons"], strict=True))
            one = Landed(row["rows"], row["prompt_tokens"], row["output_tokens"], refused)
            landed(one)
            done = Landed(
                done.rows + one.rows,
                done.prompt_tokens + one.prompt_tokens,
                done.output_tokens + one.output_tokens,
                {**done.refused, **one.refused},
            )
    except (RayError, RuntimeError) as error:
        raise EngineError(f"labelling stopped: {_cause(error)}") from error
    return done


def _cause(error: BaseException) -> str:
    """The last line of the innermost error, which is where Ray puts what happened."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def share(actors: Actors, passes: int) -> int:
    """CPU threads of each engine while `passes` passes run at the same time."""
    return resources.threads(actors.threads, actors.replicas * passes)
