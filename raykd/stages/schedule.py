"""Stages that go on at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, TypeVar

from raykd.data.sources import StoredSource
from raykd.run.session import Session

Result = TypeVar("Result")


def run_at_once(session: Session, calls: Mapping[str, Callable[[], Any]]) -> list[Any]:
    """Run calls that label with students, as many at the same time as fit; returns their results in order.

    The name of a call is the stage that it begins with.
    """
    if not all(map(session.folder.is_complete, calls)):
        session.connect()  # in this thread: a local Ray ends with the thread that started it
    with session.labelling_passes(len(calls)) as passes, ThreadPoolExecutor(passes) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls.values()]]


def train_while_labelling(
    session: Session,
    name: str,
    label: Callable[[Callable[[StoredSource], None]], StoredSource],
    train: Callable[[StoredSource], Result],
) -> Result:
    """Train the stage `name` on pseudo-targets while they are still written; returns what `train` returns.

    `label(begun)` runs in a thread of its own, and `train(stored)` as soon as `begun` was called with the labelling.
    """
    if not session.folder.is_complete(name):
        session.connect()  # in this thread: a local Ray ends with the thread that started it
    begun: Future[StoredSource] = Future()
    with ThreadPoolExecutor(1) as pool:
        labelling = pool.submit(label, begun.set_result)
        wait([begun, labelling], return_when=FIRST_COMPLETED)
        stored = begun.result() if begun.done() else labelling.result()
        results = train(replace(stored, follow=True))
        labelling.result()
    return results
