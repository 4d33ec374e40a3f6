"""A run folder: the whole state of a run.

    <output>/<name>/
        recipe.yaml               the resolved recipe; running it is the same run
        bad_rows.jsonl            every row that was left out: file, line, reason
        <stage>/manifest.json     written last: it being there means the stage is complete
        <stage>/...               what the stage made
        logs/                     Ray's and the engines' chatter
        report.json, report.md, report.html

A manifest: {stage, kind, fingerprint, inputs, started, seconds, results, stats}. `started` is Unix time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from raykd import recipe as recipes
from raykd import remote
from raykd.errors import DataError, RunError
from raykd.screen import Screen

MANIFEST = "manifest.json"
BAD_ROWS = "bad_rows.jsonl"
COSTLY = ("train", "label")  # what a run with another recipe must not build on
LOCK_SECONDS = 30  # what a killed run may take to disappear


def fingerprint(value: Any) -> str:
    """A short hash (12 hex digits) of anything JSON can hold; equal values, equal hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def put(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or as it was, also after a power cut. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """`put` of a text. Raises RunError, in one line."""
    try:
        put(path, text.encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


class Run:
    """An open run folder, with the user's screen. Stages may run in several threads at once."""

    def __init__(
        self,
        recipe: recipes.Recipe,
        screen: Screen | None = None,
        path: Path | None = None,
        shared: Path | None = None,
    ):
        """`path`: the folder, where it is not `<output>/<name>`. `shared`: the folder of another run, whose stages
        that were made from equal inputs are this run's too.
        """
        self.recipe = recipes.resolve(recipe)
        self.shared = shared
        self.fit: Callable[..., dict] | None = None  # how to train, where it is not one Ray Train run after the other
        self.screen = screen or Screen()
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
            changed = recipes.differences(recipes.load(saved), self.recipe)
            if changed:
                raise RunError(
                    f"{remote.shown(self.path)} holds another recipe ({'; '.join(changed[:3])}): "
                    "give the run another name, or remove the folder"
                )
        write_text(saved, recipes.dump(self.recipe))
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
                    self.screen.say(f"waiting for what still works in {self.path}")
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
                self.screen.say(f"{name}: complete, nothing to do")
            self.known.add(name)
            return old["results"]
        folder.mkdir(parents=True, exist_ok=True)
        self.screen.say(f"{name}: {kind}")
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


def read_manifest(path: Path) -> dict:
    """A manifest as written; raises RunError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged manifest: {error}") from None


def bring(path: Path) -> None:
    """Make the copy of a run folder what is kept at its URL, as far as complete stages go."""
    held = remote.fetch(path)
    for left in files(path, MANIFEST):
        if left not in held:  # of a stage that never got there, or was removed
            left.unlink()


def files(path: Path, name: str) -> list[Path]:
    """The files of that name in a run folder, also in stages that it shares with another run."""
    return sorted(Path(at) / name for at, _, found in os.walk(path, followlinks=True) if name in found)


def manifests(path: Path) -> list[dict]:
    """All manifests of a run folder, in the order in which their stages began."""
    found = [read_manifest(p) for p in files(path, MANIFEST)]
    return sorted(found, key=lambda m: m["started"])


@contextmanager
def replaced(folder: Path):
    """A new empty folder beside `folder` that takes its place, whole, when the block ends without an error."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
