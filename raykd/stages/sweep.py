"""What a sweep needs of the cluster: how many trials fit, how a trial trains, and the search over a space."""

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

# takes the metrics of an evaluation, and the checkpoint's folder if there is one
Report = Callable[[dict[str, float], Path | None], None]
# takes a trial's id, its point, a Report and the checkpoint that it begins with, if any
Trial = Callable[[str, Point, Report, Path | None], None]


@dataclass(frozen=True)
class SearchPlan:
    """A search over a space.

    goals       several make a front
    points      of the trials, where they are known from the start; empty where the search proposes them
    folder      where Ray Tune keeps its state
    concurrent  trials at a time
    """

    space: Space
    goals: list[Objective]
    points: list[Point]
    folder: Path
    concurrent: int


def trials_at_once(session: Session, wanted: int | None) -> AtOnce:
    """How many trials run at the same time, as many as fit if none are wanted, and the CPU threads of their workers.

    Connects to Ray. Raises ClusterError as `Session.connect`.
    """
    # a trial that is stopped gives back what its several workers held only where Ray has its dashboard
    session.connect(dashboard=session.recipe.cluster.student.bounds()[1] > 1)
    from raykd.cluster import resources

    return resources.trials_at_once(session.recipe.cluster, wanted)


def trial_fit(stage: str, report: Report, checkpoint: Path | None) -> Callable[..., TrainingResult]:
    """How a trial trains, for its session's `fit`: every evaluation of the training `stage` is reported.

    That training begins with `checkpoint`, if there is one.
    """
    from raykd.cluster import tune

    return tune.trial_fit(stage, report, checkpoint)


def search_space(session: Session, plan: SearchPlan, trial: Trial) -> None:
    """Run `trial` for every point of a search; goes on where the same search was stopped.

    Raises RunError where trials were lost for good.
    """
    from raykd.cluster import tune

    tune.search(plan, trial, session.recipe, session.console)
