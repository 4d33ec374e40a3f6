"""TODO: docstring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.run.session import Session

if TYPE_CHECKING:
    from raykd.recipe.space import Space


def trials_at_once(session: Session, wanted: int | None) -> tuple[int, int]:
    """How many trials run at the same time, as many as fit unless told, and the CPU threads of each one's workers."""
    session.connect(dashboard=session.recipe.cluster.student.bounds()[1] > 1)
    from raykd.cluster import resources

    return resources.trials(session.recipe.cluster, wanted)


def trial_trainer(goal: str, send: Callable[[dict[str, float], Path | None], None], resume: Path | None) -> Any:
    """How a trial trains: on one worker in its own process; `send` hears of every evaluation of the goal's training."""
    from raykd.cluster import tune

    return tune.trainer(goal, send, resume)


def search_space(
    session: Session,
    trial: Callable[..., None],
    goals: list[tuple[str, str]],
    space: Space,
    points: list[dict[str, Any]],
    folder: Path,
    concurrent: int,
) -> None:
    """Run the trials of a space: `points`, or what a search that learns finds. Ray Tune keeps its own in a folder."""
    from raykd.cluster import tune

    tune.search(trial, goals, space, points, folder, session.recipe, concurrent, session.console)
