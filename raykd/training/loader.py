"""Global batches made ahead, by a thread, while the loop computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from raykd.training.planner import BatchPlan, Cursor
from raykd.training.sharder import BatchSharder, GlobalBatch, MicroBatch

AHEAD = 2  # global batches that are ready before the loop takes them
PATIENCE = 5.0  # seconds for the thread that makes them to end; it may be waiting for a teacher


class BatchLoader:
    """Batches of a plan as tensors, from a cursor on; `prepare` is called with each micro-batch as it is made.

    As a context it gives an iterator, which never ends and raises what went wrong in the thread.
    """

    def __init__(self, plan: BatchPlan, sharder: BatchSharder, cursor: Cursor, prepare: Callable[[MicroBatch], None]):
        self.plan, self.sharder, self.cursor, self.prepare = plan, sharder, cursor, prepare
        self.ready: queue.Queue[GlobalBatch | BaseException] = queue.Queue(AHEAD)
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
        return batch

    def _work(self) -> None:
        try:
            for planned in self.plan.batches_from(self.cursor):
                batch = self.sharder.batch(planned)
                for micro_batch in batch.micro_batches:
                    self.prepare(micro_batch)
                if not self._put(batch):
                    return
        except BaseException as error:  # the loop raises it
            self._put(error)

    def _put(self, item: Any) -> bool:
        """Whether the loop goes on, and will take it."""
        while not self.over.is_set():
            try:
                self.ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
