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

import json
import os
from pathlib import Path

from raykd.errors import RunError

MANIFEST = "manifest.json"
BAD_ROWS = "bad_rows.jsonl"


def read_manifest(path: Path) -> dict:
    """A manifest as written; raises RunError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged manifest: {error}") from None


def stage_files(path: Path, name: str) -> list[Path]:
    """The files of that name in a run folder, also in stages that it shares with another run."""
    return sorted(Path(at) / name for at, _, found in os.walk(path, followlinks=True) if name in found)


def manifests(path: Path) -> list[dict]:
    """All manifests of a run folder, in the order in which their stages began."""
    found = [read_manifest(p) for p in stage_files(path, MANIFEST)]
    return sorted(found, key=lambda m: m["started"])
