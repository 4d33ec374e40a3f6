"""What the cluster can have, and how many students fit into it at once."""

from __future__ import annotations

import math
import os

from raykd.errors import ClusterError
from raykd.recipe.cluster import Cluster
from raykd.recipe.recipe import Recipe


def capacity(settings: Cluster) -> dict[str, float]:
    """Resources the cluster may grow to: what the recipe says, else what is alive now."""
    import ray

    alive: dict[str, float] = dict(ray.cluster_resources())
    return {**alive, **settings.capacity} if settings.capacity else alive


def demands(recipe: Recipe) -> list[tuple[str, dict[str, float], int]]:
    """What each section of the recipe must get at the least: (field, resources of one, how many at once)."""
    cluster = recipe.cluster
    return [
        ("cluster.teacher", cluster.teacher.resources, max(1, cluster.teacher.bounds()[0])),
        ("cluster.student", cluster.student.resources, cluster.student.bounds()[0]),
        (
            "cluster.labelling_students",
            cluster.labelling_students.resources,
            max(1, cluster.labelling_students.bounds()[0]),
        ),
    ]


def check(recipe: Recipe) -> None:
    """Raise ClusterError, in one line, where a section asks for more than the cluster may ever grow to."""
    have = capacity(recipe.cluster)
    for field, resources, count in demands(recipe):
        for name, amount in resources.items():
            if amount * count > have.get(name, 0):
                raise ClusterError(
                    f"{field}: needs {name} {amount:g} x {count}, the cluster may grow to {have.get(name, 0):g} "
                    "(cluster.capacity says what an autoscaling cluster may grow to)"
                )


def awaited(resources: dict[str, float], count: int, settings: Cluster) -> str | None:
    """What `count` times these resources still lack of nodes, as a line says it; None where they are there."""
    import ray

    alive = ray.cluster_resources()
    lacking = {name: amount * count for name, amount in resources.items() if amount * count > alive.get(name, 0)}
    if not lacking:
        return None
    said = ", ".join(f"{name} {amount:g} (there are {alive.get(name, 0):g})" for name, amount in lacking.items())
    return f"waiting for nodes with {said}, up to {settings.wait_minutes:g} minutes"


def at_once(resources: dict[str, float], count: int, settings: Cluster) -> int:
    """How many groups of `count` times `resources` fit at the same time; at least one."""
    return _fits(capacity(settings), resources, count)


def _fits(have: dict[str, float], resources: dict[str, float], count: int) -> int:
    fits = [math.floor(have.get(name, 0) / (amount * count)) for name, amount in resources.items() if amount]
    return max(1, min(fits, default=1))


def trials(settings: Cluster, wanted: int | None) -> tuple[int, int]:
    """How many trials of a sweep run at the same time, and the CPU threads of each of their workers.

    Room is left for one pass of each kind, which a trial waits for. Trials without a GPU, on one machine, are no more
    than it has cores, however many CPUs Ray counts there.
    """
    import ray

    student, (least, most) = settings.student, settings.student.bounds()
    left = capacity(settings)
    for actors in (settings.teacher, settings.labelling_students):
        for name, amount in actors.resources.items():
            left[name] = left.get(name, 0) - amount * max(1, actors.bounds()[0])
    count = _fits(left, student.resources, least)
    if not student.resources.get("GPU") and len(ray.nodes()) == 1:
        count = min(count, len(os.sched_getaffinity(0)))
    count = wanted or count
    return count, threads(student.threads, count * most)


def threads(given: int | None, at_the_same_time: int) -> int:
    """CPU threads for each of several processes: as the recipe says, else an equal share of this machine's cores."""
    return given or max(1, len(os.sched_getaffinity(0)) // at_the_same_time)
