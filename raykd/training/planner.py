"""The plan of a training: which targets each global batch holds.

The plan is a pure function of the rows, the seed and the cursor. It does not depend on the number of workers, on how
batches are cut into micro-batches, or on when rows were written.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from raykd.errors import DataError
from raykd.recipe.models import Task
from raykd.recipe.training import Training
from raykd.training import batches
from raykd.training.dataset import Chunk, EncodedDataset, EncodedStream
from raykd.training.sequences import Targets, targets_of_epoch, targets_of_step


class Cursor(NamedTuple):
    """The position of the next batch: epoch, window (only a first epoch that follows has several), number there."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


class Lengths(NamedTuple):
    """The rule by which padded lengths are counted.

    apart  input and target are padded separately, as for an encoder-decoder or an encoder with a head; False for a
           causal model, which reads both as one sequence
    """

    apart: bool
    task: Task = "generation"

    def of(self, dataset: EncodedDataset, targets: np.ndarray, outputs: np.ndarray | None = None) -> np.ndarray:
        """(N, 2) tokens of inputs and targets, or (N, 1) tokens of both together.

        `outputs` are (N,) tokens of what is learnt in the targets' place, where that is known.
        """
        inputs = dataset.source_lengths[dataset.row_of[targets]]
        outputs = dataset.target_lengths[targets] if outputs is None else outputs
        return np.stack([inputs, outputs] if self.apart else [inputs + outputs - 1], axis=1)


class DevRows(NamedTuple):
    """Rows to evaluate on: a dataset, and the numbers of the targets that are evaluated."""

    dataset: EncodedDataset
    targets: np.ndarray


class PlannedBatch(NamedTuple):
    """A global batch: a dataset's targets, the optimizer step, and the epochs done and the cursor after the batch."""

    dataset: EncodedDataset
    targets: Targets
    step: int
    epoch_progress: float
    next_cursor: Cursor


class BatchPlan:
    """The endless sequence of a training's global batches, which can begin at any cursor.

    A first epoch that follows a teacher is planned window by window: each chunk of the stream, as it is written, is a
    window. Every other epoch is planned over all rows at once.

    dev            rows to evaluate on: those of the dev stream, or rows held out
    held_out       numbers of the rows held out; in a followed stream they are in its first chunk that has rows
    epoch_batches  batches of an epoch; 0 where the first one follows a teacher
    """

    def __init__(
        self,
        stream: EncodedStream,
        training: Training,
        seed: int,
        lengths: Lengths,
        windows: int | None = None,
        dev: EncodedStream | None = None,
    ):
        """`windows`: the number of chunks that the stream will have, if the first epoch follows it; else None.

        Raises DataError for too few rows.
        """
        self.stream, self.training, self.seed, self.lengths = stream, training, seed, lengths
        self.follows, self.windows, self.epoch_batches = windows is not None, windows or 1, 0
        self.chunks: list[Chunk] = []
        self.dataset: EncodedDataset | None = None  # of the whole stream
        if self.follows:
            while not any(chunk.rows for chunk in self.chunks):
                self._wait()
        else:
            self.chunks = stream.reader.all(stream.alive)
        self.held_out_window = next((i for i, chunk in enumerate(self.chunks) if chunk.rows), 0)
        first = EncodedDataset(self.chunks[: self.held_out_window + 1] if self.follows else self.chunks)
        self.held_out = np.zeros(0, np.int64)
        if dev:
            dataset = EncodedDataset(dev.reader.all(dev.alive))
            self.dev = DevRows(dataset, dataset.first[:-1])
        else:
            self.held_out = held_out_rows(first, max(1, round(training.holdout * len(first))), seed)
            self.dev = DevRows(first, self._targets(first, self.held_out, 0).numbers)
        if not len(self.dev.targets) or len(first) <= len(self.held_out):
            counts = f"{len(first) - len(self.held_out)} rows to train on and {len(self.dev.targets)} to judge by"
            raise DataError(f"{counts} are too few")
        if not self.follows:
            self.epoch_batches = len(self._planned(Cursor())[1])

    @property
    def rows(self) -> int:
        """The number of rows to train on, as far as the stream was read."""
        return sum(chunk.rows for chunk in self.chunks) - len(self.held_out)

    def batches_from(self, cursor: Cursor, step: int = 0) -> Iterator[PlannedBatch]:
        """The global batches from a cursor on, of the optimizer steps from `step` on; never ends.

        Waits for rows of a stream that is followed.
        """
        steps = itertools.count(step)
        while True:
            dataset, planned = self._planned(cursor)
            windows = self.windows if self._follows(cursor) else 1
            after_window = Cursor(cursor.epoch + 1)
            if cursor.window + 1 < windows:
                after_window = Cursor(cursor.epoch, cursor.window + 1)
            for number in range(cursor.batch, len(planned)):
                epoch_progress = cursor.epoch + (cursor.window + (number + 1) / len(planned)) / windows
                last = number + 1 == len(planned)
                after = after_window if last else cursor._replace(batch=number + 1)
                step = next(steps)
                yield PlannedBatch(
                    dataset=dataset,
                    targets=self._of_step(dataset, planned[number], step, cursor.epoch),
                    step=step,
                    epoch_progress=epoch_progress,
                    next_cursor=after,
                )
            cursor = after_window

    def _follows(self, cursor: Cursor) -> bool:
        return self.follows and cursor.epoch == 0

    def _planned(self, cursor: Cursor) -> tuple[EncodedDataset, list[Targets]]:
        """The batches of the cursor's window, or of its epoch, as the dataset's targets."""
        if self._follows(cursor):
            while len(self.chunks) <= cursor.window:
                self._wait()
            dataset = EncodedDataset(self.chunks[cursor.window : cursor.window + 1])
            held_out = self.held_out if cursor.window == self.held_out_window else self.held_out[:0]
        else:
            dataset, held_out = self._whole(), self.held_out
        rows = np.setdiff1d(np.arange(len(dataset)), held_out)
        targets = self._targets(dataset, rows, cursor.epoch)
        if not len(targets.numbers):
            return dataset, []
        lengths, budget = self.lengths.of(dataset, targets.numbers), self.training.batch_tokens
        planned = batches.plan(lengths, budget, self.seed, cursor.epoch, cursor.window)
        return dataset, [Targets(targets.numbers[batch], targets.sampled[batch]) for batch in planned]

    def _targets(self, dataset: EncodedDataset, rows: np.ndarray, epoch: int) -> Targets:
        return targets_of_epoch(dataset, rows, self.training.sequences, self.seed, epoch)

    def _of_step(self, dataset: EncodedDataset, targets: Targets, step: int, epoch: int) -> Targets:
        return targets_of_step(dataset, targets, self.training.sequences, self.seed, step, epoch)

    def _whole(self) -> EncodedDataset:
        """All rows of the stream; waits for them."""
        if self.dataset is None:
            self.chunks += self.stream.reader.all(self.stream.alive)
            self.dataset = EncodedDataset(self.chunks)
        return self.dataset

    def _wait(self) -> None:
        """Read new chunks of the stream, or wait a moment if there are none. Raises DataError at the stream's end."""
        self.stream.alive()
        new = self.stream.reader.more()
        self.chunks += new
        if not new and self.stream.reader.at_end:
            raise DataError("no rows to train on")
        if not new:
            threading.Event().wait(0.05)


def held_out_rows(dataset: EncodedDataset, count: int, seed: int) -> np.ndarray:
    """Rising numbers of about `count` random rows: all rows of an input or none, and only rows of weight above 0."""
    hashes = np.fromiter(map(hash, dataset.sources()), np.int64, len(dataset))  # random per process
    _, inputs = np.unique(hashes, return_inverse=True)
    counts = np.diff(np.concatenate([[0.0], np.cumsum(dataset.weights, dtype=np.float64)])[dataset.first]) > 0
    order = np.random.default_rng([seed, 17]).permutation(len(dataset))
    order = order[counts[order]]
    _, at = np.unique(inputs[order], return_index=True)
    drawn = inputs[order[np.sort(at)]]  # each input once, in the order of its first row
    ends = np.cumsum(np.bincount(inputs)[drawn])
    return np.flatnonzero(np.isin(inputs, drawn[: 1 + np.searchsorted(ends, count)]))
