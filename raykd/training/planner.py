"""What the loop is fed: encoded rows as planned global batches, each cut for workers and micro-batches, made ahead.

The plan is a pure function of the rows, the seed and the cursor. It does not depend on the number of workers, on how
batches are cut, or on when rows came to be there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from raykd.errors import DataError
from raykd.recipe.models import Task
from raykd.recipe.training import Training
from raykd.training import batches
from raykd.training.dataset import Chunk, EncodedDataset, EncodedStream
from raykd.training.sequences import targets_of_epoch


class Cursor(NamedTuple):
    """The next batch: of an epoch, of a window of it where the first epoch follows a teacher, and its number."""

    epoch: int = 0
    window: int = 0
    at: int = 0


class Lengths(NamedTuple):
    """How padding is counted: by side for an encoder-decoder and an encoder with a head, else both in one."""

    sides: bool
    task: Task = "generation"

    def of(self, found: EncodedDataset, targets: np.ndarray) -> np.ndarray:
        """(N, 2) or (N, 1) tokens."""
        both = [found.source_lengths[found.row_of[targets]], found.target_lengths[targets]]
        return np.stack(both if self.sides else [both[0] + both[1] - 1], axis=1)


class BatchPlan:
    """The global batches of a training, from a cursor on, for ever.

    In a first epoch that follows a teacher they are planned chunk by chunk as the stream brings them; else over all.
    dev is (set, targets) to judge by: of `dev`, or rows held out.
    """

    def __init__(
        self,
        encoding: EncodedStream,
        training: Training,
        seed: int,
        sides: bool,
        chunks: int | None,
        dev: EncodedStream | None,
    ):
        """`chunks`: how many the stream will have, where the first epoch follows it."""
        self.encoding, self.training, self.seed, self.lengths = encoding, training, seed, Lengths(sides)
        self.follows, self.windows, self.found = chunks is not None, chunks, None
        self.chunks: list[Chunk] = []
        self.epoch_batches = 0
        if self.follows:
            while not any(chunk.rows for chunk in self.chunks):
                self._wait()
        else:
            self.chunks = encoding.reader.all(encoding.alive)
        self.judging = next((i for i, chunk in enumerate(self.chunks) if chunk.rows), 0)  # whose rows are held out
        first = EncodedDataset(self.chunks[: self.judging + 1] if self.follows else self.chunks)
        self.held = np.zeros(0, np.int64)
        if dev:
            judged = EncodedDataset(dev.reader.all(dev.alive))
            self.dev = (judged, judged.first[:-1])
        else:
            self.held = _held(first, max(1, round(training.holdout * len(first))), seed)
            self.dev = (first, self._chosen(first, self.held, 0))
        if not len(self.dev[1]) or len(first) <= len(self.held):
            counts = f"{len(first) - len(self.held)} rows to train on and {len(self.dev[1])} to judge by"
            raise DataError(f"{counts} are too few")
        if not self.follows:
            self._whole()
            self.epoch_batches = len(self._planned(Cursor())[1])

    @property
    def rows(self) -> int:
        """Rows to train on that are known so far."""
        return sum(chunk.rows for chunk in self.chunks) - len(self.held)

    def from_(self, cursor: Cursor) -> Iterator[tuple[EncodedDataset, np.ndarray, float, Cursor]]:
        """(set, its targets, epoch_progress, next cursor) of each global batch."""
        while True:
            found, planned = self._planned(cursor)
            windows = self.windows if self._window(cursor) else 1
            assert windows is not None
            for at in range(cursor.at, len(planned)):
                epoch_progress = cursor.epoch + (cursor.window + (at + 1) / len(planned)) / windows
                done = at + 1 == len(planned)
                if not done:
                    after = cursor._replace(at=at + 1)
                elif cursor.window + 1 < windows:
                    after = Cursor(cursor.epoch, cursor.window + 1)
                else:
                    after = Cursor(cursor.epoch + 1)
                yield found, planned[at], epoch_progress, after
            cursor = (
                Cursor(cursor.epoch, cursor.window + 1) if cursor.window + 1 < windows else Cursor(cursor.epoch + 1)
            )

    def _window(self, cursor: Cursor) -> bool:
        return self.follows and cursor.epoch == 0

    def _planned(self, cursor: Cursor) -> tuple[EncodedDataset, list[np.ndarray]]:
        if self._window(cursor):
            while len(self.chunks) <= cursor.window:
                self._wait()
            found = EncodedDataset(self.chunks[cursor.window : cursor.window + 1])
            held = self.held if cursor.window == self.judging else self.held[:0]
            rows = np.setdiff1d(np.arange(len(found)), held)
        else:
            found = self._whole()
            rows = np.setdiff1d(np.arange(len(found)), self.held)
        targets = self._chosen(found, rows, cursor.epoch)
        if not len(targets):
            return found, []
        lengths, budget = self.lengths.of(found, targets), self.training.batch_tokens
        planned = batches.plan(lengths, budget, self.seed, cursor.epoch, cursor.window)
        return found, [targets[batch] for batch in planned]

    def _chosen(self, found: EncodedDataset, rows: np.ndarray, epoch: int) -> np.ndarray:
        return targets_of_epoch(found, rows, self.training.sequences, self.seed, epoch)

    def _whole(self) -> EncodedDataset:
        if self.found is None:
            self.chunks += self.encoding.reader.all(self.encoding.alive)
            self.found = EncodedDataset(self.chunks)
        return self.found

    def _wait(self) -> None:
        self.encoding.alive()
        new = self.encoding.reader.more()
        self.chunks += new
        if not new and self.encoding.reader.over:
            raise DataError("no rows to train on")
        if not new:
            threading.Event().wait(0.05)


def _held(found: EncodedDataset, count: int, seed: int) -> np.ndarray:
    """Some `count` rows at random, rising: all those of an input or none, and of what counts for nothing none."""
    hashes = np.fromiter(map(hash, found.sources()), np.int64, len(found))  # another process has others
    _, inputs = np.unique(hashes, return_inverse=True)
    counts = np.diff(np.concatenate([[0.0], np.cumsum(found.weights, dtype=np.float64)])[found.first]) > 0
    order = np.random.default_rng([seed, 17]).permutation(len(found))
    order = order[counts[order]]
    _, at = np.unique(inputs[order], return_index=True)
    drawn = inputs[order[np.sort(at)]]  # each input once, in the order of its first row
    ends = np.cumsum(np.bincount(inputs)[drawn])
    return np.flatnonzero(np.isin(inputs, drawn[: 1 + np.searchsorted(ends, count)]))
