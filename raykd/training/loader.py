"""Global batches made ahead, by a thread, while the loop computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from raykd.errors import TrainingError
from raykd.training.planner import BatchPlan, Cursor, PlannedBatch
from raykd.training.samplers import Sampler
from raykd.training.sharder import BatchSharder, GlobalBatch, MicroBatch, Samples
from raykd.training.workers import from_all_workers

AHEAD = 2  # global batches that are ready before the loop takes them
PATIENCE = 5.0  # seconds for the thread that makes them to end; it may be waiting for a teacher


class PendingBatch(NamedTuple):
    """A planned batch whose samples are not written yet, and what the sampler's `begin` returned for them."""

    planned: PlannedBatch
    pending: Any


class BatchLoader:
    """Batches of a plan as tensors, from a cursor on.

    Batches whose targets are all known are made by a thread, some ahead, and the teacher is asked for its outputs as
    soon as a micro-batch is made. Where samples are to be written, the thread asks the sampler to begin, and the loop
    completes the batch when its turn comes: with the student's weights of that step, and then cut by the real lengths.

    As a context it gives an iterator, which never ends and raises what went wrong in the thread.
    """

    def __init__(
        self,
        plan: BatchPlan,
        sharder: BatchSharder,
        cursor: Cursor,
        step: int,
        ask: Callable[[MicroBatch], Any],
        sampler: Sampler | None = None,
    ):
        """`step`: the number of the first batch's optimizer step; `ask` returns a micro-batch's `handle`."""
        self.plan, self.sharder, self.cursor, self.step = plan, sharder, cursor, step
        self.ask, self.sampler = ask, sampler
        self.ready: queue.Queue[GlobalBatch | PendingBatch | BaseException] = queue.Queue(AHEAD)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Iterator[GlobalBatch]:
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

    def _next(self) -> GlobalBatch:
        batch = self.ready.get()
        if isinstance(batch, BaseException):
            raise batch
        return self._completed(batch) if isinstance(batch, PendingBatch) else batch

    def _completed(self, batch: PendingBatch) -> GlobalBatch:
        """The batch with its samples. All workers complete the same batches."""
        assert self.sampler is not None
        planned, world = batch.planned, self.sharder.world
        sampled = planned.targets.sampled
        samples = [np.asarray(ids, np.int32) for ids in self.sampler.complete(batch.pending)]
        places = [place for place in range(self.sharder.rank, len(sampled), world) if sampled[place]]
        own = dict(zip(places, samples, strict=True))
        if not all(map(len, samples)):
            raise TrainingError(f"step {planned.step + 1}: a sample of the sampler has no tokens: expected one or more")
        by_worker = from_all_workers({place: len(ids) for place, ids in own.items()})
        lengths = {place: length for worker in by_worker for place, length in worker.items()}
        in_order = np.array([lengths[int(place)] for place in np.flatnonzero(sampled)], np.int64)
        return self._asked(self.sharder.batch(planned, Samples(in_order, own)))

    def _asked(self, batch: GlobalBatch) -> GlobalBatch:
        for micro_batch in batch.micro_batches:
            micro_batch.handle = self.ask(micro_batch)
        return batch

    def _work(self) -> None:
        try:
            for planned in self.plan.batches_from(self.cursor, self.step):
                if not self._put(self._begun(planned)):
                    return
        except BaseException as error:  # the loop raises it
            self._put(error)

    def _begun(self, planned: PlannedBatch) -> GlobalBatch | PendingBatch:
        if not planned.targets.sampled.any():
            return self._asked(self.sharder.batch(planned))
        assert self.sampler is not None
        return PendingBatch(planned, self.sampler.begin(self.sharder.requests(planned, self.plan.seed)))

    def _put(self, item: Any) -> bool:
        """Whether the loop goes on, and will take it."""
        while not self.over.is_set():
            try:
                self.ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
