"""TODO: docstring."""

from __future__ import annotations

from functools import partial

from raykd.run.folder import Run


def connect(run: Run, dashboard: bool = False) -> None:
    """Ray, the first time a stage needs it."""
    with run.lock:
        if not run.connected:
            from raykd.cluster import connect, counters, resources

            cluster = connect.ray_cluster(
                run.recipe.cluster, run.path / "logs", run.console.verbose, run.held, dashboard
            )
            said = run.resources.enter_context(cluster)
            if said:
                run.console.say(said)
            run.connected, run.tell = True, partial(counters.stage, run.recipe.name)
            resources.check(run.recipe)


def await_resources(run: Run, name: str, resources: dict[str, float], count: int) -> None:
    """Say what an autoscaling cluster does not have yet; the demand is placed by what comes next."""
    from raykd.cluster.resources import awaited

    said = awaited(resources, count, run.recipe.cluster)
    if said:
        run.console.say(f"{name}: {said}")
