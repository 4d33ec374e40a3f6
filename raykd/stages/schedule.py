"""Functions that run stages at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, TypeVar

from raykd.data.sources import StoredSource
from raykd.run.session import Session

Result = TypeVar("Result")


def run_at_once(session: Session, calls: Mapping[str, Callable[[], Any]]) -> list[Any]:
    """Run calls that label with students, as many at the same time as the cluster has room for.

    `calls` is keyed by the stage with which a call begins. Returns the results in the order of the calls.
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
    """Train the stage `name` on pseudo-targets while they are still written; returns the result of `train`.

    `label(on_start)` runs in a thread of its own. `train(stored)` starts as soon as `on_start` was called with the
    labelling.
    """
    if not session.folder.is_complete(name):
        session.connect()  # in this thread: a local Ray ends with the thread that started it
    started: Future[StoredSource] = Future()
    with ThreadPoolExecutor(1) as pool:
        labelling = pool.submit(label, started.set_result)
        wait([started, labelling], return_when=FIRST_COMPLETED)
        stored = started.result() if started.done() else labelling.result()
        results = train(replace(stored, follow=True))
        labelling.result()
    return results
