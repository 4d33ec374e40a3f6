"""The manifests of a run folder, one for each complete stage. `raykd/run/folder.py` describes their content."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from raykd.errors import RunError

MANIFEST = "manifest.json"
BAD_ROWS = "bad_rows.jsonl"


@dataclass(frozen=True)
class StageAbout:
    """The purpose of a stage: its manifest holds it, for the report.

    arm        the arm that it belongs to, "teacher" for the teacher's stages; None where it serves several arms
    own        whether this arm is the method's own, not one that the method is compared with
    round      MCKD's round, from 1
    partition  the partition whose student the stage trains, or has label
    """

    arm: str | None = None
    own: bool = False
    round: int | None = None
    partition: int | None = None


def read_manifest(path: Path) -> dict:
    """A manifest as written. Raises RunError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged manifest: {error}") from None


def stage_files(path: Path, name: str) -> list[Path]:
    """The files of that name in a run folder, also in stages that it shares with another run."""
    return sorted(Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) if name in names)


def manifests(path: Path) -> list[dict]:
    """All manifests of a run folder, in the order in which their stages began."""
    return sorted(map(read_manifest, stage_files(path, MANIFEST)), key=lambda manifest: manifest["started"])
