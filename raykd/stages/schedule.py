"""TODO: docstring."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from raykd.run.folder import Run
from raykd.run.manifests import MANIFEST
from raykd.run.session import connect
from raykd.stages.labelling import Labelling


def run_at_once(run: Run, calls: dict[str, Callable[[], Any]]) -> list[Any]:
    """Run calls, each by the name of the stage it does first, at the same time, as many as fit; results in order."""
    fit = len(calls)
    if not all((run.path / name / MANIFEST).exists() for name in calls):
        connect(run)  # here: a local Ray ends with the thread that started it
        from raykd.cluster import resources

        actors = run.recipe.cluster.labelling_students
        fit = min(fit, resources.at_once(actors.resources, max(1, actors.bounds()[0]), run.recipe.cluster))
    run.passes = fit
    try:
        with ThreadPoolExecutor(fit) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls.values()]]
    finally:
        run.passes = 1


def train_while_labelling(
    run: Run,
    name: str,
    label: Callable[[Callable[[Labelling], None]], Labelling],
    train: Callable[[Labelling], dict[str, dict[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Train `name` on labels while they are still written: `label(begun)` and `train(labels)` at the same time."""
    if not (run.path / name / MANIFEST).exists():
        connect(run)  # here: a local Ray ends with the thread that started it
    begun: Future[Labelling] = Future()
    with ThreadPoolExecutor(1) as pool:
        labelling = pool.submit(label, begun.set_result)
        wait([begun, labelling], return_when=FIRST_COMPLETED)
        given = begun.result() if begun.done() else labelling.result()
        trained = train(replace(given, follow=True))
        labelling.result()
    return trained
