"""The parts of a sweep that need the cluster: the number of trials at once, a trial's training, the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.recipe.space import Objective, Point, Space
from raykd.run.session import Session

if TYPE_CHECKING:
    from raykd.cluster.resources import AtOnce
    from raykd.training.job import TrainingResult

# a function of an evaluation's metrics, and of the checkpoint's folder if there is one
Report = Callable[[dict[str, float], Path | None], None]
# a function of a trial's id, its point, a Report, and the checkpoint that it begins with, if any
Trial = Callable[[str, Point, Report, Path | None], None]


@dataclass(frozen=True)
class SearchPlan:
    """A search over a space.

    goals       the metrics to optimise; with several the result is a Pareto front
    points      the trials' points if they are known from the start; empty if the search proposes them
    folder      the folder of Ray Tune's state
    concurrent  the number of trials at a time
    """

    space: Space
    goals: list[Objective]
    points: list[Point]
    folder: Path
    concurrent: int


def trials_at_once(session: Session, concurrent: int | None) -> AtOnce:
    """How many trials run at the same time, and the CPU threads of each of their workers.

    `concurrent` is the space's number of trials at once, None for as many as fit. Connects to Ray; raises the
    ClusterError of `Session.connect`.
    """
    # if a stopped trial has several workers, their resources are only freed if Ray has its dashboard
    session.connect(dashboard=session.recipe.cluster.student.bounds()[1] > 1)
    from raykd.cluster import resources

    return resources.trials_at_once(session.recipe.cluster, concurrent)


def trial_fit(stage: str, report: Report, checkpoint: Path | None) -> Callable[..., TrainingResult]:
    """The `fit` function of a trial's session: it trains, and reports every evaluation of the training `stage`.

    The training `stage` begins with `checkpoint`, if there is one.
    """
    from raykd.cluster import tune

    return tune.trial_fit(stage, report, checkpoint)


def search_space(session: Session, plan: SearchPlan, trial: Trial) -> None:
    """Run `trial` for every point of a search; a search that was stopped is continued.

    Raises RunError if the processes of trials died too often.
    """
    from raykd.cluster import tune

    tune.search(plan, trial, session.recipe, session.console)
