"""Functions that read a store in its present state."""

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
    """The number of samples of each key in a store, counted from sample 0 up to the first missing one."""

    keys: np.ndarray  # (K,) S16, sorted and unique
    samples: np.ndarray  # (K,) int32


class StoredText(NamedTuple):
    """A pseudo-target's text, and the mean natural log-probability of its tokens, None if the store has none."""

    text: str
    mean_logprob: float | None


def sample_counts(store: Store) -> SampleCounts:
    """The keys in the store, and their numbers of samples. Reads two columns; raises StoreError for a damaged shard.

    numpy drops zero bytes at the end of a single S16, so compare whole arrays, or take the bytes by keys.tobytes().
    """
    by_shard = [sample_spans(read_names(store, shard)) for shard in store.shards()]
    spans = np.concatenate([np.zeros(0, SPAN), *by_shard])
    del by_shard
    spans.view("S24").sort()  # in place: a store has many keys
    firsts = np.ones(len(spans), bool)
    firsts[1:] = spans["key"][1:] != spans["key"][:-1]
    keys, at = spans["key"][firsts], np.cumsum(firsts, dtype=np.int32) - 1
    samples = np.zeros(len(keys), np.int32)
    while True:  # a pass for each span of the key with most spans
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
            use_threads=False,  # Arrow's threads would release the Python file too late, see store._native_buffer
        )
    return row_names(table)


def read_rows(store: Store, shard: str, columns: Iterable[str]) -> pa.Table:
    """Columns of a shard, decoded by `payloads.decode`. Raises StoreError if the shard is damaged."""
    columns = list(columns)
    needed = {need: None for name in columns for need in payloads.NEEDS.get(name, [name])}
    return payloads.decode(store.read_shard(shard, list(needed)), store.wanted).select(columns)


def read_texts(store: Store, keys: Iterable[bytes], n: int) -> dict[bytes, list[StoredText]]:
    """For each of these keys its first n samples, in the order of their numbers; keys without a row are left out.

    Raises StoreError for a damaged shard.
    """
    unique_keys = np.unique(np.array(list(keys), "S16"))
    by_key: dict[bytes, dict[int, StoredText]] = {}
    for shard in store.shards():
        if len(by_key) == len(unique_keys) and all(len(samples) == n for samples in by_key.values()):
            break
        rows = store.read_shard(shard, ["key", "sample", "text", "logprobs"])
        names = row_names(rows)
        rows = rows.filter(pa.array(np.isin(names["key"], unique_keys) & (names["sample"] < n)))
        means = _means(ragged(rows["logprobs"]))
        columns = (rows[name].to_pylist() for name in ("key", "sample", "text"))
        for key, sample, text, mean in zip(*columns, means, strict=True):
            by_key.setdefault(key, {}).setdefault(sample, StoredText(text, mean))
    return {key: [samples[i] for i in sorted(samples)] for key, samples in by_key.items()}


def _means(rows: Ragged) -> list[float | None]:
    """The mean of each row; None for an empty row."""
    sums = np.concatenate([[0.0], np.cumsum(rows.values, dtype=np.float64)])[rows.offsets]
    return [s / c if c else None for s, c in zip(np.diff(sums).tolist(), rows.lengths().tolist(), strict=True)]
