"""A round of MCKD: its two students at the same time, against one after the other with all cores each.

    python benchmarks/mckd_round.py --teacher FOLDER [--rows N] [--rounds N]

FOLDER is a decoder-only model that pronounces words (the demo's fine-tuned teacher: <run>/teacher/fine_tune/model), the
students are the demo's. Seconds are from the first student's start to the last relabelling's end, workers' and engines'
start included, in interleaved rounds; the teacher labels once.
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=2)
    settings = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {way: [] for way in PLACES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.rounds):
            for way in list(PLACES)[:: -1 if number % 2 else 1]:
                results[way].append(measure(Path(folder), settings, way, number))
                print(json.dumps({"way": way, **results[way][-1]}), file=sys.stderr, flush=True)
    walls = {way: statistics.median(result["wall"] for result in of_way) for way, of_way in results.items()}
    trained = {way: statistics.median(result["trained"] for result in of_way) for way, of_way in results.items()}
    print("| | until both students are trained, s | until both partitions are relabelled, s | of in turn |")
    print("|---|---|---|---|")
    for way in PLACES:
        print(f"| {way} | {trained[way]:.0f} | {walls[way]:.0f} | {walls[way] / walls['in turn']:.2f} |")


def measure(folder: Path, settings: argparse.Namespace, way: str, number: int) -> dict[str, float]:
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
    begun = min(manifest["started"] for manifest in students)
    trained, relabelled = (max(m["started"] + m["seconds"] for m in manifests) for manifests in (students, labels))
    threads = {manifest["stats"]["threads"] for manifest in students}
    return {"wall": relabelled - begun, "trained": trained - begun, "threads": threads.pop()}


def tree(folder: Path, settings: argparse.Namespace, name: str, place: dict[str, float]) -> dict:
    """The demo's recipe without the arms to compare with, and with a teacher that is trained already."""
    demo = yaml.safe_load((ROOT / "pipelines/recipes/demo.yaml").read_text())
    student, model = demo["student"], {"kind": "checkpoint", "path": settings.teacher}
    student["training"] |= {"max_steps": settings.steps, "evaluate_every": settings.steps}
    return {
        "name": name,
        "output": str(folder),
        "method": {"kind": "mckd"},
        "data": {"unlabelled": {**demo["data"]["unlabelled"], "limit": settings.rows}, "max_bad_rows": 1000},
        "tokenizer": {"kind": "pretrained", "path": settings.teacher},
        "teachers": {"main": {**demo["teachers"]["main"], "model": model, "fine_tune": None}},
        "student": student,
        "cluster": {"student": {"resources": place}, "labelling_students": {"resources": place}},
    }


if __name__ == "__main__":
    main()
