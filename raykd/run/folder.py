"""A run folder: the whole state of a run.

    <output>/<name>/
        recipe.yaml               the resolved recipe; running it is the same run
        environment.json          versions of Python, the system and the packages, when the run began
        bad_rows.jsonl            every row that was left out: file, line, reason, row
        <stage>/manifest.json     written last: where it is there, the stage is complete
        <stage>/...               the stage's results
        logs/                     what Ray and the engines print
        report.json, report.md, report.html

A manifest: {stage, kind, arm, own, round, partition, fingerprint, inputs, started, seconds, results, stats}. `arm` to
`partition` are those of `StageAbout`; `inputs` is all that decides the results, `fingerprint` a hash of it; `started`
is Unix time. A bad row: {file, line, reason, row}; `row` is the id of its example, None where a line tells which row
it is.
"""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from raykd.errors import DataError, RunError
from raykd.recipe.load import dump_recipe, load_recipe, recipe_differences
from raykd.recipe.recipe import Recipe
from raykd.run import remote
from raykd.run.files import fingerprint, write_json, write_text
from raykd.run.manifests import BAD_ROWS, MANIFEST, manifests, read_manifest, stage_files

COSTLY = ("train", "label")  # kinds of stages that a run with another recipe must not build on
LOCK_SECONDS = 30  # how long a killed run may take to disappear


class RunFolder:
    """A run folder and its lock. Stages may complete in several threads at once."""

    def __init__(self, path: Path, shared: Path | None = None):
        """`shared`: the folder of another run, whose stages that were made from equal inputs are this run's too."""
        self.path, self.shared = path, shared
        self.lock_file: IO | None = None  # open while this process has the lock
        self._listing = threading.Lock()

    def begin(self, recipe: Recipe, say: Callable[[str], None]) -> None:
        """Write the recipe into the folder. Raises RunError if costly stages were made with another recipe.

        If the folder is the copy of one at a URL, it is locked first and made equal to the folder at the URL.
        """
        saved = self.path / "recipe.yaml"
        if remote.url(self.path):
            self.lock(say)  # whoever works in this copy is not to be disturbed
            fetch_run(self.path)
        if saved.exists() and any(manifest["kind"] in COSTLY for manifest in manifests(self.path)):
            differences = recipe_differences(load_recipe(saved), recipe)
            if differences:
                raise RunError(
                    f"{remote.shown(self.path)} holds another recipe ({'; '.join(differences[:3])}): "
                    "give the run another name, or remove the folder"
                )
        write_text(saved, dump_recipe(recipe))
        remote.send(saved)

    def lock(self, say: Callable[[str], None]) -> None:
        """Lock the folder for this process, unless it has the lock. Raises RunError if another run has it."""
        if self.lock_file is not None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock_file = open(self.path / ".lock", "w")
        for seconds in range(LOCK_SECONDS + 1):
            try:
                fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if seconds == 1:
                    say(f"waiting for what still works in {self.path}")
                time.sleep(1)
        self.lock_file.close()
        raise RunError(f"{self.path}: another raykd works in it")

    def unlock(self) -> None:
        """Release the lock."""
        if self.lock_file:
            self.lock_file.close()

    def is_complete(self, name: str) -> bool:
        """Whether the stage of this name is complete in this folder."""
        return (self.path / name / MANIFEST).exists()

    def link_shared(self, name: str, inputs: Any) -> bool:
        """Link another run's stage into this folder if it was made from equal inputs; returns whether it was linked."""
        if self.shared is None or (self.path / name).exists():
            return False
        manifest = self.shared / name / MANIFEST
        if not manifest.exists() or read_manifest(manifest)["fingerprint"] != fingerprint(inputs):
            return False
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).symlink_to((self.shared / name).absolute(), target_is_directory=True)
        return True

    def stage_results(self, name: str, inputs: dict[str, Any]) -> dict | None:
        """The results of a complete stage, None if it is not complete.

        Raises RunError if the stage was made from other inputs: their results must not be mixed.
        """
        if not self.is_complete(name):
            return None
        manifest = read_manifest(self.path / name / MANIFEST)
        if manifest["fingerprint"] == fingerprint(inputs):
            return manifest["results"]
        as_written = json.loads(json.dumps(inputs, default=str))
        changed = ", ".join(key for key in inputs if manifest["inputs"].get(key) != as_written[key])
        raise RunError(
            f"{remote.shown(self.path / name)} was made from other inputs ({changed}): remove it to make it again"
        )

    def complete_stage(self, manifest: dict[str, Any]) -> None:
        """Write the manifest of a stage whose files are written, and list its bad rows.

        Its fingerprint is added, and its seconds, in which the files are sent to their URL as well.
        """
        folder = self.path / manifest["stage"]
        remote.send(folder)
        seconds = time.time() - manifest["started"]
        write_json(folder / MANIFEST, {**manifest, "seconds": seconds, "fingerprint": fingerprint(manifest["inputs"])})
        remote.send(folder / MANIFEST)
        if manifest["results"].get("bad_rows"):
            self._list_bad_rows()

    def bad_rows(self) -> list[dict]:
        """Every row that complete stages left out, as {file, line, reason, row}."""
        return [row for manifest in manifests(self.path) for row in manifest["results"].get("bad_rows", [])]

    def left_out(self, new: Sequence[dict] = ()) -> int:
        """The number of rows that stages left out, with new ones; a row that several stages left out counts once."""
        rows = [*self.bad_rows(), *new]
        return len({(row["file"], row["line"]) if row.get("row") is None else row["row"] for row in rows})

    def tolerate(self, new: Sequence[dict], at_most: int) -> None:
        """Raise DataError, which names the first of the new bad rows, where there are more than `at_most` in all."""
        count = self.left_out(new) if new else 0
        if count > at_most:
            row = f"row {new[0]['row']}: " if new[0].get("row") is not None else ""
            counts = f"{len(new)} such rows, {count} in all, data.max_bad_rows is {at_most}"
            raise DataError(f"{new[0]['file']}: {row}{new[0]['reason']} ({counts})")

    def _list_bad_rows(self) -> None:
        with self._listing:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.bad_rows())
            write_text(self.path / BAD_ROWS, lines)
            remote.send(self.path / BAD_ROWS)


def fetch_run(path: Path) -> None:
    """Make the copy of a run folder equal to the folder at its URL; manifests that do not exist there are removed.

    Raises RunError.
    """
    fetched = remote.fetch(path)
    for manifest in stage_files(path, MANIFEST):
        if manifest not in fetched:  # of a stage that was never sent, or was removed there
            manifest.unlink()
