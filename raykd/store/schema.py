"""TODO: docstring."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from raykd.engines.engine import PseudoTarget
from raykd.recipe.generation import Payload
from raykd.store import payloads

FORMAT = 2
SHARD = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.parquet")
SHARD_1 = re.compile(r"[0-9a-f]{24}\.parquet")  # of format 1
ROW = np.dtype([("key", "S16"), ("sample", ">i4")])  # sorts as its bytes do
SPAN = np.dtype([("key", "S16"), ("start", ">i4"), ("stop", ">i4")])


def shard_schema(payload: Payload) -> pa.Schema:
    """Columns of a shard."""
    columns = [
        ("key", pa.binary(16)),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),  # of token_ids, natural log; empty where the engine gives none
        ("finish_reason", pa.string()),  # stop | length
    ]
    return pa.schema([*columns, *((name, pa.list_(kind)) for name, kind in payloads.VALUES[payload.kind].items())])


def shard_table(keys: list[bytes], samples: range, answers: list[list[PseudoTarget]], payload: Payload) -> pa.Table:
    """Rows of `schema(payload)`: for each key its answers, which are the samples of these numbers in order."""
    for several in answers:
        if len(several) != len(samples):
            raise ValueError(f"{len(several)} answers for {len(samples)} samples")
    flat = [answer for several in answers for answer in several]

    def joined(name: str, kind: pa.DataType) -> pa.ListArray:
        arrays = [np.asarray(getattr(answer, name), kind.to_pandas_dtype()) for answer in flat]
        return payloads.lists(name, np.concatenate([np.zeros(0), *arrays]), np.array([len(a) for a in arrays]), kind)

    columns = {
        "key": pa.array([key for key in keys for _ in samples], pa.binary(16)),
        "sample": pa.array(np.tile(np.arange(samples.start, samples.stop), len(keys)), pa.int32()),
        "text": pa.array([answer.text for answer in flat], pa.string()),
        "token_ids": joined("token_ids", pa.int32()),
        "logprobs": joined("logprobs", pa.float32()),
        "finish_reason": pa.array([answer.finish_reason for answer in flat], pa.string()),
    }
    return pa.table({**columns, **payloads.encode(flat, payload)}, schema=shard_schema(payload))
