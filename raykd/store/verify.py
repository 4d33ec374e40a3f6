"""Checks of a store for damage, and a description of its content and size."""

from __future__ import annotations

from typing import Any

import numpy as np

from raykd.errors import StoreError
from raykd.store import payloads
from raykd.store.names import new_rows, row_names
from raykd.store.read import sample_counts
from raykd.store.schema import shard_schema
from raykd.store.store import Store


def verify_store(store: Store) -> list[str]:
    """A line for each damage; empty if the store is sound. Reads every byte."""
    try:
        schema, closed = shard_schema(store.payload), store.read_json("closed.json") or {"shards": {}}
    except StoreError as error:
        return [str(error)]
    shards, seen = store.shards(), list[np.ndarray]()
    missing = [shard for shard in closed["shards"] if shard not in shards]
    lines = [f"{store.shown(shard)}: missing: closed.json names it" for shard in missing]
    for shard in shards:
        try:
            rows = store.read_shard(shard)
        except StoreError as error:
            lines.append(str(error))
            continue
        if not rows.schema.equals(schema):
            lines.append(f"{store.shown(shard)}: wrong schema: {rows.column_names}")
            continue
        lines += [f"{store.shown(shard)}: {fault}" for fault in payloads.faults(rows)]
        duplicates = int((~new_rows(row_names(rows), seen)).sum())
        if duplicates:
            lines.append(f"{store.shown(shard)}: {duplicates} duplicate rows: (key, sample) was there before")
    return lines


def describe_store(store: Store) -> dict[str, Any]:
    """The content of store.json, counts, and sizes in compressed bytes; for `raykd store show`.

    Raises StoreError if there is no store or a shard is damaged.
    """
    tokens, rows, columns = 0, 0, dict.fromkeys(shard_schema(store.payload).names, 0)
    shards = store.shards()
    for shard in shards:
        metadata = store.metadata(shard)
        tokens, rows = tokens + int(metadata.metadata[b"tokens"]), rows + metadata.num_rows
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                columns[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    keys, samples = sample_counts(store)
    size = sum(map(store.size, shards))
    return {
        "name": store.root.rsplit("/", 1)[-1],
        **store.about,
        "state": "closed" if store.closed else "open",
        "shards": len(shards),
        "rows": rows,
        "keys": len(keys),
        "samples_per_key": {"min": int(samples.min()), "max": int(samples.max())} if len(keys) else None,
        "tokens": tokens,
        "bytes": size,
        "bytes_per_token": round(size / max(1, tokens), 2),
        "bytes_per_token_of": {name: round(total / max(1, tokens), 2) for name, total in columns.items()},
    }
