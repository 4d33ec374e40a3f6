"""Training while the teacher still writes: labelling plus one epoch, at the same time against one after the other.

    python benchmarks/overlap.py --teacher FOLDER [--rows N] [--rounds N]

FOLDER is a decoder-only model that pronounces words (the demo's fine-tuned teacher: <run>/teacher/fine_tune/model).
Teacher and student have one core each, in both arms. Seconds are those of the stages, engines' and workers' start
included, in interleaved rounds.
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=2)
    settings = parser.parse_args()
    results: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for number in range(settings.rounds):
        for overlap in (False, True) if number % 2 else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                results[overlap].append(measure(Path(folder), settings.teacher, settings.rows, overlap))
            print(json.dumps({"overlap": overlap, **results[overlap][-1]}), file=sys.stderr, flush=True)

    def median(overlap: bool, name: str) -> float:
        return statistics.median(result[name] for result in results[overlap])

    teacher, student = median(False, "teacher"), median(False, "student")
    print(
        "| rows | teacher, s | student, s | one after the other, s | at the same time, s | of max(teacher, student) |"
    )
    print("|---|---|---|---|---|---|")
    ratio = median(True, "wall") / max(teacher, student)
    walls = f"{median(False, 'wall'):.0f} | {median(True, 'wall'):.0f}"
    print(f"| {settings.rows:,} | {teacher:.0f} | {student:.0f} | {walls} | {ratio:.2f} |")


def measure(folder: Path, teacher: str, rows: int, overlap: bool) -> dict[str, float]:
    """Seconds of the labelling, of the training, and from the first's start to the last's end."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree(folder, teacher, rows, overlap)))
    done = subprocess.run([sys.executable, "-m", "raykd", "run", str(recipe)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    stages = [
        json.loads((folder / "o" / name / "manifest.json").read_text()) for name in ("teacher/labels", "distilled")
    ]
    ends = [stage["started"] + stage["seconds"] for stage in stages]
    wall = max(ends) - min(stage["started"] for stage in stages)
    waited = stages[1]["stats"]["waited_seconds"]
    return {"teacher": stages[0]["seconds"], "student": stages[1]["seconds"], "wall": wall, "waited": waited}


def tree(folder: Path, teacher: str, rows: int, overlap: bool) -> dict:
    demo = yaml.safe_load((ROOT / "pipelines/recipes/demo.yaml").read_text())
    words = folder / "words.jsonl"
    if not words.exists():
        from raykd.data.tasks.pronunciation import cmudict

        parts = [row for part in ("gold", "unlabelled", "control", "test", "dev") for row in cmudict(part)]
        words.write_text("".join(json.dumps({"input": row["input"]}) + "\n" for row in (parts * 3)[:rows]))
    student, model = demo["student"], {"kind": "checkpoint", "path": teacher}
    student["training"] |= {"max_steps": None, "epochs": 1, "batch_tokens": 2560, "evaluate_every": 10_000}
    return {
        "name": "o",
        "output": str(folder),
        "method": {"kind": "distill", "overlap": overlap},
        "data": {"unlabelled": {"kind": "jsonl", "path": str(words)}, "max_bad_rows": 1000},
        "tokenizer": {"kind": "pretrained", "path": teacher},
        "teachers": {"main": {**demo["teachers"]["main"], "model": model, "fine_tune": None}},
        "student": student,
        "cluster": {"teacher": {"threads": 1}, "student": {"threads": 1}},
    }


if __name__ == "__main__":
    main()
