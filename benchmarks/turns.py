"""Two checkouts against each other: the same benchmarks, each in its own environment, in turns.

    python benchmarks/turns.py OLD NEW [--rounds 5] [--model FOLDER] [--only training,machinery,teacher_pass]

Each checkout has its `.venv`, as `make setup` leaves it. For every benchmark it prints the median of each checkout, its
range over the rounds, and the median of the rounds' ratios, new to old; all are rows per second, more is better.

    training      benchmarks/training.py, 24,000 words, the arm `raykd`
    machinery     benchmarks/machinery.py, 100,000 rows: the pass alone
    teacher_pass  benchmarks/teacher_pass.py, 16,000 words, the arm `raykd`; --model is the demo's teacher
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="the folder of the demo's fine-tuned teacher")
    parser.add_argument("--only", default="training,machinery,teacher_pass")
    options = parser.parse_args()
    print("| benchmark | old, rows/s | new, rows/s | new / old |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        for name in options.only.split(","):
            if name == "teacher_pass":
                write_prompts(options.new, prompts)
            rates: dict[Path, list[float]] = {options.old: [], options.new: []}
            for number in range(options.rounds):
                for checkout in (options.old, options.new) if number % 2 == 0 else (options.new, options.old):
                    rates[checkout].append(BENCHMARKS[name](checkout, options.model, prompts))
                    print(name, number, checkout.name, f"{rates[checkout][-1]:.0f}", file=sys.stderr, flush=True)
            shown = [f"{statistics.median(r):,.0f} ({min(r):,.0f} to {max(r):,.0f})" for r in rates.values()]
            ratios = [new / old for old, new in zip(*rates.values(), strict=True)]
            print(f"| {name} | {' | '.join(shown)} | {statistics.median(ratios):.3f} |", flush=True)


def run(checkout: Path, *command: str) -> str:
    """What a benchmark of a checkout prints."""
    checkout = checkout.resolve()
    program = [str(checkout / ".venv/bin/python"), *command]
    done = subprocess.run(program, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(program)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def write_prompts(checkout: Path, path: Path) -> None:
    code = "import json; from raykd.data.tasks.pronunciation import cmudict\n"
    code += "for row in cmudict('unlabelled'): print(json.dumps({'input': row['input']}))"
    path.write_text(run(checkout, "-c", code))


def training(checkout: Path, model: str | None, prompts: Path) -> float:
    printed = run(checkout, "benchmarks/training.py", "--rows", "24000", "--rounds", "1", "--arms", "raykd")
    return number(printed, column=3)


def machinery(checkout: Path, model: str | None, prompts: Path) -> float:
    return number(run(checkout, "benchmarks/machinery.py", "100000"), column=4)


def teacher_pass(checkout: Path, model: str | None, prompts: Path) -> float:
    if model is None:
        sys.exit("teacher_pass needs --model")
    command = ["benchmarks/teacher_pass.py", "--model", model, "--prompts", str(prompts), "--arm", "raykd"]
    printed = run(checkout, *command, "--rows", "16000", "--threads", "1", "--template", "{input} =>")
    return json.loads(printed.rpartition("RESULT ")[2])["rows_per_second"]


def number(printed: str, column: int) -> float:
    """A cell of a table's last line."""
    return float(printed.strip().splitlines()[-1].split("|")[column].replace(",", ""))


BENCHMARKS = {"training": training, "machinery": machinery, "teacher_pass": teacher_pass}

if __name__ == "__main__":
    main()
