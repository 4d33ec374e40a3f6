"""Rows in batches of a token budget, and batches as padded tensors.

The plan is a pure function of lengths, budget, seed and epoch, so that a resumed training has the same batches.
"""

from __future__ import annotations

import numpy as np
import torch

from raykd.losses.tokens import IGNORE

WINDOW = 32  # batches that are shuffled together and then sorted by length


def plan(lengths: np.ndarray, budget: int, seed: int, epoch: int, part: int = 0) -> list[np.ndarray]:
    """The global batches of an epoch, or of a part of it, as arrays of row numbers; every row is in exactly one.

    lengths is (rows, k): a row's tokens, of input and target apart where each is padded on its own. A batch's padded
    size, its rows times the sum over k of the longest, is at most `budget`, unless a single row is longer.
    """
    rng = np.random.default_rng([seed, epoch, *([part] if part else [])])
    order = rng.permutation(len(lengths))
    per_batch = max(1, int(budget / max(lengths.sum(axis=1).mean(), 1)))
    batches = []
    for start in range(0, len(order), per_batch * WINDOW):
        window = order[start : start + per_batch * WINDOW]
        window = window[np.lexsort(lengths[window].T)]
        batches += _cut(window, lengths, budget)
    return [batches[i] for i in rng.permutation(len(batches))]


def _cut(rows: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Consecutive rows in pieces whose padded size is within the budget."""
    pieces, start, longest = [], 0, np.zeros(lengths.shape[1], dtype=int)
    for at, row in enumerate(rows):
        grown = np.maximum(longest, lengths[row])
        if at > start and int(grown.sum()) * (at - start + 1) > budget:
            pieces.append(rows[start:at])
            start, grown = at, lengths[row]
        longest = grown
    return [*pieces, rows[start:]]


def by_length(lengths: list[int], budget: int) -> list[np.ndarray]:
    """Row numbers, longest first, in batches of at most `budget` padded tokens: for generation."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return _cut(order, np.asarray(lengths)[:, None], budget) if len(order) else []


def pieces(rows: np.ndarray, lengths: np.ndarray, budget: int | None) -> list[np.ndarray]:
    """Row numbers in micro-batches of at most `budget` padded tokens each; without a budget a single one."""
    return _cut(rows, lengths, budget) if budget and len(rows) else [rows]


def collate(sources: list, targets: list, pad: int, causal: bool) -> dict[str, torch.Tensor]:
    """Tensors of a batch of input ids and target ids: input_ids_BS, attention_mask_BS, labels_BT.

    A causal model reads input and target as one sequence and learns the target only. Its labels are already shifted:
    labels[:, t] is what logits[:, t] must predict, as for an encoder-decoder.
    """
    if causal:
        rows = list(zip(sources, targets, strict=True))
        inputs = [np.concatenate([source, target[:-1]]) for source, target in rows]
        labels = [np.concatenate([np.full(len(source) - 1, IGNORE), target]) for source, target in rows]
    else:
        inputs, labels = sources, targets
    return {**pad_right(inputs, pad), "labels": _pad(labels, IGNORE)}


def pad_left(rows: list, pad: int) -> dict[str, torch.Tensor]:
    """Prompts for a causal model's generation: input_ids_BS and attention_mask_BS, padded on the left."""
    reversed_rows = pad_right([row[::-1] for row in rows], pad)
    return {name: tensor.flip(1) for name, tensor in reversed_rows.items()}


def pad_right(rows: list, pad: int) -> dict[str, torch.Tensor]:
    """Prompts for an encoder: input_ids_BS and attention_mask_BS."""
    return {"input_ids": _pad(rows, pad), "attention_mask": _mask([len(row) for row in rows])}


def _mask(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


def _pad(rows: list, value: int) -> torch.Tensor:
    padded = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row
    return torch.from_numpy(padded)
