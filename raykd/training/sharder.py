"""A planned global batch, cut for workers and micro-batches, as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from raykd.losses.tokens import IGNORE
from raykd.models import task_heads
from raykd.recipe.training import Training
from raykd.training import batches
from raykd.training.dataset import EncodedDataset
from raykd.training.planner import Cursor, DevRows, Lengths, PlannedBatch
from raykd.training.samplers import Requests
from raykd.training.sequences import row_seed, sample_names


@dataclass
class MicroBatch:
    """The B rows that a worker computes at once. K are its target tokens, row by row.

    inputs     what the student takes: input_ids (B, S) and attention_mask (B, S)
    labels_BT  target ids aligned with the student's logits; IGNORE elsewhere. Other tasks: see `Student.forward`
    weights_K  what each token counts for; None: 1
    weights_B  what each row counts for in losses on features; 0 in a silent micro-batch
    teacher    the same rows as a teacher that reads along takes them, their labels (B, T) included
    payload    by name, what the store kept of the targets, (K, ...) flat
    sampled    its targets were written during the training
    handle     what the teacher's source returned when it was asked for the outputs
    """

    inputs: dict[str, torch.Tensor]
    labels_BT: torch.Tensor
    weights_K: torch.Tensor | None
    weights_B: torch.Tensor
    teacher: dict[str, torch.Tensor] | None
    payload: dict[str, torch.Tensor]
    sampled: bool = False
    handle: Any = None


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


class Samples(NamedTuple):
    """The samples of a global batch.

    lengths  (S,) tokens of each sample of all workers, in the order of the batch
    own      by place in the batch, the token ids of this worker's
    """

    lengths: np.ndarray
    own: dict[int, np.ndarray]

    def ids(self, places: np.ndarray) -> list[np.ndarray]:
        """The token ids of the samples at some places, which must be this worker's."""
        return [self.own[int(place)] for place in places]


@dataclass(frozen=True)
class BatchSharder:
    """Cuts global batches: worker `rank` of `world` gets every world-th row, in micro-batches of its token budget.

    pad, teacher_pad  the padding token; teacher_pad: of a teacher that reads along
    teacher_apart     a teacher that reads along reads input and target separately, as an encoder-decoder does
    equal             every worker gets as many micro-batches as the one with most, some of them without a target
    """

    rank: int
    world: int
    training: Training
    lengths: Lengths
    pad: int
    teacher_pad: int | None = None
    teacher_apart: bool = False
    equal: bool = False

    def requests(self, planned: PlannedBatch, seed: int) -> Requests:
        """The samples that this worker's rows of a batch need; `seed` is the training's."""
        dataset, (numbers, sampled) = planned.dataset, planned.targets
        own = [int(numbers[i]) for i in range(self.rank, len(numbers), self.world) if sampled[i]]
        names = sample_names(dataset, own)
        return Requests(
            prompts=[dataset.source(int(dataset.row_of[number])) for number in own],
            seeds=[row_seed(seed, planned.step, name) for name in names],
        )

    def batch(self, planned: PlannedBatch, samples: Samples | None = None) -> GlobalBatch:
        """This worker's part of a global batch: one micro-batch at least, which may be silent.

        `samples` are needed where some of the planned targets are written during the training.
        """
        dataset, (targets, sampled) = planned.dataset, planned.targets
        sizes = dataset.target_lengths[targets]
        if samples:
            sizes = sizes.copy()
            sizes[sampled] = samples.lengths
        lengths = self.lengths.of(dataset, targets, sizes)
        pieces_by_worker = [self._pieces(rank, sampled, lengths) for rank in range(self.world)]
        micro_batches = [
            self.micro_batch(dataset, targets[piece], samples.ids(piece) if samples and sampled[piece[0]] else None)
            for piece in pieces_by_worker[self.rank]
        ]
        least = max(map(len, pieces_by_worker)) if self.equal else 1
        while len(micro_batches) < least:
            micro_batches.append(self.micro_batch(dataset, targets[:1], silent=True))
        pieces = [piece for worker in pieces_by_worker for piece in worker]
        weights = dataset.weights[targets].astype(np.float64)
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

    def _pieces(self, rank: int, sampled: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """A worker's micro-batches, as places in the batch. All targets of one are sampled, or none is."""
        places = np.arange(len(sampled))[rank :: self.world]
        budget = self.training.micro_batch_tokens
        by_origin = [places[~sampled[places]], places[sampled[places]]]
        return [piece for own in by_origin if len(own) for piece in batches.pieces(own, lengths, budget)]

    def micro_batch(
        self,
        dataset: EncodedDataset,
        targets: np.ndarray,
        samples: list[np.ndarray] | None = None,
        silent: bool = False,
    ) -> MicroBatch:
        """The tensors of some targets, or of the samples in their place.

        A silent one has no label: it takes part in the step and teaches nothing.
        """
        rows = dataset.row_of[targets]
        target_ids = samples or [dataset.target(number) for number in targets]
        inputs = self._tensors([dataset.source(row) for row in rows], target_ids, self.pad, self.lengths.apart)
        teacher = None
        if self.teacher_pad is not None:
            prompts = [dataset.teacher(row) for row in rows]
            teacher = self._tensors(prompts, target_ids, self.teacher_pad, self.teacher_apart)
        if silent:
            for tensors in (inputs, *([teacher] if teacher else [])):
                tensors["labels"] = torch.full_like(tensors["labels"], IGNORE)
        weights = dataset.weights[targets].astype(np.float64)
        stored = not silent and not samples
        return MicroBatch(
            labels_BT=inputs.pop("labels"),
            inputs=inputs,
            weights_K=None if silent else self._weights(weights, np.array([len(ids) for ids in target_ids])),
            weights_B=torch.zeros(len(rows), dtype=torch.float64) if silent else torch.from_numpy(weights),
            teacher=teacher,
            payload=self._payload(dataset, targets) if stored else {},
            sampled=samples is not None,
        )

    def _weights(self, weights: np.ndarray, sizes: np.ndarray) -> torch.Tensor | None:
        """(K,) what each token counts for; None where all count for 1."""
        if self.training.reduction == "sequences":
            weights = weights / sizes
        return None if (weights == 1).all() else torch.from_numpy(np.repeat(weights, sizes))

    def _tensors(
        self, sources: list[np.ndarray], target_ids: list[np.ndarray], pad: int, apart: bool
    ) -> dict[str, torch.Tensor]:
        """A model's inputs, and its labels; `apart`: it reads input and target separately."""
        if self.lengths.task == "generation":
            return batches.collate(sources, target_ids, pad, causal=not apart)
        labels = task_heads.target_tensor(self.lengths.task, target_ids)
        return {**batches.pad_right(sources, pad), "labels": labels}

    def _payload(self, dataset: EncodedDataset, targets: np.ndarray) -> dict[str, torch.Tensor]:
        """By name what the store kept of the targets, one token after the other."""
        names = dataset.chunks[0].payload if dataset.chunks and self.training.reads_store() else {}
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
