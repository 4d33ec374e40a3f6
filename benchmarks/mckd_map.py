"""Where MCKD pays: its final student against plain distillation from the same pseudo-targets, a recipe per condition.

    python benchmarks/mckd_map.py FOLDER [--conditions NAME,NAME] [--option NAME] [--seeds 1,2,3]

FOLDER is where `raykd run` finds what the recipes in mckd_map/ name: snips.jsonl.gz, craft.mrg.gz, smollm2 and minilm
(Hugging Face folders). Runs are kept in FOLDER/runs, so that complete ones are not run again. A seed splits the inputs,
draws the samples and makes the students; a condition's seeds share the pseudo-targets of a greedy teacher. Figures are
means over the seeds, with the standard error of the mean. An option is one of MCKD's beyond the paper.
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
# pseudo-targets are scored on the inputs that students learn, arms on the test rows; memorised: how much better a
# student repeats what it was taught than it agrees with pseudo-targets it never saw; gained: by mckd over distilled
BY_TEACHER, BY_STUDENTS, MEMORISED = "teacher's pseudo-targets", "students' pseudo-targets", "memorised"
ARMS = ("teacher", "gold_only", "distilled", "mckd")
OPTIONS = {
    "confidence": ["method.weighting=confidence"],
    "agreement": ["method.weighting=agreement", "method.consistency_filter={metric: exact_match}"],
    "checked": ["method.consistency_filter={metric: exact_match, at_least: 100}"],
    "dropped": ["pseudo_targets.invalid=drop"],
    "top_k": [
        "method.exchange=top_k",
        "student.training.losses={forward_kl: {weight: 0.5}, cross_entropy: {weight: 0.5}}",
        "arms.distilled=false",  # it would learn the teacher's top-k too, unlike the table's
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--conditions", default=",".join(sorted(path.stem for path in RECIPES.glob("*.yaml"))))
    parser.add_argument("--option", choices=OPTIONS)
    parser.add_argument("--seeds", default="1,2,3")
    settings = parser.parse_args()
    seeds = [int(seed) for seed in settings.seeds.split(",")]
    results = {
        name: [measure(settings.folder, name, settings.option, seed) for seed in seeds]
        for name in settings.conditions.split(",")
    }
    arms = [arm for arm in ARMS if any(arm in result for by_seed in results.values() for result in by_seed)]
    head = ["condition", "metric", BY_TEACHER, BY_STUDENTS, MEMORISED, *arms, "gained"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for condition, by_seed in results.items():
        cells = [mean_and_error([result[name] for result in by_seed if name in result]) for name in head[2:]]
        shown = f"{condition}, {settings.option}" if settings.option else condition
        print("| " + " | ".join([shown, by_seed[0]["metric"], *cells]) + " |")


def measure(folder: Path, condition: str, option: str | None, seed: int) -> dict:
    """The figures of a run's report, by the recipe's first metric."""
    name = "-".join([condition, *([option] if option else []), str(seed)])
    overrides = [f"name={name}", f"seed={seed}", "output=runs", *OPTIONS.get(option or "", [])]
    command = [sys.executable, "-m", "raykd", "run", str(RECIPES.absolute() / f"{condition}.yaml"), *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    report = json.loads((folder / "runs" / name / "report.json").read_text())
    metric = next(iter(report["arms"]["mckd"]))
    sign = -1 if lower_is_better(metric) else 1
    arms = {arm: scores[metric] for arm, scores in report["arms"].items()}
    by_round = [quality["metrics"] for quality in report["pseudo_targets"]]
    memorised = statistics.mean(s["seen"] - s["unseen"] for s in report["memory"][-1]["students"])
    result = {BY_TEACHER: by_round[0][metric], BY_STUDENTS: by_round[-1][metric], MEMORISED: sign * memorised, **arms}
    result["metric"] = metric
    if "distilled" in arms:
        result["gained"] = sign * (arms["mckd"] - arms["distilled"])
    seconds = round(report["totals"]["wall_seconds"])
    shown = {"run": name, "seconds": seconds, **result, "arms": report["arms"], "by round": by_round}
    print(json.dumps({**shown, "costs": report["costs"]}), file=sys.stderr, flush=True)
    return result


def mean_and_error(values: list[float]) -> str:
    """The mean, and the standard error of it where there are several; empty where there is none."""
    if not values:
        return ""
    mean = statistics.mean(values)
    return f"{mean:.1f}" + (f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
