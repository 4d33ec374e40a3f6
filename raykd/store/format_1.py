"""Stores of format 1, whose keys were hex digits and whose name held the number of samples: migration to format 2."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raykd.store.schema import FORMAT, shard_schema
from raykd.store.store import Store, damage, payload_of
from raykd.store.write import write_shard

SHARD_1 = re.compile(r"[0-9a-f]{24}\.parquet")


def about_as_format_2(about: dict[str, Any]) -> dict[str, Any]:
    """The store.json of format 2 for one of format 1: n is no longer a part, and the payload was always text."""
    parts = {**about["parts"], "sampling": {k: v for k, v in about["parts"]["sampling"].items() if k != "n"}}
    return {"format": FORMAT, "parts": parts, "payload": {"kind": "text"}}


def migrate(store: Store, about: dict[str, Any]) -> None:
    """Bring a store to format 2; `about` is its store.json. A migration that was killed may be started again."""
    old_shards = store.shards(SHARD_1)
    store.about = about_2 = about_as_format_2(about)
    for shard in old_shards:
        with damage(store.shown(shard)):
            rows = pq.read_table(pa.BufferReader(store.fs.cat_file(store.shard_path(shard))))
            keys = pa.array([bytes.fromhex(key) for key in rows["key"].to_pylist()], pa.binary(16))
            rows = rows.set_column(0, "key", keys).cast(shard_schema(payload_of(about_2)))
        write_shard(store, rows)
    store.write_about(about_2["parts"], payload_of(about_2))
    store.close()
    for shard in old_shards:  # last: until here the store is still whole in its old form
        store.fs.rm_file(store.shard_path(shard))
