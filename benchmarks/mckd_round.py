"""A round of MCKD: its two students at the same time, against one after the other with all cores each.

    python benchmarks/mckd_round.py --teacher FOLDER [--rows N] [--rounds N]

FOLDER is a decoder-only model that pronounces words (the demo's fine-tuned teacher: <run>/teacher/fine_tune/model), the
students are the demo's. Seconds are from the first student's start to the last relabelling's end, workers' and engines'
start included, in interleaved rounds; the teacher's labels are made once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PLACES = {"at the same time": {"CPU": 1}, "in turn": {"CPU": 5}}  # of a local Ray's eight logical CPUs


def main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("--teacher", required=True)
    given.add_argument("--rows", type=int, default=16_000)
    given.add_argument("--steps", type=int, default=1_000)
    given.add_argument("--rounds", type=int, default=2)
    settings = given.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in PLACES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.rounds):
            for way in list(PLACES)[:: -1 if number % 2 else 1]:
                found[way].append(measured(Path(folder), settings, way, number))
                print(json.dumps({"way": way, **found[way][-1]}), file=sys.stderr, flush=True)
    walls = {way: statistics.median(one["wall"] for one in results) for way, results in found.items()}
    trained = {way: statistics.median(one["trained"] for one in results) for way, results in found.items()}
    print("| | until both students are trained, s | until both partitions are relabelled, s | of in turn |")
    print("|---|---|---|---|")
    for way in PLACES:
        print(f"| {way} | {trained[way]:.0f} | {walls[way]:.0f} | {walls[way] / walls['in turn']:.2f} |")


def measured(folder: Path, settings: argparse.Namespace, way: str, number: int) -> dict[str, float]:
    """Seconds from the first student's start until both are trained, and until both partitions are relabelled."""
    name = f"{way.replace(' ', '-')}-{number}"
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(tree(folder, settings, name, PLACES[way])))
    done = subprocess.run([sys.executable, "-m", "raykd", "run", str(recipe)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    at = folder / name / "mckd/round-1"
    students, labels = (
        [json.loads(path.read_text()) for path in at.glob(f"{kind}-*/manifest.json")]
        for kind in ("student", "labels-by")
    )
    begun = min(one["started"] for one in students)
    ended = {what: max(s["started"] + s["seconds"] for s in all_) for what, all_ in (("t", students), ("l", labels))}
    threads = {one["stats"]["threads"] for one in students}
    return {"wall": ended["l"] - begun, "trained": ended["t"] - begun, "threads": threads.pop()}


def tree(folder: Path, settings: argparse.Namespace, name: str, place: dict[str, float]) -> dict:
    """The demo without its final student's comparisons, its teacher given."""
    demo = yaml.safe_load((ROOT / "pipelines/recipes/demo.yaml").read_text())
    student = demo["student"]
    student["training"] |= {"max_steps": settings.steps, "evaluate_every": settings.steps}
    return {
        "name": name,
        "output": str(folder),
        "method": {"kind": "mckd"},
        "data": {"unlabelled": {**demo["data"]["unlabelled"], "limit": settings.rows}, "max_bad_rows": 1000},
        "tokenizer": {"kind": "pretrained", "path": settings.teacher},
        "teacher": {**demo["teacher"], "model": {"kind": "checkpoint", "path": settings.teacher}, "fine_tune": None},
        "student": student,
        "cluster": {"student": {"resources": place}, "labelling_students": {"resources": place}},
    }


if __name__ == "__main__":
    main()
