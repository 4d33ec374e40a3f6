"""What a sweep costs beside its trainings: trials that do next to nothing, one step of a tiny student.

    python benchmarks/sweep.py [TRIALS ...]

Each number of trials is a `raykd tune` of its own, from nothing, two trials at a time; first comes a single `raykd run`
of the same recipe. "A trial more" is the difference to the first number of trials, divided by the trials more.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from machinery import ROOT, prepared

STUDENT = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
SPACE = """
from ray import tune

SPACE = {{"student.training.learning_rate": tune.choice([0.001 * (i + 1) for i in range({trials})])}}
SEARCH = {{"kind": "grid", "concurrent": 2}}
"""


def main() -> None:
    counts = [int(count) for count in sys.argv[1:]] or [2, 8]
    print("| command | seconds | a trial more, s |\n|---|---|---|")
    print(f"| raykd run | {took('run'):.1f} | |")
    first = 0.0
    for count in counts:
        seconds = took("tune", count)
        more = f"{(seconds - first) / (count - counts[0]):.1f}" if count > counts[0] else ""
        first = first or seconds
        print(f"| raykd tune, {count} trials | {seconds:.1f} | {more} |", flush=True)


def took(command: str, trials: int = 0) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = prepared(folder, 200)
        tree = yaml.safe_load(recipe.read_text())
        tree["student"]["model"]["settings"] = STUDENT
        recipe.write_text(yaml.safe_dump(tree))
        (folder / "space.py").write_text(SPACE.format(trials=trials))
        files = [str(recipe), *([str(folder / "space.py")] if trials else [])]
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "raykd", command, *files], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return time.monotonic() - begun


if __name__ == "__main__":
    main()
