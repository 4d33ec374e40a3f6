"""Where a training's rows come from: a JSONL file, or a labelling's prompts and the store of their pseudo-targets."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd.data.examples import chunk_order
from raykd.data.sources import FileSource, StoredSource
from raykd.store.follow import PASS, StoreIndex
from raykd.store.schema import ROW
from raykd.store.store import Store
from raykd.training.dataset import PAYLOAD_COLUMNS

CHUNK = 1024  # rows of a chunk that comes from a file


class Target(NamedTuple):
    """A target before encoding: its text, and if it is read from a store with a payload, its token ids and payload."""

    text: str
    ids: list[int] | np.ndarray | None = None
    gold: bool = False
    payload: dict[str, np.ndarray] = {}
    weight: float = 1.0


class Row(NamedTuple):
    """An input and its targets, before tokenization."""

    id: str
    input: str
    targets: list[Target]


def read_file(source: FileSource) -> Iterator[list[Row]]:
    """The rows of a file, in chunks of CHUNK."""

    def group(line: dict[str, Any]) -> Any:
        return line["input"] if line.get("pseudo_target") else object()  # a group of its own

    with open(source.path, encoding="utf-8") as file:
        groups = (list(lines) for _, lines in itertools.groupby(map(json.loads, file), group))
        while chunk := list(itertools.islice(groups, CHUNK)):
            yield [Row(lines[0]["id"], lines[0]["input"], [_file_target(line) for line in lines]) for lines in chunk]


def _file_target(line: dict[str, Any]) -> Target:
    return Target(line["target"], weight=line.get("weight", 1.0))


def read_store(source: StoredSource) -> Iterator[list[Row]]:
    """The rows of a labelling, chunk by chunk in the order of the teacher pass.

    A chunk is yielded as soon as no further pseudo-target of it will come. A row whose prompt the teacher rejected has
    no target. Raises StoreError for a damaged shard, TrainingError if a followed pass has failed.
    """
    store = Store(source.store, source.payload)
    columns = ["text"] if source.payload is None else ["text", "token_ids", *PAYLOAD_COLUMNS[store.wanted.kind]]
    gold_targets = _gold_targets(source.gold)
    index = StoreIndex(store, source.follow, Path(source.prompts).with_name(PASS))
    with pq.ParquetFile(source.prompts) as file:
        for rows in chunks_of(source):
            prompts = _read_prompts(file, rows)
            prompts = prompts.filter(pa.array(is_from(prompts["source"], source.sources)))
            keys = prompts["key"].to_pylist()
            row_names = np.zeros(len(keys) * source.samples, ROW)
            row_names["key"] = np.repeat(np.array(keys, "S16"), source.samples)
            row_names["sample"] = np.tile(np.arange(source.samples), len(keys))
            samples = index.lookup(row_names, columns)
            chunk: list[Row] = []
            for at, (name, text) in enumerate(
                zip(prompts["id"].to_pylist(), prompts["input"].to_pylist(), strict=True)
            ):
                of_prompt = samples[at * source.samples : (at + 1) * source.samples]
                targets = [_stored_target(sample, source.payload is not None) for sample in of_prompt if sample]
                if text in gold_targets:
                    targets.append(Target(gold_targets[text], gold=True))
                chunk.append(Row(name, text, targets))
            yield chunk


def _stored_target(sample: dict[str, Any], tokens: bool) -> Target:
    if not tokens:
        return Target(sample["text"])
    payload = {name: values for name, values in sample.items() if name not in ("text", "token_ids")}
    return Target(sample["text"], sample["token_ids"], payload=payload)


def _gold_targets(path: str | None) -> dict[str, str]:
    """Targets by input, of a parquet file of examples."""
    if path is None:
        return {}
    table = pq.read_table(path, columns=["input", "target"])
    return dict(zip(table["input"].to_pylist(), table["target"].to_pylist(), strict=True))


def _read_prompts(file: pq.ParquetFile, rows: range) -> pa.Table:
    """Consecutive rows of a file; only their row groups are read."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    first, last = np.searchsorted(ends, [rows.start, rows.stop - 1], side="right")
    table = file.read_row_groups(list(range(first, last + 1)), columns=["source", "id", "input", "key"])
    return table.slice(rows.start - int(ends[first] - sizes[first]), len(rows))


def is_from(source_column: pa.Array | pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    """(N,) bool: which rows of a prompts' file are of these sources."""
    return np.isin(np.array(source_column.to_pylist(), object), names)


def chunks_of(source: StoredSource) -> list[range]:
    """Rows of the prompts' file that are read together, in the order of the teacher pass.

    Chunks without a row of `source.sources` are left out.
    """
    with pq.ParquetFile(source.prompts) as file:
        batches = file.iter_batches(columns=["source"])
        is_read = np.concatenate([is_from(batch["source"], source.sources) for batch in batches])
    chunks = chunk_order(len(is_read), source.chunk, source.seed)
    return [rows for rows in chunks if is_read[rows.start : rows.stop].any()]
