"""TODO: docstring."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raykd.errors import RunError
from raykd.metrics import lower_is_better
from raykd.recipe.load import load_recipe
from raykd.run.manifests import BAD_ROWS, MANIFEST, manifests, read_manifest, stage_files

ARMS = ("teacher", "gold_only", "distilled", "mckd")  # the order they are shown in; others follow
SHOWN_BAD_ROWS = 20

NEEDED = ("stage", "kind", "started", "seconds", "results", "stats")
NEEDED_RESULTS = {
    "evaluate": ("arm", "metrics"),
    "quality": ("round", "labeller", "metrics"),
    "compare": ("label_recall", "agreement"),
}
SCORED = {"distill": "distilled", "mckd": "mckd"}  # method -> its own arm
LAST = {"distill": "distilled", "mckd": "mckd/final"}  # method -> the stage that trains its student
LITTLE = 6  # points between what students were taught and what they never saw, under which MCKD lost (benchmarks)


def gather_run(folder: Path) -> dict[str, Any]:
    """All that a report says, unrounded."""
    recipe = load_recipe(folder / "recipe.yaml")
    done = _manifests(folder)
    scored = {m["results"]["arm"]: m["results"]["metrics"] for m in done if m["kind"] == "evaluate"}
    begin = min((m["started"] for m in done), default=0.0)
    end = max((m["started"] + m["seconds"] for m in done), default=0.0)
    stages = [_stage(m, begin) for m in done]
    of_teacher = [s for s in stages if s["stage"].startswith(("teacher/", "evaluate/teacher"))]
    bad, environment = _bad_rows(folder / BAD_ROWS), folder / "environment.json"
    method = recipe.method.kind
    return {
        "name": recipe.name,
        "description": recipe.description,
        "method": recipe.method.model_dump(mode="json"),
        "complete": SCORED[method] in scored if recipe.data.test else any(s["stage"] == LAST[method] for s in stages),
        "arms": {name: scored[name] for name in dict.fromkeys([*ARMS, *scored]) if name in scored},
        "costs": _costs(scored, stages),
        "pseudo_targets": [m["results"] for m in done if m["kind"] == "quality"],
        "memory": [{"stage": m["stage"], **m["results"]} for m in done if m["kind"] == "memory"],
        "warnings": _warnings(done),
        "trees": next((m["results"] for m in done if m["kind"] == "compare"), None),
        "stages": stages,
        "totals": {
            "wall_seconds": end - begin,
            "stage_seconds": sum(s["seconds"] for s in stages),
            "teacher_tokens": sum(s["stats"].get("output_tokens", 0) for s in of_teacher),
            "tokens_trained": sum(s["stats"].get("tokens", 0) for s in stages if s["kind"] == "train"),
            "failed_rows": len(bad),
            "endpoint_rows": sum(s["stats"].get("endpoint_rows", 0) for s in stages),
            "endpoint_cost": sum(s["stats"].get("endpoint_cost", 0) for s in stages),
        },
        "failed": {"count": len(bad), "rows": bad[:SHOWN_BAD_ROWS]},
        "licences": {"data": recipe.data.licence, "teacher": recipe.teacher.licence},
        "environment": parsed_lines(environment.read_text("utf-8"), str(environment)) if environment.exists() else {},
        "again": f"raykd run {shlex.quote(str(folder.absolute() / 'recipe.yaml'))}",
    }


def _warnings(done: list[dict[str, Any]]) -> list[str]:
    """Where MCKD does not pay, as far as the map of conditions in benchmarks/README.md tells."""
    found = []
    memory = [m["results"] for m in done if m["kind"] == "memory"]
    gaps = [s["seen"] - s["unseen"] for s in (memory[-1]["students"] if memory else []) if None not in s.values()]
    if gaps:
        gap = sum(gaps) / len(gaps) * (-1 if lower_is_better(memory[-1]["metric"]) else 1)
        if gap < LITTLE:
            found.append(
                f"The students of the last round learnt little of their labels by heart ({gap:.1f} points between "
                f"labels they were taught and labels they never saw, {LITTLE} or more where MCKD paid): expect "
                "plain distillation (arms.distilled) to be as good or better."
            )
    scored = [m["results"] for m in done if m["kind"] == "quality" and m["results"]["metrics"]]
    first = next((one for one in scored if one["round"] == 0), None)
    if first and scored[-1]["round"] > 0 and scored[-1]["rows"] == first["rows"]:  # else the teacher's bad ones lack
        teacher, last = first["metrics"], scored[-1]
        metric = next(iter(teacher))
        worse = (last["metrics"][metric] - teacher[metric]) * (1 if lower_is_better(metric) else -1)
        if worse > 0:
            found.append(
                f"The labels of round {last['round']} are worse than the teacher's ({metric} "
                f"{last['metrics'][metric]:.1f} against {teacher[metric]:.1f}): where this was so MCKD lost to plain "
                "distillation (arms.distilled)."
            )
    return found


def _costs(arms: Iterable[str], stages: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By arm: the seconds of its trainings and of its students' labelling, each as if alone, and the teacher's."""
    own = {"mckd": "mckd/", "teacher": "-"}

    def seconds(kind: str, *begin: str) -> float:
        return sum(s["seconds"] for s in stages if s["kind"] == kind and s["stage"].startswith(begin))

    costs = {}
    for arm in arms:
        at = own.get(arm, arm)
        trained, labelled = seconds("train", at), seconds("label", at)
        teacher = 0.0 if arm == "gold_only" else seconds("train", "teacher/") + seconds("label", "teacher/")
        costs[arm] = {"trainings": trained, "students_labelling": labelled, "teacher": teacher}
    return costs


def _manifests(folder: Path) -> list[dict]:
    """Every manifest, in the order in which the stages began; raises RunError for one that cannot be used."""
    for path in stage_files(folder, MANIFEST):
        found = read_manifest(path)
        lacking = [k for k in NEEDED if not isinstance(found, dict) or k not in found]
        if not lacking:
            lacking = [k for k in NEEDED_RESULTS.get(found["kind"], ()) if k not in found["results"]]
        if lacking:
            raise RunError(f"{path}: damaged manifest: no {', '.join(lacking)}")
    return sorted(manifests(folder), key=lambda m: (m["started"], m["stage"]))


def _stage(manifest: dict, begin: float) -> dict[str, Any]:
    stats = manifest["stats"]
    return {
        "stage": manifest["stage"],
        "kind": manifest["kind"],
        "started": manifest["started"] - begin,
        "seconds": manifest["seconds"],
        "rows": stats.get("rows"),
        "tokens": stats.get("tokens", stats.get("output_tokens")),
        "tokens_per_second": stats.get("tokens_per_second"),
        "stats": stats,
    }


def parsed_lines(text: str, where: str) -> dict[str, Any]:
    """A JSON object; raises RunError, saying where, for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RunError(f"{where}: damaged: no JSON object")
    return value


def logged_curves(folder: Path) -> dict[str, list[dict]]:
    """The log of every training, by stage, also of one that still runs: its half-written line is left out."""
    return {path.parent.relative_to(folder).as_posix(): log_lines(path) for path in stage_files(folder, "log.jsonl")}


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a log, a line each; a line that is half written is left out."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            kept.append(parsed_lines(line, str(path)))
        except RunError:
            continue
    return kept


def _bad_rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [parsed_lines(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    return [{key: row.get(key) for key in ("file", "line", "reason")} for row in rows]
