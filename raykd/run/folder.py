"""TODO: docstring."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from raykd.console import Console
from raykd.errors import DataError, RunError
from raykd.recipe.load import dump_recipe, load_recipe, recipe_differences, resolve_paths
from raykd.recipe.recipe import Recipe
from raykd.run import remote
from raykd.run.files import fingerprint, write_json, write_text
from raykd.run.manifests import BAD_ROWS, MANIFEST, manifests, read_manifest, stage_files

COSTLY = ("train", "label")  # what a run with another recipe must not build on
LOCK_SECONDS = 30  # what a killed run may take to disappear


class Run:
    """An open run folder, with the user's console. Stages may run in several threads at once."""

    def __init__(
        self,
        recipe: Recipe,
        console: Console | None = None,
        path: Path | None = None,
        shared: Path | None = None,
    ):
        """`path`: the folder, where it is not `<output>/<name>`. `shared`: the folder of another run, whose stages
        that were made from equal inputs are this run's too.
        """
        self.recipe = resolve_paths(recipe)
        self.shared = shared
        self.fit: Callable[..., dict] | None = None  # how to train, where it is not one Ray Train run after the other
        self.console = console or Console()
        self.lock = threading.Lock()
        self.resources = ExitStack()  # what stages opened for the whole run: the cluster
        self.known: set[str] = set()  # complete stages the user has heard of
        self.connected = False
        self.tell: Callable[[str, str, bool], None] = lambda name, kind, going_on: None  # where others watch stages
        self.held: IO | None = None  # the lock on the folder
        self.passes = 1  # labelling passes that run at the same time
        self.path = path or remote.folder(self.recipe.output) / self.recipe.name
        self.stores = f"{self.recipe.output}/stores"
        saved = self.path / "recipe.yaml"
        if remote.url(self.path):
            self._take()  # whoever works in this copy is not to be disturbed
            bring(self.path)
        if saved.exists() and any(m["kind"] in COSTLY for m in manifests(self.path)):
            changed = recipe_differences(load_recipe(saved), self.recipe)
            if changed:
                raise RunError(
                    f"{remote.shown(self.path)} holds another recipe ({'; '.join(changed[:3])}): "
                    "give the run another name, or remove the folder"
                )
        write_text(saved, dump_recipe(self.recipe))
        remote.send(saved)

    def __enter__(self) -> Run:
        """Take the folder for this process alone. Raises RunError where another run has it."""
        if self.held is None:
            self._take()
        return self

    def _take(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.held = open(self.path / ".lock", "w")
        for wait in range(LOCK_SECONDS + 1):
            try:
                fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if wait == 1:
                    self.console.say(f"waiting for what still works in {self.path}")
                time.sleep(1)
        self.held.close()
        raise RunError(f"{self.path}: another raykd works in it")

    def __exit__(self, *error) -> None:
        self.resources.close()
        if self.held:
            self.held.close()

    def stage(self, name: str, kind: str, inputs: Any, work: Callable[[Path], tuple[dict, dict]]) -> dict:
        """Run `work(folder) -> (results, stats)` unless its manifest is there already; returns the results.

        `inputs` is all that decides what the stage makes: a manifest made from other inputs is refused, because
        what it stands for would be mixed with what is asked for now.
        """
        folder = self.path / name
        mark = fingerprint(inputs)
        manifest = folder / MANIFEST
        self._share(name, mark)
        if manifest.exists():
            old = read_manifest(manifest)
            if old["fingerprint"] != mark:
                changed = [k for k in inputs if old["inputs"].get(k) != json.loads(json.dumps(inputs[k], default=str))]
                made = f"{remote.shown(folder)} was made from other inputs ({', '.join(changed)})"
                raise RunError(f"{made}: remove it to make it again")
            if name not in self.known:
                self.console.say(f"{name}: complete, nothing to do")
            self.known.add(name)
            return old["results"]
        folder.mkdir(parents=True, exist_ok=True)
        self.console.say(f"{name}: {kind}")
        started = time.time()
        self.tell(name, kind, True)
        try:
            results, stats = work(folder)
        finally:
            self.tell(name, kind, False)
        remote.send(folder)
        write_json(
            manifest,
            {
                "stage": name,
                "kind": kind,
                "fingerprint": mark,
                "inputs": inputs,
                "started": started,
                "seconds": time.time() - started,
                "results": results,
                "stats": stats,
            },
        )
        remote.send(manifest)
        self.known.add(name)
        if results.get("bad_rows"):
            self._list_bad_rows()
        return results

    def _share(self, name: str, mark: str) -> None:
        """Link the folder of another run's stage where it was made from equal inputs and this run has none."""
        if self.shared is None or (self.path / name).exists():
            return
        manifest = self.shared / name / MANIFEST
        if manifest.exists() and read_manifest(manifest)["fingerprint"] == mark:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).symlink_to((self.shared / name).absolute(), target_is_directory=True)
            self.known.add(name)

    def left_out(self, new: Sequence[dict] = ()) -> int:
        """How many rows complete stages left out, with new ones; a row that several stages name is one."""
        rows = [*self.bad_rows(), *new]
        named = {row["reason"].partition(": ")[0] for row in rows if row["line"] is None}
        read = {(row["file"], row["line"]) for row in rows if row["line"] is not None}
        return len(named) + len(read)

    def tolerate(self, new: list[dict]) -> None:
        """Raise DataError, which names the first, where data.max_bad_rows does not allow these beside those before."""
        if not new:
            return
        all_, most = self.left_out(new), self.recipe.data.max_bad_rows
        if all_ > most:
            counts = f"{len(new)} such rows, {all_} in all, data.max_bad_rows is {most}"
            raise DataError(f"{new[0]['file']}: {new[0]['reason']} ({counts})")

    def bad_rows(self) -> list[dict]:
        """Every row that complete stages left out, as {file, line, reason}."""
        return [row for m in manifests(self.path) for row in m["results"].get("bad_rows", [])]

    def _list_bad_rows(self) -> None:
        with self.lock:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.bad_rows())
            write_text(self.path / BAD_ROWS, lines)
            remote.send(self.path / BAD_ROWS)


def bring(path: Path) -> None:
    """Make the copy of a run folder what is kept at its URL, as far as complete stages go."""
    held = remote.fetch(path)
    for left in stage_files(path, MANIFEST):
        if left not in held:  # of a stage that never got there, or was removed
            left.unlink()
