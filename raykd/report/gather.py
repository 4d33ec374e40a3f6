"""What a run's report says, read from the files of its run folder.

What a stage was for is in its manifest (`raykd.run.manifests.StageAbout`): the arm, whether this arm is the method's
own, the round, the partition. So nothing here knows a method.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raykd.errors import RunError
from raykd.metrics import lower_is_better
from raykd.recipe.arms import Arms
from raykd.recipe.load import load_recipe
from raykd.recipe.modules import put_on_path
from raykd.recipe.recipe import Recipe
from raykd.run.manifests import BAD_ROWS, MANIFEST, read_manifest, stage_files

TEACHER, CONTROL = "teacher", "gold_only"  # the arms that the others are compared with
SHOWN_BAD_ROWS = 20
LITTLE = 6  # points of memorisation under which relabelling lost to plain distillation (benchmarks/README.md)
NEEDED = ("stage", "kind", "arm", "own", "round", "partition", "inputs", "started", "seconds", "results", "stats")
NEEDED_RESULTS = {
    "evaluate": ("arm", "metrics"),
    "quality": ("round", "labeller", "metrics"),
    "compare": ("label_recall", "agreement"),
}


def gather_run(folder: Path) -> dict[str, Any]:
    """The content of `report.json`: all numbers of a run, not rounded.

    Raises RunError for a damaged file of the run, RecipeError for a damaged recipe.
    """
    recipe, manifests, bad_rows = load_recipe(folder / "recipe.yaml"), run_manifests(folder), _bad_rows(folder)
    put_on_path(recipe.modules)  # a metric of the user's says there whether less of it is better
    run_start = min((m["started"] for m in manifests), default=0.0)
    arms = _in_order(arm_scores(manifests), manifests)
    return {
        "name": recipe.name,
        "description": recipe.description,
        "method": recipe.method.model_dump(mode="json"),
        "complete": _is_complete(recipe, manifests),
        "arms": arms,
        "costs": _costs(arms, manifests),
        "pseudo_targets": [m["results"] for m in manifests if m["kind"] == "quality"],
        "memory": [{"stage": m["stage"], **m["results"]} for m in manifests if m["kind"] == "memorisation"],
        "warnings": _warnings(manifests),
        "trees": next((m["results"] for m in manifests if m["kind"] == "compare"), None),
        "stages": [_stage(m, run_start) for m in manifests],
        "totals": _totals(manifests, run_start) | {"failed_rows": len(bad_rows)},
        "failed": {"count": len(bad_rows), "rows": bad_rows[:SHOWN_BAD_ROWS]},
        "licences": {"data": recipe.data.licence, "teacher": recipe.teacher.licence},
        "environment": json_object(folder / "environment.json"),
        "again": f"raykd run {shlex.quote(str(folder.absolute() / 'recipe.yaml'))}",
    }


def run_manifests(folder: Path) -> list[dict[str, Any]]:
    """The manifests of a run in the order in which its stages began. Raises RunError for one that is damaged."""
    manifests = [_checked_manifest(path) for path in stage_files(folder, MANIFEST)]
    return sorted(manifests, key=lambda m: (m["started"], m["stage"]))


def _checked_manifest(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    missing = [key for key in NEEDED if not isinstance(manifest, dict) or key not in manifest]
    if not missing:
        missing = [key for key in NEEDED_RESULTS.get(manifest["kind"], ()) if key not in manifest["results"]]
    if missing:
        raise RunError(f"{path}: damaged manifest: no {', '.join(missing)}")
    return manifest


def arm_scores(manifests: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{arm: {metric: score}} on the test rows."""
    return {m["results"]["arm"]: m["results"]["metrics"] for m in manifests if m["kind"] == "evaluate"}


def _in_order(scores: dict[str, dict[str, float]], manifests: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The same scores: the teacher's, those of the recipe's `arms`, those of the method's own arm, then others."""
    own = [m["arm"] for m in manifests if m["own"]]
    return {arm: scores[arm] for arm in dict.fromkeys([TEACHER, *Arms.model_fields, *own, *scores]) if arm in scores}


def _is_complete(recipe: Recipe, manifests: list[dict[str, Any]]) -> bool:
    """Whether the method's own student is scored; without test rows, whether it is trained."""
    own = [m for m in manifests if m["own"]]
    if recipe.data.test:
        return any(m["kind"] == "evaluate" for m in own)
    return any(m["kind"] == "train" and m["round"] is None for m in own)


def _costs(arms: Iterable[str], manifests: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By arm the seconds of its trainings, of its students' labelling, and of the teacher's training and labelling.

    Seconds of stages that ran at the same time are added. Predictions for test rows are not among them.
    """

    def seconds(kind: str, arm: str) -> float:
        return sum(m["seconds"] for m in manifests if m["kind"] == kind and m["arm"] == arm and not _only_predicts(m))

    teacher = seconds("train", TEACHER) + seconds("label", TEACHER)
    return {
        arm: {
            "trainings": 0.0 if arm == TEACHER else seconds("train", arm),
            "students_labelling": 0.0 if arm == TEACHER else seconds("label", arm),
            "teacher": 0.0 if arm == CONTROL else teacher,
        }
        for arm in arms
    }


def _only_predicts(manifest: dict[str, Any]) -> bool:
    """Whether a manifest is that of a labelling of test rows alone, which no student learns."""
    return set(manifest["inputs"].get("rows", ())) == {"test"}


def _warnings(manifests: list[dict[str, Any]]) -> list[str]:
    """Where relabelling does not pay, as far as the map of conditions in benchmarks/README.md tells."""
    return [warning for warning in (_little_memorised(manifests), _worse_than_teacher(manifests)) if warning]


def _little_memorised(manifests: list[dict[str, Any]]) -> str | None:
    by_round = [m["results"] for m in manifests if m["kind"] == "memorisation"]
    if not by_round:
        return None
    last = by_round[-1]
    gaps = [student["seen"] - student["unseen"] for student in last["students"] if None not in student.values()]
    if not gaps:
        return None
    gap = sum(gaps) / len(gaps) * (-1 if lower_is_better(last["metric"]) else 1)
    if gap >= LITTLE:
        return None
    return (
        f"The students of the last round learnt little of their pseudo-targets by heart ({gap:.1f} points between "
        f"pseudo-targets they were taught and ones they never saw, {LITTLE} or more where relabelling paid): expect "
        "plain distillation (arms.distilled) to be as good or better."
    )


def _worse_than_teacher(manifests: list[dict[str, Any]]) -> str | None:
    quality = [m["results"] for m in manifests if m["kind"] == "quality" and m["results"]["metrics"]]
    teacher = next((results for results in quality if results["round"] == 0), None)
    if teacher is None or quality[-1]["round"] == 0:
        return None
    last = quality[-1]
    if last["rows"] != teacher["rows"]:  # the teacher's worst were dropped, and are not among what it is scored on
        return None
    metric = next(iter(teacher["metrics"]))
    before, after = teacher["metrics"][metric], last["metrics"][metric]
    if not (after > before if lower_is_better(metric) else after < before):
        return None
    return (
        f"The pseudo-targets of round {last['round']} are worse than the teacher's ({metric} {after:.1f} against "
        f"{before:.1f}): where this was so, relabelling lost to plain distillation (arms.distilled)."
    )


def _stage(manifest: dict[str, Any], run_start: float) -> dict[str, Any]:
    """A stage as the report shows it. `run_start`: when the run's first stage started, in Unix time."""
    stats = manifest["stats"]
    return {
        "stage": manifest["stage"],
        "kind": manifest["kind"],
        "started": manifest["started"] - run_start,
        "seconds": manifest["seconds"],
        "rows": stats.get("rows"),
        "tokens": stats.get("tokens", stats.get("output_tokens")),
        "tokens_per_second": stats.get("tokens_per_second"),
        "stats": stats,
    }


def _totals(manifests: list[dict[str, Any]], run_start: float) -> dict[str, float]:
    end = max((m["started"] + m["seconds"] for m in manifests), default=0.0)

    def total(key: str, of: Iterable[dict[str, Any]]) -> float:
        return sum(m["stats"].get(key, 0) for m in of)

    return {
        "wall_seconds": end - run_start,
        "stage_seconds": sum(m["seconds"] for m in manifests),
        "teacher_tokens": total("output_tokens", (m for m in manifests if m["arm"] == TEACHER)),
        "tokens_trained": total("tokens", (m for m in manifests if m["kind"] == "train")),
        "endpoint_rows": total("endpoint_rows", manifests),
        "endpoint_cost": total("endpoint_cost", manifests),
    }


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file. Raises RunError for anything else."""
    return parse_object(path.read_text(encoding="utf-8"), str(path)) if path.exists() else {}


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises RunError, which names `where` the text is from, for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RunError(f"{where}: damaged: no JSON object")
    return value


def training_logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By stage the lines of its training's log, also of a training that still runs."""
    return {path.parent.relative_to(folder).as_posix(): log_lines(path) for path in stage_files(folder, "log.jsonl")}


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a log, one in each line; a line that is only half written is left out."""
    objects = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            objects.append(parse_object(line, str(path)))
        except RunError:
            continue
    return objects


def _bad_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows that were left out. `row` is the id of an example, None where `line` tells which row it is."""
    path = folder / BAD_ROWS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [parse_object(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    return [{key: row.get(key) for key in ("file", "line", "reason", "row")} for row in rows]
