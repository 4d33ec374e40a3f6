"""What the loop is fed: encoded rows as planned global batches, each cut for workers and micro-batches, made ahead.

The plan is a pure function of the rows, the seed and the cursor. It does not depend on the number of workers, on how
batches are cut, or on when rows came to be there.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from raykd import batches, encoded, heads
from raykd.encoded import Set
from raykd.errors import DataError
from raykd.losses.tokens import IGNORE
from raykd.recipe import Task, Training
from raykd.sequences import chosen

AHEAD = 2  # global batches that are ready before they are asked for
PATIENCE = 5.0  # seconds for the thread that makes them to end; it may be waiting for a teacher


class Cursor(NamedTuple):
    """The next batch: of an epoch, of a window of it where the first epoch follows a teacher, and its number."""

    epoch: int = 0
    window: int = 0
    at: int = 0


@dataclass
class Micro:
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
class Batch:
    """A global batch, as one worker sees it: its own micro-batches, and what they are to be divided by.

    tokens  target tokens of all workers; rows  of all workers; padded, real  tokens of both sides, of all workers
    weight  what tokens, or sequences, of all workers count for together: what a term is divided by
    way     epochs that are over after this batch; next  the cursor after it
    """

    found: Set
    targets: np.ndarray
    micros: list[Micro]
    tokens: int
    rows: int
    weight: float
    padded: int
    real: int
    way: float
    next: Cursor


class Lengths(NamedTuple):
    """How padding is counted: by side for an encoder-decoder and an encoder with a head, else both in one."""

    sides: bool
    task: Task = "generation"

    def of(self, found: Set, targets: np.ndarray) -> np.ndarray:
        """(N, 2) or (N, 1) tokens."""
        both = [found.source_lengths[found.row_of[targets]], found.target_lengths[targets]]
        return np.stack(both if self.sides else [both[0] + both[1] - 1], axis=1)


class Encoding:
    """A source's stream of chunks: made by the first worker's thread unless it is there, read by every worker."""

    def __init__(self, path: Path, first: bool, make: Callable[[Path], Any], agree: Callable[[Any], Any]):
        self.path, self.error = path, None
        self.part = agree(path if encoded.complete(path) else path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
        self.thread = None
        if self.part != path and first:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.thread = threading.Thread(target=self._make, args=(make,), daemon=True)
            self.thread.start()
        self.reader = encoded.Reader(self.part, path)

    def _make(self, make: Callable[[Path], Any]) -> None:
        try:
            make(self.part)
        except BaseException as error:
            self.error = error
            self.part.unlink(missing_ok=True)
            return
        self.part.with_suffix(".json").replace(self.path.with_suffix(".json"))
        self.part.replace(self.path)

    def alive(self) -> None:
        """Raises what ended the making."""
        if self.error:
            raise self.error

    def about(self) -> dict[str, Any]:
        """What was met on the way, once all of it is there."""
        if self.thread:
            self.thread.join()
            self.alive()
        return encoded.about(self.path)


class Plan:
    """The global batches of a training, from a cursor on, for ever.

    In a first epoch that follows a teacher they are planned chunk by chunk as the stream brings them; else over all.
    dev is (set, targets) to judge by: of `dev`, or rows held out.
    """

    def __init__(
        self, encoding: Encoding, training: Training, seed: int, sides: bool, chunks: int | None, dev: Encoding | None
    ):
        """`chunks`: how many the stream will have, where the first epoch follows it."""
        self.encoding, self.training, self.seed, self.lengths = encoding, training, seed, Lengths(sides)
        self.follows, self.windows, self.found = chunks is not None, chunks, None
        self.chunks: list[encoded.Chunk] = []
        self.epoch_batches = 0
        if self.follows:
            while not any(chunk.rows for chunk in self.chunks):
                self._wait()
        else:
            self.chunks = encoding.reader.all(encoding.alive)
        self.judging = next((i for i, chunk in enumerate(self.chunks) if chunk.rows), 0)  # whose rows are held out
        first = Set(self.chunks[: self.judging + 1] if self.follows else self.chunks)
        self.held = np.zeros(0, np.int64)
        if dev:
            judged = Set(dev.reader.all(dev.alive))
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

    def from_(self, cursor: Cursor) -> Iterator[tuple[Set, np.ndarray, float, Cursor]]:
        """(set, its targets, way, next cursor) of each global batch."""
        while True:
            found, planned = self._planned(cursor)
            windows = self.windows if self._window(cursor) else 1
            assert windows is not None
            for at in range(cursor.at, len(planned)):
                way = cursor.epoch + (cursor.window + (at + 1) / len(planned)) / windows
                done = at + 1 == len(planned)
                if not done:
                    after = cursor._replace(at=at + 1)
                elif cursor.window + 1 < windows:
                    after = Cursor(cursor.epoch, cursor.window + 1)
                else:
                    after = Cursor(cursor.epoch + 1)
                yield found, planned[at], way, after
            cursor = (
                Cursor(cursor.epoch, cursor.window + 1) if cursor.window + 1 < windows else Cursor(cursor.epoch + 1)
            )

    def _window(self, cursor: Cursor) -> bool:
        return self.follows and cursor.epoch == 0

    def _planned(self, cursor: Cursor) -> tuple[Set, list[np.ndarray]]:
        if self._window(cursor):
            while len(self.chunks) <= cursor.window:
                self._wait()
            found = Set(self.chunks[cursor.window : cursor.window + 1])
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

    def _chosen(self, found: Set, rows: np.ndarray, epoch: int) -> np.ndarray:
        return chosen(found, rows, self.training.sequences, self.seed, epoch)

    def _whole(self) -> Set:
        if self.found is None:
            self.chunks += self.encoding.reader.all(self.encoding.alive)
            self.found = Set(self.chunks)
        return self.found

    def _wait(self) -> None:
        self.encoding.alive()
        new = self.encoding.reader.more()
        self.chunks += new
        if not new and self.encoding.reader.over:
            raise DataError("no rows to train on")
        if not new:
            threading.Event().wait(0.05)


def _held(found: Set, count: int, seed: int) -> np.ndarray:
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


class Loader:
    """Batches of a plan as tensors, made by a thread while the loop computes."""

    def __init__(self, plan: Plan, cutter: Cutter, cursor: Cursor, prepare: Callable[[Micro], None]):
        self.plan, self.cutter, self.cursor, self.prepare = plan, cutter, cursor, prepare
        self.ready: queue.Queue[Any] = queue.Queue(AHEAD)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Iterator[Batch]:
        self.thread.start()
        return iter(self._next, None)

    def __exit__(self, *error) -> None:
        self.over.set()
        until = time.monotonic() + PATIENCE
        while self.thread.is_alive() and time.monotonic() < until:
            try:
                self.ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _next(self) -> Batch:
        got = self.ready.get()
        if isinstance(got, BaseException):
            raise got
        return got

    def _work(self) -> None:
        try:
            for found, targets, way, after in self.plan.from_(self.cursor):
                batch = self.cutter.batch(found, targets, way, after)
                for micro in batch.micros:
                    self.prepare(micro)
                if self._put(batch):
                    return
        except BaseException as error:  # the loop raises it
            self._put(error)

    def _put(self, thing: Any) -> bool:
        """Whether the loop is over."""
        while not self.over.is_set():
            try:
                self.ready.put(thing, timeout=0.1)
                return False
            except queue.Full:
                continue
        return True


@dataclass(frozen=True)
class Cutter:
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

    def batch(self, found: Set, targets: np.ndarray, way: float, after: Cursor) -> Batch:
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
        return Batch(found, targets, micros, *counts, way, after)

    def micro(self, found: Set, targets: np.ndarray, silent: bool = False) -> Micro:
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
        return Micro(targets, tensors, labels, weights, teacher, payload)

    def _weights(self, found: Set, targets: np.ndarray) -> torch.Tensor | None:
        """What each token counts for; None where all count for 1."""
        sizes, weights = found.target_lengths[targets], found.weights[targets].astype(np.float64)
        if self.training.reduction == "sequences":
            weights = weights / sizes
        return None if (weights == 1).all() else torch.from_numpy(np.repeat(weights, sizes))

    def _tensors(self, sources: list[np.ndarray], answers: list[np.ndarray], pad: int) -> dict[str, torch.Tensor]:
        if self.lengths.task == "generation":
            return batches.collate(sources, answers, pad, not self.lengths.sides)
        return {**batches.pad_right(sources, pad), "labels": heads.tensor(self.lengths.task, answers)}

    def _payload(self, found: Set, targets: np.ndarray) -> dict[str, torch.Tensor]:
        """What the store kept of the targets, a row for each token."""
        names = found.chunks[0].payload if found.chunks and self.training.needs_teacher() else {}
        return {name: torch.from_numpy(found.payload(name, targets).copy()) for name in names}


def each(found: Set, targets: np.ndarray, cutter: Cutter) -> Iterator[Micro]:
    """The dev rows of a worker, in micro-batches, by length; every worker gets as many where they must be equal."""
    lengths = cutter.lengths.of(found, targets)
    budget = cutter.training.micro_batch_tokens or cutter.training.batch_tokens
    pieces = batches.by_length(lengths.sum(axis=1).tolist(), budget)
    mine = pieces[cutter.rank :: cutter.world]
    for piece in mine:
        yield cutter.micro(found, targets[piece])
    if cutter.equal and len(mine) < -(-len(pieces) // cutter.world):
        yield cutter.micro(found, targets[:1], silent=True)
