"""Writes shards into a store."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd.errors import StoreError
from raykd.store import payloads
from raykd.store.names import row_names
from raykd.store.ragged import ragged
from raykd.store.schema import shard_schema
from raykd.store.store import Store


def write_shard(store: Store, rows: pa.Table) -> None:
    """Write a shard, whole or not at all; does nothing if there is a shard of the same (key, sample) set.

    `rows` is a table of `shard_schema(store.payload)`. A closed store is opened. Raises StoreError for rows of another
    payload, for lists whose lengths do not fit, and for a full disk.
    """
    if not rows.schema.equals(shard_schema(store.payload)):
        raise StoreError(f"{store.path}: its payload is {store.payload.kind}, not that of {rows.column_names}")
    faults = payloads.faults(rows)
    if faults:
        raise StoreError(f"{store.path}: rows that cannot be right: {faults[0]}")
    names_hash = hashlib.sha256(np.unique(row_names(rows)).tobytes()).hexdigest()[:16]
    if any(shard.startswith(names_hash) for shard in store.shards()):
        return
    data = shard_bytes(rows)
    if store.closed:
        store.begin()
    store.put(f"shards/{names_hash}-{hashlib.sha256(data).hexdigest()[:16]}.parquet", data)


def shard_bytes(rows: pa.Table) -> bytes:
    """A shard as one Parquet file. Split bytes under zstd were the smallest of what was measured, and nearly fastest.

    Its metadata: tokens, and width, the values per token of a payload that has as many for each.
    """
    tokens = len(ragged(rows["token_ids"]).values)
    wide = next((name for name in ("top_ids", "hidden") if name in rows.column_names), None)
    width = len(ragged(rows[wide]).values) // max(1, tokens) if wide else 0
    rows = rows.replace_schema_metadata({"tokens": str(tokens), "width": str(max(1, width))})
    numbers = [f"{field.name}.list.element" for field in rows.schema if pa.types.is_list(field.type)]
    file = io.BytesIO()
    pq.write_table(
        rows,
        file,
        compression="zstd",
        use_dictionary=["key", "finish_reason"],  # pyright: ignore[reportArgumentType] (its stub knows bool alone)
        column_encoding={"sample": "DELTA_BINARY_PACKED", **dict.fromkeys(numbers, "BYTE_STREAM_SPLIT")},
        write_page_checksum=True,
    )
    return file.getvalue()
