"""The resources of the cluster, and how many trainings, trials and passes fit in at the same time."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from raykd.errors import ClusterError
from raykd.recipe.cluster import Cluster
from raykd.recipe.recipe import Recipe


class Demand(NamedTuple):
    """The least that a section of the recipe needs: `count` times these resources at the same time."""

    field: str
    resources: dict[str, float]
    count: int


class AtOnce(NamedTuple):
    """How many trainings run at the same time, and the CPU threads of each of their workers."""

    count: int
    threads: int


def capacity(settings: Cluster) -> dict[str, float]:
    """The resources that the cluster may grow to: the recipe's, else those of the nodes that are alive."""
    import ray

    alive: dict[str, float] = dict(ray.cluster_resources())
    return {**alive, **settings.capacity} if settings.capacity else alive


def demands(recipe: Recipe) -> list[Demand]:
    """The demand of each section of the recipe's cluster."""
    cluster = recipe.cluster
    sections = {
        "teacher": (cluster.teacher, max(1, cluster.teacher.bounds()[0])),
        "student": (cluster.student, cluster.student.bounds()[0]),
        "labelling_students": (cluster.labelling_students, max(1, cluster.labelling_students.bounds()[0])),
    }
    return [Demand(f"cluster.{name}", section.resources, count) for name, (section, count) in sections.items()]


def check(recipe: Recipe) -> None:
    """Raise ClusterError, in one line, if a section needs more than the cluster may ever grow to."""
    limits = capacity(recipe.cluster)
    for field, resources, count in demands(recipe):
        for name, amount in resources.items():
            if amount * count > limits.get(name, 0):
                raise ClusterError(
                    f"{field}: needs {name} {amount:g} x {count}, the cluster may grow to {limits.get(name, 0):g} "
                    "(cluster.capacity says what an autoscaling cluster may grow to)"
                )


def awaited(resources: dict[str, float], count: int, settings: Cluster) -> str | None:
    """A line about the nodes that are missing for `count` times these resources; None if none is missing."""
    import ray

    alive = ray.cluster_resources()
    missing = {name: amount * count for name, amount in resources.items() if amount * count > alive.get(name, 0)}
    if not missing:
        return None
    amounts = ", ".join(f"{name} {amount:g} (there are {alive.get(name, 0):g})" for name, amount in missing.items())
    return f"waiting for nodes with {amounts}, up to {settings.wait_minutes:g} minutes"


def at_once(resources: dict[str, float], count: int, settings: Cluster) -> int:
    """How many groups, each of `count` times `resources`, fit at the same time; at least one."""
    return _groups(capacity(settings), resources, count)


def _groups(available: dict[str, float], resources: dict[str, float], count: int) -> int:
    fits = [math.floor(available.get(name, 0) / (amount * count)) for name, amount in resources.items() if amount]
    return max(1, min(fits, default=1))


def trainings_at_once(settings: Cluster, trainings: int) -> AtOnce:
    """How many of a run's trainings fit at the same time, and the CPU threads of their workers."""
    student, (least, most) = settings.student, settings.student.bounds()
    count = min(trainings, at_once(student.resources, least, settings))
    return AtOnce(count, threads(student.threads, count * most))


def trials_at_once(settings: Cluster, concurrent: int | None) -> AtOnce:
    """How many trials of a sweep run at the same time: `concurrent`, else as many as fit.

    Room is left for one labelling pass of the teacher and one of the students, because trials wait for them. On a
    single machine without GPUs there are at most as many trials as cores, whatever number of CPUs Ray counts.
    """
    import ray

    student, (least, most) = settings.student, settings.student.bounds()
    available = capacity(settings)
    for actors in (settings.teacher, settings.labelling_students):
        for name, amount in actors.resources.items():
            available[name] = available.get(name, 0) - amount * max(1, actors.bounds()[0])
    count = _groups(available, student.resources, least)
    if not student.resources.get("GPU") and len(ray.nodes()) == 1:
        count = min(count, len(os.sched_getaffinity(0)))
    count = concurrent or count
    return AtOnce(count, threads(student.threads, count * most))


def threads(configured: int | None, processes: int) -> int:
    """CPU threads of each of several processes: the recipe's number, else an equal share of this machine's cores."""
    return configured or max(1, len(os.sched_getaffinity(0)) // processes)
