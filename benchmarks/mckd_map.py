"""Where MCKD pays: its final student against plain distillation from the same labels, one recipe per condition.

    python benchmarks/mckd_map.py FOLDER [--conditions NAME,NAME] [--option NAME] [--seeds 1,2,3]

FOLDER is where `raykd run` finds what the recipes in mckd_map/ name: snips.jsonl.gz, craft.mrg.gz, smollm2 and minilm
(Hugging Face folders). Runs are kept in FOLDER/runs, so that what is done is not done again. A seed splits the inputs,
draws the samples and makes the students; a condition's seeds share the labels of a greedy teacher. Figures are means
over the seeds, with the standard error of the mean. An option is one of MCKD's beyond the paper.
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
LABELS = ("teacher's labels", "students' labels", "remembered")
ARMS = ("teacher", "gold_only", "distilled", "mckd")
OPTIONS = {
    "confidence": ["method.weighting=confidence"],
    "agreement": ["method.weighting=agreement", "method.consistency_filter={metric: exact_match}"],
    "checked": ["method.consistency_filter={metric: exact_match, at_least: 100}"],
    "dropped": ["pseudo_targets.invalid=drop"],
    "top_k": [
        "method.exchange=top_k",
        "student.training.losses={forward_kl: {weight: 0.5}, cross_entropy: {weight: 0.5}}",
        "arms.distilled=false",  # which would learn the teacher's tokens as well: another one than the table's
    ],
}


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("folder", type=Path)
    given.add_argument("--conditions", default=",".join(sorted(path.stem for path in RECIPES.glob("*.yaml"))))
    given.add_argument("--option", choices=OPTIONS)
    given.add_argument("--seeds", default="1,2,3")
    settings = given.parse_args()
    seeds = [int(seed) for seed in settings.seeds.split(",")]
    found = {
        name: [measured(settings.folder, name, settings.option, seed) for seed in seeds]
        for name in settings.conditions.split(",")
    }
    arms = [arm for arm in ARMS if any(arm in one for results in found.values() for one in results)]
    head = ["condition", "metric", *LABELS, *arms, "gained"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for condition, results in found.items():
        cells = [said([one[name] for one in results if name in one]) for name in head[2:]]
        shown = f"{condition}, {settings.option}" if settings.option else condition
        print("| " + " | ".join([shown, results[0]["metric"], *cells]) + " |")


def measured(folder: Path, condition: str, option: str | None, seed: int) -> dict:
    """What the report of a run says, of the recipe's first metric."""
    name = "-".join([condition, *([option] if option else []), str(seed)])
    report = folder / "runs" / name / "report.json"
    overrides = [f"name={name}", f"seed={seed}", "output=runs", *OPTIONS.get(option or "", [])]
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
    result["metric"] = metric
    if "distilled" in arms:
        result["gained"] = sign * (arms["mckd"] - arms["distilled"])
    seconds = round(told["totals"]["wall_seconds"])
    by_round = [one["metrics"] for one in told["pseudo_targets"]]
    shown = {"run": name, "seconds": seconds, **result, "arms": told["arms"], "by round": by_round}
    print(json.dumps({**shown, "costs": told["costs"]}), file=sys.stderr, flush=True)
    return result


def said(values: list[float]) -> str:
    """The mean, and the standard error of it where there are several; empty where there is none."""
    if not values:
        return ""
    mean = statistics.mean(values)
    return f"{mean:.1f}" + (f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
