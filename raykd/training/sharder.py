"""A planned global batch, cut for workers and micro-batches, as tensors."""

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
from raykd.training.planner import Cursor, DevRows, Lengths, PlannedBatch


@dataclass
class MicroBatch:
    """The B rows that a worker computes at once. K are its target tokens, row by row.

    inputs     what the student takes: input_ids (B, S) and attention_mask (B, S)
    labels_BT  target ids aligned with the student's logits; IGNORE elsewhere. Other tasks: see `Student.forward`
    weights_K  what each token counts for; None: 1
    teacher    the same rows as a teacher that reads along takes them, their labels (B, T) included
    payload    by name, what the store kept of the targets, (K, ...) flat
    request    what a scorer returned when it was asked for the teacher's outputs
    """

    inputs: dict[str, torch.Tensor]
    labels_BT: torch.Tensor
    weights_K: torch.Tensor | None
    teacher: dict[str, torch.Tensor] | None
    payload: dict[str, torch.Tensor]
    request: Any = None


@dataclass
class GlobalBatch:
    """A global batch as one worker sees it: its own micro-batches, and counts of all workers.

    targets         numbers of the dataset's targets, of all workers
    tokens, rows    target tokens, and rows
    weight          what tokens, or sequences, count for together: what a loss term is divided by
    padded_tokens   tokens of inputs and targets with padding; real_tokens: without
    epoch_progress  epochs done after this batch; next_cursor: the cursor after it
    """

    dataset: EncodedDataset
    targets: np.ndarray
    micro_batches: list[MicroBatch]
    tokens: int
    rows: int
    weight: float
    padded_tokens: int
    real_tokens: int
    epoch_progress: float
    next_cursor: Cursor


@dataclass(frozen=True)
class BatchSharder:
    """Cuts global batches: worker `rank` of `world` gets every world-th row, in micro-batches of its token budget.

    pad, teacher_pad  the padding token; teacher_pad: of a teacher that reads along
    equal             every worker gets as many micro-batches as the one with most, some of them without a target
    """

    rank: int
    world: int
    training: Training
    lengths: Lengths
    pad: int
    teacher_pad: int | None = None
    equal: bool = False

    def batch(self, planned: PlannedBatch) -> GlobalBatch:
        """This worker's part of a global batch: one micro-batch at least, which may be silent."""
        dataset, targets = planned.dataset, planned.targets
        lengths, budget = self.lengths.of(dataset, targets), self.training.micro_batch_tokens
        numbers = np.arange(len(targets))
        pieces_by_worker = [batches.pieces(numbers[rank :: self.world], lengths, budget) for rank in range(self.world)]
        micro_batches = [
            self.micro_batch(dataset, targets[piece]) for piece in pieces_by_worker[self.rank] if len(piece)
        ]
        least = max(map(len, pieces_by_worker)) if self.equal else 1
        while len(micro_batches) < least:
            micro_batches.append(self.micro_batch(dataset, targets[:1], silent=True))
        pieces = [piece for worker in pieces_by_worker for piece in worker if len(piece)]
        sizes, weights = dataset.target_lengths[targets], dataset.weights[targets].astype(np.float64)
        return GlobalBatch(
            dataset=dataset,
            targets=targets,
            micro_batches=micro_batches,
            tokens=int(sizes.sum()),
            rows=len(targets),
            weight=float((weights * sizes if self.training.reduction == "tokens" else weights).sum()),
            padded_tokens=sum(len(piece) * int(lengths[piece].max(axis=0).sum()) for piece in pieces),
            real_tokens=int(lengths.sum()),
            epoch_progress=planned.epoch_progress,
            next_cursor=planned.next_cursor,
        )

    def micro_batch(self, dataset: EncodedDataset, targets: np.ndarray, silent: bool = False) -> MicroBatch:
        """The tensors of some targets. A silent one has no label: it takes part in the step and teaches nothing."""
        rows, target_ids = dataset.row_of[targets], [dataset.target(number) for number in targets]
        inputs = self._tensors([dataset.source(row) for row in rows], target_ids, self.pad)
        teacher = None
        if self.teacher_pad is not None:
            teacher = self._tensors([dataset.teacher(row) for row in rows], target_ids, self.teacher_pad)
        if silent:
            for tensors in (inputs, *([teacher] if teacher else [])):
                tensors["labels"] = torch.full_like(tensors["labels"], IGNORE)
        return MicroBatch(
            labels_BT=inputs.pop("labels"),
            inputs=inputs,
            weights_K=None if silent else self._weights(dataset, targets),
            teacher=teacher,
            payload={} if silent else self._payload(dataset, targets),
        )

    def _weights(self, dataset: EncodedDataset, targets: np.ndarray) -> torch.Tensor | None:
        """(K,) what each token counts for; None where all count for 1."""
        sizes, weights = dataset.target_lengths[targets], dataset.weights[targets].astype(np.float64)
        if self.training.reduction == "sequences":
            weights = weights / sizes
        return None if (weights == 1).all() else torch.from_numpy(np.repeat(weights, sizes))

    def _tensors(self, sources: list[np.ndarray], target_ids: list[np.ndarray], pad: int) -> dict[str, torch.Tensor]:
        """A model's inputs, and its labels."""
        if self.lengths.task == "generation":
            return batches.collate(sources, target_ids, pad, causal=not self.lengths.apart)
        labels = task_heads.target_tensor(self.lengths.task, target_ids)
        return {**batches.pad_right(sources, pad), "labels": labels}

    def _payload(self, dataset: EncodedDataset, targets: np.ndarray) -> dict[str, torch.Tensor]:
        """By name what the store kept of the targets, one token after the other."""
        names = dataset.chunks[0].payload if dataset.chunks and self.training.needs_teacher() else {}
        return {name: torch.from_numpy(dataset.payload(name, targets).copy()) for name in names}


def dev_micro_batches(dev: DevRows, sharder: BatchSharder) -> Iterator[MicroBatch]:
    """The dev rows of a worker, by length; a silent micro-batch at the end where workers need equally many."""
    budget = sharder.training.micro_batch_tokens or sharder.training.batch_tokens
    pieces = batches.by_length(sharder.lengths.of(dev.dataset, dev.targets).sum(axis=1).tolist(), budget)
    own = pieces[sharder.rank :: sharder.world]
    for piece in own:
        yield sharder.micro_batch(dev.dataset, dev.targets[piece])
    if sharder.equal and len(own) < -(-len(pieces) // sharder.world):
        yield sharder.micro_batch(dev.dataset, dev.targets[:1], silent=True)
