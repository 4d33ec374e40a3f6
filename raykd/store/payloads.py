"""Payloads as columns: what an answer holds beyond its text, in as few bytes as can be.

top_k     top_ids list<int32> and top_logprobs list<halffloat>, both T * k long. Within a position ids rise and are
          kept as gaps (the first id, then differences), because small numbers compress
sampled   sampled_ids list<int32>, gaps within a position as well; sampled_counts and sampled_lengths list<uint8>
hidden    hidden list<halffloat>, T * H long
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd.engines.engine import PseudoTarget
from raykd.errors import StoreError
from raykd.recipe.generation import HiddenPayload, Payload, SampledPayload, TextPayload, TopKPayload


def choose_payload(vocabulary: int, hidden: int, student_parameters: int, drawn: bool = True) -> tuple[Payload, str]:
    """What payload `auto` stands for where a loss needs the teacher's distribution, and why, in one sentence.

    Exact forms win where they cost no more than the top 64: the whole distribution of a small vocabulary; hidden
    states of a narrow teacher, if its head (2 H V FLOP per token) is below 5 % of the student's step (6 FLOP per
    parameter). Else draws, which are unbiased and smallest (arXiv 2503.16870), where the losses can do with them
    (`drawn`), and the top 64 where not.
    """
    if vocabulary <= 64:
        why = f"top_k of {vocabulary}: that is the whole vocabulary, at {6 * vocabulary} bytes per token at most"
        return TopKPayload(kind="top_k", k=vocabulary), why
    extra = 2 * hidden * vocabulary / (6 * student_parameters)
    sizes = f"{2 * hidden} bytes per token of hidden states against 384 of top 64 and about 60 of draws"
    cost = f"the teacher's head would add {100 * extra:.1f} % to the student's compute"
    if extra < 0.05 and 2 * hidden <= 384:
        return HiddenPayload(kind="hidden"), f"hidden: exact; {sizes}; {cost}"
    if not drawn:
        return TopKPayload(kind="top_k"), f"top_k of 64: draws serve soft_cross_entropy alone; {sizes}; {cost}"
    return SampledPayload(kind="sampled"), f"sampled: unbiased and smallest; {sizes}; {cost}"


VALUES = {
    "text": {},
    "top_k": {"top_ids": pa.int32(), "top_logprobs": pa.float16()},
    "sampled": {"sampled_ids": pa.int32(), "sampled_counts": pa.uint8(), "sampled_lengths": pa.uint8()},
    "hidden": {"hidden": pa.float16()},
}
# a column is decoded with the help of these
NEEDS = {
    "top_ids": ["top_ids", "top_logprobs"],
    "top_logprobs": ["top_ids", "top_logprobs"],
    "sampled_ids": ["sampled_ids", "sampled_lengths"],
}
MOST = 2**31 - 1  # values in one list column: Arrow's offsets are int32
LEAST = float(np.finfo(np.float16).min)


def serves(held: Payload, wanted: Payload) -> bool:
    """Whether answers with the payload `held` can be read as answers with `wanted`."""
    if isinstance(held, TopKPayload) and isinstance(wanted, TopKPayload):
        return held.k >= wanted.k
    if isinstance(held, SampledPayload) and isinstance(wanted, SampledPayload):
        return held.draws == wanted.draws
    if isinstance(held, TextPayload) and isinstance(wanted, TextPayload):
        return held.logprobs or not wanted.logprobs
    return wanted.kind in ("text", held.kind)


def encode(answers: Sequence[PseudoTarget], payload: Payload) -> dict[str, pa.ListArray]:
    """The columns of VALUES[payload.kind], one list per answer."""

    def joined(name: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = [np.asarray(answer.payload[name]) for answer in answers]
        whole = [array for array in arrays if len(array)] or [np.zeros((0, 1), np.int32)]
        return np.concatenate(whole), np.array([array.size for array in arrays])

    def column(name: str, values: np.ndarray, sizes: np.ndarray) -> pa.ListArray:
        return lists(name, values, sizes, VALUES[payload.kind][name])

    if payload.kind == "top_k":
        (ids, sizes), (logprobs, _) = joined("top_ids"), joined("top_logprobs")
        halves = np.clip(logprobs, LEAST, 0).astype(np.float16).view(np.uint16)
        both = np.sort(ids.astype(np.int64) << 16 | halves, axis=1)  # one sort of numbers: far faster than argsort
        gaps, kept = np.diff(both >> 16, axis=1, prepend=0), both.astype(np.uint16).view(np.float16)
        return {"top_ids": column("top_ids", gaps, sizes), "top_logprobs": column("top_logprobs", kept, sizes)}
    if payload.kind == "sampled":
        (ids, sizes), (counts, _), (lengths, positions) = (joined(n) for n in VALUES["sampled"])
        gaps, starts = np.diff(ids.ravel(), prepend=0), _starts(lengths)
        gaps[starts] = ids.ravel()[starts]
        return {
            "sampled_ids": column("sampled_ids", gaps, sizes),
            "sampled_counts": column("sampled_counts", counts, sizes),
            "sampled_lengths": column("sampled_lengths", lengths, positions),
        }
    return {name: column(name, *joined(name)) for name in VALUES[payload.kind]}


def decode(rows: pa.Table, wanted: Payload) -> pa.Table:
    """The rows with payload columns as engines gave them, still flat lists; other columns stay as they are.

    top_ids list<int32> and top_logprobs list<float32> are most likely first and cut to the k of `wanted`; with a
    vocabulary smaller than k they are as wide as it is. sampled_ids list<int32> are ids again. Columns that NEEDS
    names must be there together.
    """
    if "top_ids" in rows.column_names:
        width = int(rows.schema.metadata[b"width"])
        (gaps, offsets), (halves, _) = flat(rows["top_ids"]), flat(rows["top_logprobs"])
        k = min(width, wanted.k) if isinstance(wanted, TopKPayload) else width
        ids = np.cumsum(gaps.reshape(-1, width), axis=1, dtype=np.int64)
        # bits of negative halves rise as they fall: sorted by them, the most likely is first
        both = np.sort(halves.view(np.uint16).reshape(-1, width).astype(np.int64) << 32 | ids, axis=1)[:, :k]
        logprobs = (both >> 32).astype(np.uint16).view(np.float16)
        sizes = np.diff(offsets) // width * k
        rows = _replace(rows, "top_ids", lists("top_ids", both & 0xFFFFFFFF, sizes, pa.int32()))
        rows = _replace(rows, "top_logprobs", lists("top_logprobs", logprobs, sizes, pa.float32()))
    if "sampled_ids" in rows.column_names:
        (gaps, offsets), (lengths, _) = flat(rows["sampled_ids"]), flat(rows["sampled_lengths"])
        total, starts = np.cumsum(gaps, dtype=np.int64), _starts(lengths)
        before = np.repeat(total[starts] - gaps[starts], lengths[lengths > 0])
        rows = _replace(rows, "sampled_ids", lists("sampled_ids", total - before, np.diff(offsets), pa.int32()))
    return rows


def lists(name: str, values: np.ndarray, sizes: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """Values as lists of these sizes, without a Python object per value. Raises StoreError above MOST values."""
    if values.size > MOST:
        raise StoreError(f"{values.size} values of {name} are too many for one shard: make shard_rows smaller")
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel().astype(kind.to_pandas_dtype(), copy=False), kind))


def flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(values, offsets) of a list column: row i is values[offsets[i]:offsets[i + 1]]. Views where Arrow allows."""
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy()
    return array.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0]


def encoded(rows: pa.Table) -> bytes:
    """One Parquet file. Split bytes under zstd were the smallest of what was measured, and among the fastest."""
    tokens = len(flat(rows["token_ids"])[0])
    wide = next((name for name in ("top_ids", "hidden") if name in rows.column_names), None)
    width = len(flat(rows[wide])[0]) // max(1, tokens) if wide else 0
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


def faults(rows: pa.Table) -> list[str]:
    """Lists whose length does not fit the tokens of their row."""
    found = {field.name: flat(rows[field.name]) for field in rows.schema if pa.types.is_list(field.type)}
    sizes = {name: np.diff(offsets) for name, (_, offsets) in found.items()}
    tokens, lines = sizes["token_ids"], []

    def check(name: str, expected: np.ndarray, wrong: np.ndarray) -> None:
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            lines.append(f"row {at}: {sizes[name][at]} {name} for {tokens[at]} tokens, expected {expected[at]}")

    check("logprobs", tokens, (sizes["logprobs"] != tokens) & (sizes["logprobs"] > 0))
    for name in [name for name in ("top_ids", "top_logprobs", "hidden") if name in sizes]:
        first = "hidden" if name == "hidden" else "top_ids"
        expected = tokens * (sizes[first].sum() // max(1, tokens.sum()))
        check(name, expected, sizes[name] != expected)
    if "sampled_ids" in sizes:
        check("sampled_lengths", tokens, sizes["sampled_lengths"] != tokens)
        lengths, offsets = found["sampled_lengths"]
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        expected = ends[offsets[1:]] - ends[offsets[:-1]]
        for name in ("sampled_ids", "sampled_counts"):
            check(name, expected, sizes[name] != expected)
    return lines


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where the values of each position begin that has any."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return (ends - lengths)[lengths > 0]


def _replace(rows: pa.Table, name: str, column: pa.ListArray) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, column)
