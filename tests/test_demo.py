"""What the README says of the demo, over three seeds. Takes about twenty minutes of two cores."""

import json
import statistics

import pytest
from conftest import raykd

SEEDS = (1, 2, 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_distillation_beats_the_control_arm_over_three_seeds(tmp_path):
    arms: dict[str, list[float]] = {}
    for seed in SEEDS:
        name = f"seed-{seed}"
        overrides = [
            f"name={name}",
            f"seed={seed}",
            f"output={tmp_path}",
            "arms.gold_only.learning_rates=[0.002, 0.003, 0.004]",
        ]
        if seed != SEEDS[0]:  # one teacher for all, whose answers are in the store: what differs is the students
            first = tmp_path / f"seed-{SEEDS[0]}"
            overrides += [
                f"teachers.main.model={{kind: checkpoint, path: {first}/teacher/fine_tune/model}}",
                "teachers.main.fine_tune=null",
                "data.gold=null",
                f"tokenizer={{kind: pretrained, path: {first}/tokenizer}}",
            ]
        done = raykd("run", "demo", *overrides, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        labels = json.loads((tmp_path / name / "teacher/labels/manifest.json").read_text())["stats"]
        assert labels["new_rows"] == (17000 if seed == SEEDS[0] else 0)
        report = json.loads((tmp_path / name / "report.json").read_text())
        for arm, values in report["arms"].items():
            arms.setdefault(arm, []).append(values["phoneme_error_rate"])
        print(seed, report["arms"])
        control = [s for s in report["stages"] if s["stage"].startswith("gold_only/lr")]
        steps = {
            s["stage"]: json.loads((tmp_path / name / s["stage"] / "manifest.json").read_text())
            for s in report["stages"]
            if s["kind"] == "train"
        }
        assert len(control) == 3
        assert all(steps[s["stage"]]["results"]["steps"] >= steps["mckd/final"]["results"]["steps"] for s in control)
    mean = {arm: statistics.mean(values) for arm, values in arms.items()}
    error = {arm: statistics.stdev(values) / len(values) ** 0.5 for arm, values in arms.items()}
    print({arm: f"{mean[arm]:.1f} +- {error[arm]:.1f}" for arm in arms})
    assert min(mean["distilled"], mean["mckd"]) <= 0.8 * mean["gold_only"]
