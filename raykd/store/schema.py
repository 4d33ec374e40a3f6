"""The columns of a shard, the pattern of its file's name, and the types of rows' names."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from raykd.engines.engine import PseudoTarget
from raykd.recipe.generation import Payload
from raykd.store import payloads
from raykd.store.ragged import list_array

FORMAT = 2
SHARD = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.parquet")  # hash of the (key, sample) set - hash of the bytes
ROW = np.dtype([("key", "S16"), ("sample", ">i4")])  # sorts as its bytes do
SPAN = np.dtype([("key", "S16"), ("start", ">i4"), ("stop", ">i4")])


def shard_schema(payload: Payload) -> pa.Schema:
    """The columns of a shard in a store with this payload."""
    columns = [
        ("key", pa.binary(16)),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),  # of token_ids, natural log; empty where the engine returns none
        ("finish_reason", pa.string()),  # stop | length
    ]
    return pa.schema([*columns, *((name, pa.list_(kind)) for name, kind in payloads.VALUES[payload.kind].items())])


def shard_table(
    keys: list[bytes], samples: range, pseudo_targets: list[list[PseudoTarget]], payload: Payload
) -> pa.Table:
    """A table of `shard_schema(payload)`: for each key a row per pseudo-target, numbered by `samples` in order.

    Raises ValueError if a key has more or fewer pseudo-targets than `samples`.
    """
    for key_samples in pseudo_targets:
        if len(key_samples) != len(samples):
            raise ValueError(f"{len(key_samples)} pseudo-targets for {len(samples)} samples")
    rows = [pseudo_target for key_samples in pseudo_targets for pseudo_target in key_samples]

    def joined(name: str, kind: pa.DataType) -> pa.ListArray:
        arrays = [np.asarray(getattr(row, name), kind.to_pandas_dtype()) for row in rows]
        return list_array(name, np.concatenate([np.zeros(0), *arrays]), np.array([len(a) for a in arrays]), kind)

    columns = {
        "key": pa.array([key for key in keys for _ in samples], pa.binary(16)),
        "sample": pa.array(np.tile(np.arange(samples.start, samples.stop), len(keys)), pa.int32()),
        "text": pa.array([row.text for row in rows], pa.string()),
        "token_ids": joined("token_ids", pa.int32()),
        "logprobs": joined("logprobs", pa.float32()),
        "finish_reason": pa.array([row.finish_reason for row in rows], pa.string()),
    }
    return pa.table({**columns, **payloads.encode(rows, payload)}, schema=shard_schema(payload))
