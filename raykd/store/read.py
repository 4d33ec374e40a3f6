"""Reading a store as it is now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd.store import payloads
from raykd.store.names import row_names, sample_spans
from raykd.store.ragged import Ragged, ragged
from raykd.store.schema import SPAN
from raykd.store.store import Store, damage


class SampleCounts(NamedTuple):
    """How many samples of each key a store holds, counted from sample 0 to the first that is missing."""

    keys: np.ndarray  # (K,) S16, sorted and unique
    samples: np.ndarray  # (K,) int32


class StoredText(NamedTuple):
    """A pseudo-target's text, and the mean natural log-probability of its tokens; None where the store has none."""

    text: str
    mean_logprob: float | None


def sample_counts(store: Store) -> SampleCounts:
    """The keys that have landed, and their samples. Only two columns are read. Raises StoreError for a damaged shard.

    numpy drops zero bytes at the end of a single S16: compare arrays, or take bytes by keys.tobytes().
    """
    by_shard = [sample_spans(read_names(store, shard)) for shard in store.shards()]
    spans = np.concatenate([np.zeros(0, SPAN), *by_shard])
    del by_shard
    spans.view("S24").sort()  # in place: a store has many keys
    firsts = np.ones(len(spans), bool)
    firsts[1:] = spans["key"][1:] != spans["key"][:-1]
    keys, at = spans["key"][firsts], np.cumsum(firsts, dtype=np.int32) - 1
    samples = np.zeros(len(keys), np.int32)
    while True:  # as many times as a key's samples came in pieces
        before = samples.copy()
        joins = spans["start"] <= samples[at]
        np.maximum.at(samples, at[joins], spans["stop"][joins])
        if np.array_equal(samples, before):
            return SampleCounts(keys, samples)


def read_names(store: Store, shard: str) -> np.ndarray:
    """(N,) ROW: (key, sample) of a shard's rows. Only these columns are read; pages are checked by their checksums."""
    with damage(store.shown(shard)), store.fs.open(store.shard_path(shard), "rb") as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read(
            ["key", "sample"],
            use_threads=False,  # a file of Python's: Arrow's threads let go of it too late, see Store.read_shard
        )
    return row_names(table)


def read_rows(store: Store, shard: str, columns: Iterable[str]) -> pa.Table:
    """Columns of a shard, decoded as `payloads.decode` does. Raises StoreError where it is damaged."""
    columns = list(columns)
    needed = {need: None for name in columns for need in payloads.NEEDS.get(name, [name])}
    return payloads.decode(store.read_shard(shard, list(needed)), store.wanted).select(columns)


def read_texts(store: Store, keys: Iterable[bytes], n: int) -> dict[bytes, list[StoredText]]:
    """The first n samples of these keys, in the order of their numbers; a key without a row is left out.

    Raises StoreError for a damaged shard.
    """
    wanted = np.unique(np.array(list(keys), "S16"))
    by_key: dict[bytes, dict[int, StoredText]] = {}
    for shard in store.shards():
        if len(by_key) == len(wanted) and all(len(samples) == n for samples in by_key.values()):
            break
        rows = store.read_shard(shard, ["key", "sample", "text", "logprobs"])
        names = row_names(rows)
        rows = rows.filter(pa.array(np.isin(names["key"], wanted) & (names["sample"] < n)))
        means = _means(ragged(rows["logprobs"]))
        columns = (rows[name].to_pylist() for name in ("key", "sample", "text"))
        for key, sample, text, mean in zip(*columns, means, strict=True):
            by_key.setdefault(key, {}).setdefault(sample, StoredText(text, mean))
    return {key: [samples[i] for i in sorted(samples)] for key, samples in by_key.items()}


def _means(rows: Ragged) -> list[float | None]:
    """The mean of each row; None of an empty one."""
    sums = np.concatenate([[0.0], np.cumsum(rows.values, dtype=np.float64)])[rows.offsets]
    return [s / c if c else None for s, c in zip(np.diff(sums).tolist(), rows.lengths().tolist(), strict=True)]
