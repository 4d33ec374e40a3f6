"""TODO: docstring."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from raykd.training.planner import BatchPlan, Cursor
from raykd.training.sharder import BatchSharder, GlobalBatch, MicroBatch

AHEAD = 2  # global batches that are ready before they are asked for
PATIENCE = 5.0  # seconds for the thread that makes them to end; it may be waiting for a teacher


class BatchLoader:
    """Batches of a plan as tensors, made by a thread while the loop computes."""

    def __init__(self, plan: BatchPlan, cutter: BatchSharder, cursor: Cursor, prepare: Callable[[MicroBatch], None]):
        self.plan, self.cutter, self.cursor, self.prepare = plan, cutter, cursor, prepare
        self.ready: queue.Queue[Any] = queue.Queue(AHEAD)
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
        got = self.ready.get()
        if isinstance(got, BaseException):
            raise got
        return got

    def _work(self) -> None:
        try:
            for found, targets, epoch_progress, after in self.plan.from_(self.cursor):
                batch = self.cutter.batch(found, targets, epoch_progress, after)
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
