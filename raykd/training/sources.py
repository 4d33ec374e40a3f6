"""Rows as token ids: encoded once, kept as an Arrow stream, mapped into memory, and read while it is still written.

A record batch is a chunk of rows:

    id            string
    source        list<int32>              the student's prompt
    teacher       list<int32>              the teacher's prompt, where a teacher reads along; else empty
    targets       list<list<int32>>        the row's targets, with their end token
    gold          list<bool>               whether a target is gold
    weights       list<float>              what a target counts for in the loss
    <payload>     list<list<...>>          what the store kept of each target, one after the other

Beside a finished stream there is `<name>.json`: {rows, bad_rows, cut, empty, missing}: targets that were
cut or are empty, and rows without a target because the teacher refused them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd.data.examples import chunk_order
from raykd.recipe.generation import Payload
from raykd.store.follow import StoreIndex
from raykd.store.schema import ROW
from raykd.store.store import Store

CHUNK = 1024  # rows of a chunk that comes from a file
TEXT = {"text": pa.string(), "finish_reason": pa.string()}
PAYLOAD_COLUMNS = {
    "top_k": {"top_ids": pa.int32(), "top_logprobs": pa.float32(), "logprobs": pa.float32()},
    "sampled": {"sampled_ids": pa.int32(), "sampled_counts": pa.uint8(), "sampled_lengths": pa.uint8()},
    "hidden": {"hidden": pa.float16()},
    "text": {},
}


@dataclass(frozen=True)
class FileSource:
    """Rows of a JSONL file: {id, input, target, perhaps weight}; pseudo-targets of one input that follow each other
    are several targets of one row.
    """

    path: str


@dataclass(frozen=True)
class StoredSource:
    """Prompts and where their answers are, or will be.

    sources   which of the prompts' sources; n samples of each
    chunk     rows that the teacher pass asks for together, and seed, the order in which it does
    tokens    take the teacher's token ids as targets, and payload; else its texts
    follow    the store is still written
    gold      a parquet file of examples whose targets are further targets of the prompts with the same input
    """

    prompts: str
    store: str
    sources: tuple[int, ...]
    n: int
    chunk: int
    seed: int
    tokens: bool = False
    payload: Payload | None = None
    follow: bool = False
    gold: str | None = None


class Target(NamedTuple):
    """A target as it is found: its text, or its token ids with what the store kept of them."""

    text: str
    ids: list[int] | np.ndarray | None = None
    gold: bool = False
    payload: dict[str, np.ndarray] = {}
    weight: float = 1.0


Row = tuple[str, str, list[Target]]  # id, input, targets


def read_file(source: FileSource) -> Iterator[list[Row]]:
    def asked(row: dict[str, Any]) -> Any:
        return row["input"] if "by" in row else object()  # which is equal to nothing else

    with open(source.path, encoding="utf-8") as file:
        found = (list(several) for _, several in itertools.groupby(map(json.loads, file), asked))
        while rows := list(itertools.islice(found, CHUNK)):
            yield [(some[0]["id"], some[0]["input"], [_given(row) for row in some]) for some in rows]


def _given(row: dict[str, Any]) -> Target:
    return Target(row["target"], weight=row.get("weight", 1.0))


def read_store(source: StoredSource) -> Iterator[list[Row]]:
    """Chunks in the order of the teacher pass, each as soon as every answer of it is there or will never be."""
    store = Store(source.store, source.payload)
    names = ["text", *(["token_ids", *PAYLOAD_COLUMNS[store.wanted.kind]] if source.tokens else [])]
    gold = _gold(source.gold)
    index = StoreIndex(store, source.follow, Path(source.prompts).with_name("pass.json"))
    with pq.ParquetFile(source.prompts) as file:
        for rows in chunks_of(source):
            asked = _read(file, rows)
            asked = asked.filter(pa.array(np.isin(asked["source"].to_numpy(), source.sources)))
            keys = asked["key"].to_pylist()
            wanted = np.zeros(len(keys) * source.n, ROW)
            wanted["key"] = np.repeat(np.array(keys, "S16"), source.n)
            wanted["sample"] = np.tile(np.arange(source.n), len(keys))
            answers = index.answers(wanted, names)
            found: list[Row] = []
            for at, (name, text) in enumerate(zip(asked["id"].to_pylist(), asked["input"].to_pylist(), strict=True)):
                targets = [_target(a, source.tokens) for a in answers[at * source.n : (at + 1) * source.n] if a]
                if text in gold:
                    targets.append(Target(gold[text], gold=True))
                found.append((name, text, targets))
            yield found


def _target(answer: dict[str, Any], tokens: bool) -> Target:
    if not tokens:
        return Target(answer["text"])
    payload = {name: values for name, values in answer.items() if name not in ("text", "token_ids")}
    return Target(answer["text"], answer["token_ids"], payload=payload)


def _gold(path: str | None) -> dict[str, str]:
    if path is None:
        return {}
    table = pq.read_table(path, columns=["input", "target"])
    return dict(zip(table["input"].to_pylist(), table["target"].to_pylist(), strict=True))


def _read(file: pq.ParquetFile, rows: range) -> pa.Table:
    """Consecutive rows of a file; only their row groups are read."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    first, last = np.searchsorted(ends, [rows.start, rows.stop - 1], side="right")
    found = file.read_row_groups(list(range(first, last + 1)), columns=["source", "id", "input", "key"])
    return found.slice(rows.start - int(ends[first] - sizes[first]), len(rows))


def chunks_of(source: StoredSource) -> list[range]:
    """Rows of the prompts' file that are read together, in the order of the teacher pass; of its sources alone."""
    of = pq.read_table(source.prompts, columns=["source"])["source"].to_numpy()
    wanted = np.isin(of, source.sources)
    chunks = chunk_order(len(of), source.chunk, source.seed)
    return [rows for rows in chunks if wanted[rows.start : rows.stop].any()]
