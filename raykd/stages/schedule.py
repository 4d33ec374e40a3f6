"""TODO: docstring."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from raykd.run.session import Session
from raykd.training.sources import StoredSource


def run_at_once(session: Session, calls: dict[str, Callable[[], Any]]) -> list[Any]:
    """Run calls, each by the name of the stage it does first, at the same time, as many as fit; results in order."""
    if not all(map(session.folder.is_complete, calls)):
        session.connect()  # here: a local Ray ends with the thread that started it
    with session.labelling_passes(len(calls)) as at_once, ThreadPoolExecutor(at_once) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls.values()]]


def train_while_labelling(
    session: Session,
    name: str,
    label: Callable[[Callable[[StoredSource], None]], StoredSource],
    train: Callable[[StoredSource], dict[str, dict[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Train `name` on labels while they are still written: `label(begun)` and `train(labels)` at the same time."""
    if not session.folder.is_complete(name):
        session.connect()  # here: a local Ray ends with the thread that started it
    begun: Future[StoredSource] = Future()
    with ThreadPoolExecutor(1) as pool:
        labelling = pool.submit(label, begun.set_result)
        wait([begun, labelling], return_when=FIRST_COMPLETED)
        given = begun.result() if begun.done() else labelling.result()
        trained = train(replace(given, follow=True))
        labelling.result()
    return trained
