"""Where MCKD pays: its final student against plain distillation from the same labels, one recipe per condition.

    python benchmarks/mckd_map.py FOLDER [--conditions NAME,NAME] [--seeds 1,2,3]

FOLDER is where `raykd run` finds what the recipes in mckd_map/ name: snips.jsonl.gz, polarity.inputs.jsonl and
polarity.test.jsonl and polarity.shots.jsonl (text, label), smollm2 and minilm (Hugging Face folders). Runs are kept
in FOLDER/runs, so that what is done is not done again. A seed splits the inputs, draws the samples and makes the
students; a condition's seeds share the labels of a greedy teacher. Figures are means over the seeds, with the standard
error of the mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from raykd.metrics import lower_is_better

RECIPES = Path(__file__).parent / "mckd_map"
# labels are scored on the inputs that students learn, arms on the test rows; remembered: how much better a student says
# again what it was taught than it agrees with the labels that it never saw; gained: by mckd over distilled
FIGURES = ("teacher's labels", "students' labels", "remembered", "teacher", "distilled", "mckd", "gained")


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("folder", type=Path)
    given.add_argument("--conditions", default=",".join(sorted(path.stem for path in RECIPES.glob("*.yaml"))))
    given.add_argument("--seeds", default="1,2,3")
    settings = given.parse_args()
    seeds = [int(seed) for seed in settings.seeds.split(",")]
    names = settings.conditions.split(",")
    found = {name: [measured(settings.folder, name, seed) for seed in seeds] for name in names}
    head = ["condition", "metric", *FIGURES]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for condition, results in found.items():
        cells = [said([one[figure] for one in results]) for figure in FIGURES]
        print("| " + " | ".join([condition, results[0]["metric"], *cells]) + " |")


def measured(folder: Path, condition: str, seed: int) -> dict:
    """What the report of a run says, of the recipe's first metric."""
    name = f"{condition}-{seed}"
    report = folder / "runs" / name / "report.json"
    overrides = [f"name={name}", f"seed={seed}", "output=runs"]
    command = [sys.executable, "-m", "raykd", "run", str(RECIPES.absolute() / f"{condition}.yaml"), *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    told = json.loads(report.read_text())
    metric = next(iter(told["arms"]["mckd"]))
    sign = -1 if lower_is_better(metric) else 1
    arms = {arm: scores[metric] for arm, scores in told["arms"].items()}
    labels = [one["metrics"][metric] for one in told["pseudo_targets"]]
    memory = statistics.mean(one["seen"] - one["unseen"] for one in told["memory"][-1]["students"])
    result = {"teacher's labels": labels[0], "students' labels": labels[-1], "remembered": sign * memory, **arms}
    result |= {"gained": sign * (arms["mckd"] - arms["distilled"]), "metric": metric}
    seconds = round(told["totals"]["wall_seconds"])
    print(json.dumps({"run": name, "seconds": seconds, **result}), file=sys.stderr, flush=True)
    return result


def said(values: list[float]) -> str:
    """The mean, and the standard error of it where there are several."""
    mean = statistics.mean(values)
    return f"{mean:.1f}" + (f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
