"""Payloads as columns: the part of the teacher's distribution that a store keeps, in few bytes.

top_k     top_ids list<int32> and top_logprobs list<halffloat>, both T * k long. Within a position ids rise and are
          kept as gaps (the first id, then differences), because small numbers compress
sampled   sampled_ids list<int32>, gaps within a position as well; sampled_counts and sampled_lengths list<uint8>
hidden    hidden list<halffloat>, T * H long
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raykd.engines.engine import PseudoTarget
from raykd.recipe.generation import HiddenPayload, Payload, SampledPayload, TextPayload, TopKPayload
from raykd.store.ragged import list_array, ragged

# kind of payload -> its columns in a shard, with the types of the lists' values
VALUES = {
    "text": {},
    "top_k": {"top_ids": pa.int32(), "top_logprobs": pa.float16()},
    "sampled": {"sampled_ids": pa.int32(), "sampled_counts": pa.uint8(), "sampled_lengths": pa.uint8()},
    "hidden": {"hidden": pa.float16()},
}
# column -> the columns that are needed to decode it
NEEDS = {
    "top_ids": ["top_ids", "top_logprobs"],
    "top_logprobs": ["top_ids", "top_logprobs"],
    "sampled_ids": ["sampled_ids", "sampled_lengths"],
}
LEAST = float(np.finfo(np.float16).min)


def choose_payload(
    vocabulary: int, hidden: int, student_parameters: int, draws_serve: bool = True
) -> tuple[Payload, str]:
    """The payload that `auto` stands for if a loss needs the teacher's distribution, and the reason in one sentence.

    `vocabulary` and `hidden` are the sizes of the teacher's head. An exact form is taken if it costs no more than the
    top 64: the whole distribution of a small vocabulary; hidden states of a narrow teacher, if its head (2 H V FLOP per
    token) is below 5 % of the student's step (6 FLOP per parameter). Otherwise draws, which are unbiased and smallest
    (arXiv 2503.16870), if the losses can work with draws (`draws_serve`), and the top 64 if they cannot.
    """
    if vocabulary <= 64:
        reason = f"top_k of {vocabulary}: that is the whole vocabulary, at {6 * vocabulary} bytes per token at most"
        return TopKPayload(kind="top_k", k=vocabulary), reason
    extra = 2 * hidden * vocabulary / (6 * student_parameters)
    sizes = f"{2 * hidden} bytes per token of hidden states against 384 of top 64 and about 60 of draws"
    cost = f"the teacher's head would add {100 * extra:.1f} % to the student's compute"
    if extra < 0.05 and 2 * hidden <= 384:
        return HiddenPayload(kind="hidden"), f"hidden: exact; {sizes}; {cost}"
    if not draws_serve:
        return TopKPayload(kind="top_k"), f"top_k of 64: draws serve soft_cross_entropy alone; {sizes}; {cost}"
    return SampledPayload(kind="sampled"), f"sampled: unbiased and smallest; {sizes}; {cost}"


def serves(stored: Payload, requested: Payload) -> bool:
    """Whether pseudo-targets with the payload `stored` can be read as pseudo-targets with the payload `requested`."""
    if isinstance(stored, TopKPayload) and isinstance(requested, TopKPayload):
        return stored.k >= requested.k
    if isinstance(stored, SampledPayload) and isinstance(requested, SampledPayload):
        return stored.draws == requested.draws
    if isinstance(stored, TextPayload) and isinstance(requested, TextPayload):
        return stored.logprobs or not requested.logprobs
    return requested.kind in ("text", stored.kind)


def encode(pseudo_targets: Sequence[PseudoTarget], payload: Payload) -> dict[str, pa.ListArray]:
    """The columns of VALUES[payload.kind]; each has one list per pseudo-target."""

    def joined(name: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = [np.asarray(pseudo_target.payload[name]) for pseudo_target in pseudo_targets]
        filled = [array for array in arrays if len(array)] or [np.zeros((0, 1), np.int32)]
        return np.concatenate(filled), np.array([array.size for array in arrays])

    def column(name: str, values: np.ndarray, sizes: np.ndarray) -> pa.ListArray:
        return list_array(name, values, sizes, VALUES[payload.kind][name])

    if payload.kind == "top_k":
        (ids, sizes), (logprobs, _) = joined("top_ids"), joined("top_logprobs")
        halves = np.clip(logprobs, LEAST, 0).astype(np.float16).view(np.uint16)
        # id and log-probability packed in a number: one sort of numbers is far faster than argsort
        packed = np.sort(ids.astype(np.int64) << 16 | halves, axis=1)
        gaps, sorted_logprobs = np.diff(packed >> 16, axis=1, prepend=0), packed.astype(np.uint16).view(np.float16)
        return {
            "top_ids": column("top_ids", gaps, sizes),
            "top_logprobs": column("top_logprobs", sorted_logprobs, sizes),
        }
    if payload.kind == "sampled":
        (ids, sizes), (counts, _), (lengths, positions) = (joined(name) for name in VALUES["sampled"])
        gaps, starts = np.diff(ids.ravel(), prepend=0), _starts(lengths)
        gaps[starts] = ids.ravel()[starts]
        return {
            "sampled_ids": column("sampled_ids", gaps, sizes),
            "sampled_counts": column("sampled_counts", counts, sizes),
            "sampled_lengths": column("sampled_lengths", lengths, positions),
        }
    return {name: column(name, *joined(name)) for name in VALUES[payload.kind]}


def decode(rows: pa.Table, wanted: Payload) -> pa.Table:
    """The rows with their payload columns decoded to flat lists, as the engine returned them; others are unchanged.

    top_ids list<int32> and top_logprobs list<float32> have the most likely token first, and are cut to the k of
    `wanted`, or to the vocabulary if that is smaller. sampled_ids list<int32> become ids again. A column must come with
    the columns that NEEDS names for it.
    """
    if "top_ids" in rows.column_names:
        width = int(rows.schema.metadata[b"width"])
        (gaps, offsets), (halves, _) = ragged(rows["top_ids"]), ragged(rows["top_logprobs"])
        k = min(width, wanted.k) if isinstance(wanted, TopKPayload) else width
        ids = np.cumsum(gaps.reshape(-1, width), axis=1, dtype=np.int64)
        # the bits of a negative half are larger the lower it is, so the most likely token is sorted first
        packed = np.sort(halves.view(np.uint16).reshape(-1, width).astype(np.int64) << 32 | ids, axis=1)[:, :k]
        logprobs = (packed >> 32).astype(np.uint16).view(np.float16)
        sizes = np.diff(offsets) // width * k
        rows = _replace(rows, "top_ids", list_array("top_ids", packed & 0xFFFFFFFF, sizes, pa.int32()))
        rows = _replace(rows, "top_logprobs", list_array("top_logprobs", logprobs, sizes, pa.float32()))
    if "sampled_ids" in rows.column_names:
        (gaps, offsets), (lengths, _) = ragged(rows["sampled_ids"]), ragged(rows["sampled_lengths"])
        total, starts = np.cumsum(gaps, dtype=np.int64), _starts(lengths)
        before = np.repeat(total[starts] - gaps[starts], lengths[lengths > 0])
        rows = _replace(rows, "sampled_ids", list_array("sampled_ids", total - before, np.diff(offsets), pa.int32()))
    return rows


def faults(rows: pa.Table) -> list[str]:
    """A line for each list column whose lists do not all fit the number of tokens; it names the first such row."""
    columns = {field.name: ragged(rows[field.name]) for field in rows.schema if pa.types.is_list(field.type)}
    sizes = {name: column.lengths() for name, column in columns.items()}
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
        lengths, offsets = columns["sampled_lengths"]
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        expected = ends[offsets[1:]] - ends[offsets[:-1]]
        for name in ("sampled_ids", "sampled_counts"):
            check(name, expected, sizes[name] != expected)
    return lines


def _starts(lengths: np.ndarray) -> np.ndarray:
    """The index of the first value of each position that has values."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return (ends - lengths)[lengths > 0]


def _replace(rows: pa.Table, name: str, column: pa.ListArray) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, column)
