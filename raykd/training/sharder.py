"""What the loop is fed: encoded rows as planned global batches, each cut for workers and micro-batches, made ahead.

The plan is a pure function of the rows, the seed and the cursor. It does not depend on the number of workers, on how
batches are cut, or on when rows came to be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raykd.losses.tokens import IGNORE
from raykd.models import task_heads
from raykd.recipe.training import Training
from raykd.training import batches
from raykd.training.dataset import EncodedDataset
from raykd.training.planner import Cursor, Lengths


@dataclass
class MicroBatch:
    """What a worker computes at once. K are its target tokens, row by row.

    teacher   the same rows as the teacher reads them, where it does; payload  what the store kept, (K, ...)
    weights_K what each token counts for; None: 1
    """

    targets: np.ndarray
    inputs: dict[str, torch.Tensor]
    labels_BT: torch.Tensor
    weights_K: torch.Tensor | None
    teacher: dict[str, torch.Tensor] | None
    payload: dict[str, torch.Tensor]
    asked: Any = None  # what a scorer was asked


@dataclass
class GlobalBatch:
    """A global batch, as one worker sees it: its own micro-batches, and what they are to be divided by.

    tokens  target tokens of all workers; rows  of all workers; padded, real  tokens of both sides, of all workers
    weight  what tokens, or sequences, of all workers count for together: what a term is divided by
    epoch_progress     epochs that are over after this batch; next  the cursor after it
    """

    found: EncodedDataset
    targets: np.ndarray
    micros: list[MicroBatch]
    tokens: int
    rows: int
    weight: float
    padded: int
    real: int
    epoch_progress: float
    next: Cursor


@dataclass(frozen=True)
class BatchSharder:
    """Cuts global batches: worker `rank` of `world` gets every world-th row, in micro-batches of its token budget.

    With `equal` every worker gets as many micro-batches as the one with most, some of them without a target.
    """

    rank: int
    world: int
    training: Training
    lengths: Lengths
    pad: int
    teacher_pad: int | None = None
    equal: bool = False

    def batch(self, found: EncodedDataset, targets: np.ndarray, epoch_progress: float, after: Cursor) -> GlobalBatch:
        lengths = self.lengths.of(found, targets)
        budget = self.training.micro_batch_tokens
        cuts = [
            batches.pieces(np.arange(len(targets))[rank :: self.world], lengths, budget) for rank in range(self.world)
        ]
        most = max(len(cut) for cut in cuts)
        micros = [self.micro(found, targets[piece]) for piece in cuts[self.rank] if len(piece)]
        while len(micros) < (most if self.equal else 1):  # it takes part with nothing to say
            micros.append(self.micro(found, targets[:1], silent=True))
        padded = sum(len(p) * int(lengths[p].max(axis=0).sum()) for cut in cuts for p in cut if len(p))
        sizes, weights = found.target_lengths[targets], found.weights[targets].astype(np.float64)
        weight = float((weights * sizes if self.training.reduction == "tokens" else weights).sum())
        counts = int(sizes.sum()), len(targets), weight, padded, int(lengths.sum())
        return GlobalBatch(found, targets, micros, *counts, epoch_progress, after)

    def micro(self, found: EncodedDataset, targets: np.ndarray, silent: bool = False) -> MicroBatch:
        rows = found.row_of[targets]
        answers = [found.target(i) for i in targets]
        tensors = self._tensors([found.source(r) for r in rows], answers, self.pad)
        labels = tensors.pop("labels")
        if silent:
            labels = torch.full_like(labels, IGNORE)
        weights = None if silent else self._weights(found, targets)
        teacher = None
        if self.teacher_pad is not None:
            sources = [found.teacher(r) for r in rows]
            teacher = self._tensors(sources, answers, self.teacher_pad)
            if silent:
                teacher["labels"] = torch.full_like(teacher["labels"], IGNORE)
        payload = {} if silent else self._payload(found, targets)
        return MicroBatch(targets, tensors, labels, weights, teacher, payload)

    def _weights(self, found: EncodedDataset, targets: np.ndarray) -> torch.Tensor | None:
        """What each token counts for; None where all count for 1."""
        sizes, weights = found.target_lengths[targets], found.weights[targets].astype(np.float64)
        if self.training.reduction == "sequences":
            weights = weights / sizes
        return None if (weights == 1).all() else torch.from_numpy(np.repeat(weights, sizes))

    def _tensors(self, sources: list[np.ndarray], answers: list[np.ndarray], pad: int) -> dict[str, torch.Tensor]:
        if self.lengths.task == "generation":
            return batches.collate(sources, answers, pad, not self.lengths.sides)
        return {**batches.pad_right(sources, pad), "labels": task_heads.tensor(self.lengths.task, answers)}

    def _payload(self, found: EncodedDataset, targets: np.ndarray) -> dict[str, torch.Tensor]:
        """What the store kept of the targets, a row for each token."""
        names = found.chunks[0].payload if found.chunks and self.training.needs_teacher() else {}
        return {name: torch.from_numpy(found.payload(name, targets).copy()) for name in names}


def dev_micro_batches(found: EncodedDataset, targets: np.ndarray, cutter: BatchSharder) -> Iterator[MicroBatch]:
    """The dev rows of a worker, in micro-batches, by length; every worker gets as many where they must be equal."""
    lengths = cutter.lengths.of(found, targets)
    budget = cutter.training.micro_batch_tokens or cutter.training.batch_tokens
    pieces = batches.by_length(lengths.sum(axis=1).tolist(), budget)
    mine = pieces[cutter.rank :: cutter.world]
    for piece in mine:
        yield cutter.micro(found, targets[piece])
    if cutter.equal and len(mine) < -(-len(pieces) // cutter.world):
        yield cutter.micro(found, targets[:1], silent=True)
