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

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raykd import recipe as recipes
from raykd.errors import RunError

MANIFEST = "manifest.json"


def fingerprint(value: Any) -> str:
    """A short hash (12 hex digits) of anything JSON can hold; equal values, equal hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either whole or not there, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


class Run:
    """An open run folder.

    `say(text)` tells the user one line; it is how stages report without knowing a screen.
    """

    def __init__(self, recipe: recipes.Recipe, say: Callable[[str], None] = print):
        self.recipe = recipes.resolve(recipe)
        self.say = say
        self.path = Path(self.recipe.output) / self.recipe.name
        self.stores = Path(self.recipe.output) / "stores"
        saved = self.path / "recipe.yaml"
        if saved.exists():
            changed = recipes.differences(recipes.load(saved), self.recipe)
            if changed:
                raise RunError(
                    f"{self.path} holds another recipe ({'; '.join(changed[:3])}): "
                    "give the run another name, or remove the folder"
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            part = saved.with_name(".recipe.yaml")
            part.write_text(recipes.dump(self.recipe), encoding="utf-8")
            os.replace(part, saved)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from None

    def stage(self, name: str, kind: str, inputs: Any, work: Callable[[Path], tuple[dict, dict]]) -> dict:
        """Run `work(folder) -> (results, stats)` unless its manifest is there already; returns the results.

        `inputs` is all that decides what the stage makes: a manifest made from other inputs is refused, because
        what it stands for would be mixed with what is asked for now.
        """
        folder = self.path / name
        mark = fingerprint(inputs)
        manifest = folder / MANIFEST
        if manifest.exists():
            old = read_manifest(manifest)
            if old["fingerprint"] != mark:
                changed = [k for k in inputs if old["inputs"].get(k) != json.loads(json.dumps(inputs[k], default=str))]
                raise RunError(f"{folder} was made from other inputs ({', '.join(changed)}): remove it to make it again")
            self.say(f"{name}: complete, nothing to do")
            return old["results"]
        folder.mkdir(parents=True, exist_ok=True)
        started = time.time()
        results, stats = work(folder)
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
        return results


def read_manifest(path: Path) -> dict:
    """A manifest as written; raises RunError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged manifest: {error}") from None


def manifests(path: Path) -> list[dict]:
    """All manifests of a run folder, in the order in which their stages began."""
    found = [read_manifest(p) for p in path.rglob(MANIFEST)]
    return sorted(found, key=lambda m: m["started"])


@contextmanager
def replaced(folder: Path):
    """A new empty folder beside `folder` that takes its place, whole, when the block ends without an error."""
    import shutil

    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
