"""What the teacher pass costs without an engine: the shipped scripted engine, which writes the prompt back.

    python benchmarks/machinery.py [ROWS ...]

For each number of rows, a run of `raykd label` in a process of its own: rows per second from reading the file to the
closed store, rows per second of the pass alone, and the driver's largest resident memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SIZES = [10_000, 100_000, 1_000_000]


def main() -> None:
    print("| rows | whole run, s | rows/s | pass alone, rows/s | driver's memory, MB |\n|---|---|---|---|---|")
    for rows in [int(size) for size in sys.argv[1:]] or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            recipe = prepared(Path(folder), rows)
            begun = time.monotonic()
            command = [sys.executable, __file__, "--driver", str(recipe)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            seconds = time.monotonic() - begun
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            stats = json.loads((Path(folder) / "pass/teacher/labels/manifest.json").read_text())["stats"]
            assert stats["new_rows"] == rows, stats
            memory = int(done.stdout.rpartition("memory ")[2])
            print(f"| {rows:,} | {seconds:.1f} | {rows / seconds:,.0f} | {rows / stats['seconds']:,.0f} | {memory:,} |")


def prepared(folder: Path, rows: int) -> Path:
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps({"input": f"What is the square of {number}? Answer in one word."}) + "\n")
    teacher = {"model": {"kind": "checkpoint", "path": str(model(folder))}, "engine": {"kind": "scripted"}}
    tree = {
        "name": "pass",
        "output": str(folder),
        "method": {"kind": "distill"},
        "data": {"unlabelled": {"kind": "jsonl", "path": str(folder / "rows.jsonl")}},
        "tokenizer": {"kind": "words"},
        "teachers": {"main": teacher},
        "student": {
            "model": {"kind": "config", "model_type": "t5"},
            "training": {"learning_rate": 0.1, "max_steps": 1},
        },
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def model(folder: Path) -> Path:
    """A folder with a model's files: the scripted engine opens no model, but the store's name depends on them."""
    import torch
    from safetensors.torch import save_file

    path = folder / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": torch.zeros(1)}, path / "model.safetensors")
    return path


def driver(recipe: str) -> None:
    import resource

    sys.path.insert(0, str(ROOT))
    from raykd.cli import main

    code = main(["label", recipe])
    print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}")
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--driver"]:
        driver(sys.argv[2])
    main()
