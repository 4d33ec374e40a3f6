"""The session of a run: everything that is open while the run goes on. Ray is imported when a stage needs it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.console import Console
from raykd.recipe.load import resolve_paths
from raykd.recipe.modules import put_on_path
from raykd.recipe.names import own_modules
from raykd.recipe.recipe import Recipe
from raykd.run import remote
from raykd.run.folder import RunFolder
from raykd.run.manifests import StageAbout

if TYPE_CHECKING:
    from raykd.training.job import TrainingResult

EVERY_ARM = StageAbout()


class Session:
    """A run that goes on: its recipe, its folder and the lock on it, the user's console, the connection to Ray.

    As a context manager it has the folder for this process alone, and closes everything in the end. Stages may use it
    from several threads at once.
    """

    def __init__(
        self,
        recipe: Recipe,
        console: Console | None = None,
        path: Path | None = None,
        shared: Path | None = None,
        fit: Callable[..., TrainingResult] | None = None,
    ):
        """Open the run folder. Raises RunError where it is of another recipe, or cannot be written.

        path    the folder, where it is not `<output>/<name>`
        shared  the folder of another run, whose stages that were made from equal inputs are this run's too
        fit     trains a `TrainingSpec`, called as `raykd.cluster.train.fit` is; such trainings run one after the other
        """
        self.recipe = resolve_paths(recipe)
        put_on_path(self.recipe.modules)
        self.console = console or Console()
        self.folder = RunFolder(path or remote.folder(self.recipe.output) / self.recipe.name, shared)
        self.fit = fit
        self._announced: set[str] = set()  # complete stages that the user has heard of
        self._opened = ExitStack()  # the connection to Ray
        self._connecting = threading.Lock()
        self._connected = False
        self._passes = 1
        self.folder.begin(self.recipe, self.console.say)

    def __enter__(self) -> Session:
        """Raises RunError where another run has the folder."""
        self.folder.lock(self.console.say)
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()
        self.folder.unlock()

    @property
    def path(self) -> Path:
        """The run folder's path."""
        return self.folder.path

    @property
    def stores(self) -> str:
        """The folder or URL of the stores, which the runs of an output share."""
        return f"{self.recipe.output}/stores"

    def with_recipe(self, recipe: Recipe) -> Session:
        """This session with another recipe from now on; everything that is open is shared with it, and closed by it."""
        session = copy.copy(self)
        session.recipe = resolve_paths(recipe)
        return session

    def stage(
        self,
        name: str,
        kind: str,
        inputs: dict[str, Any],
        work: Callable[[Path], tuple[dict, dict]],
        about: StageAbout = EVERY_ARM,
    ) -> dict:
        """Run `work(folder) -> (results, stats)` unless the stage is complete; returns the results.

        `inputs` is all that decides the results. Raises RunError if the stage is complete with other inputs.
        """
        if self.folder.link_shared(name, inputs):
            self._announced.add(name)
        results = self.folder.stage_results(name, inputs)
        if results is not None:
            if name not in self._announced:
                self.console.say(f"{name}: complete, nothing to do")
            self._announced.add(name)
            return results
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        self.console.say(f"{name}: {kind}")
        started = time.time()
        self._show_stage(name, kind, True)
        try:
            results, stats = work(folder)
        finally:
            self._show_stage(name, kind, False)
        manifest = {"stage": name, "kind": kind, **asdict(about), "inputs": inputs, "started": started}
        self.folder.complete_stage({**manifest, "results": results, "stats": stats})
        self._announced.add(name)
        return results

    def tolerate(self, new: Sequence[dict]) -> None:
        """Raise DataError, which names the first of the new bad rows, if data.max_bad_rows does not allow them."""
        self.folder.tolerate(new, self.recipe.data.max_bad_rows)

    # ------------------------------------------------------------------------------------------ the cluster

    def connect(self, dashboard: bool = False) -> None:
        """Connect to Ray, unless it is connected; with Ray's dashboard, where Ray is started here.

        A local Ray ends with the thread that called this. Raises ClusterError where no cluster answers, or it is too
        small for the recipe.
        """
        with self._connecting:
            if self._connected:
                return
            from raykd.cluster import connect, resources

            logs, verbose = self.path / "logs", self.console.verbose
            ours = own_modules(self.recipe)
            cluster = connect.ray_cluster(self.recipe.cluster, logs, verbose, self.folder.lock_file, dashboard, ours)
            line = self._opened.enter_context(cluster)
            if line:
                self.console.say(line)
            self._connected = True
            resources.check(self.recipe)

    def await_resources(self, name: str, resources: dict[str, float], count: int) -> None:
        """Tell the user for which nodes of an autoscaling cluster a stage waits. The stage's own work requests them."""
        from raykd.cluster.resources import awaited

        line = awaited(resources, count, self.recipe.cluster)
        if line:
            self.console.say(f"{name}: {line}")

    @property
    def passes(self) -> int:
        """How many labelling passes share the labelling actors."""
        return self._passes

    @contextmanager
    def labelling_passes(self, count: int) -> Iterator[int]:
        """Let as many of `count` passes of students share the labelling actors as fit; yields how many, at least 1."""
        if self._connected and count:
            from raykd.cluster import resources

            actors = self.recipe.cluster.labelling_students
            count = min(count, resources.at_once(actors.resources, max(1, actors.bounds()[0]), self.recipe.cluster))
        before, self._passes = self._passes, max(1, count)
        try:
            yield self._passes
        finally:
            self._passes = before

    def _show_stage(self, name: str, kind: str, going_on: bool) -> None:
        if self._connected:
            from raykd.cluster import counters

            counters.stage(self.recipe.name, name, kind, going_on)
