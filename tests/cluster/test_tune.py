"""Sweeps on real Ray Tune: the teacher is paid once, bad trials are stopped, and a kill forgets nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, raykd
from test_end_to_end import TRAINING, recipe

RATE = "student.training.learning_rate"
SPACE = """
from ray import tune

SPACE = {space}
SEARCH = {search}
SCHEDULER = {scheduler}
GOAL = {goal}
"""


def swept(
    folder: Path, tiny_models, name: str, space: str, search, scheduler, goal=None, **changes
) -> tuple[Path, Path]:
    """The files of a recipe whose teacher is a script, and of a space."""
    file = folder / f"{name}.py"
    file.write_text(SPACE.format(space=space, search=search, scheduler=scheduler, goal=goal or {}))
    teacher = {"model": {"kind": "checkpoint", "path": str(tiny_models["llama"])}, "prompt": "{input} =>"}
    teacher |= {"engine": {"kind": "scripted", "function": "answers:careless"}}
    teacher |= {"passes": {"pseudo_targets": {"max_tokens": 10}}}
    training = {**TRAINING, "evaluate_every": 15, **changes.pop("training", {})}
    method = {"kind": "distill"}
    changes = {
        "method": method,
        "teachers__main": teacher,
        "data__gold": None,
        "student__training": training,
        **changes,
    }
    return recipe(folder, **{"arms": {}, **changes}), file


def searched(files: tuple[Path, Path]) -> dict:
    """The results of a sweep that was run to its end."""
    done = raykd("tune", *map(str, files), timeout=700)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((files[0].parent / f"runs/small-{files[1].stem}/results.json").read_text())


def trials(sweep: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("trials/*/trial.json")}


def rungs(sweep: Path) -> dict:
    return json.loads((sweep / "rungs.json").read_text())


def follows(held: dict, reduction: float) -> set[str]:
    """Who must have been stopped, by what each rung had recorded before (dicts keep their order in JSON)."""
    stopped = set()
    for _, recorded in held["rungs"][0]:
        before: list[float] = []
        for trial, value in recorded.items():
            if before and value < np.percentile(before, 100 * (1 - 1 / reduction)):
                stopped.add(trial)
            before.append(value)
    return stopped


@pytest.mark.timeout(600)
def test_the_teacher_is_paid_once_and_bad_trials_are_stopped(tmp_path, tiny_models):
    """The control arm is trained too, what is done is not done again, and the best recipe gives the same student."""
    gold = {"kind": "jsonl", "path": str(tmp_path / "gold.jsonl"), "columns": {"target": "target"}}
    files = swept(
        tmp_path, tiny_models, "rates", f"{{{RATE!r}: tune.choice([0.02, 0.01, 0.00001, 0.00002])}}",
        {"kind": "grid", "concurrent": 2}, {"kind": "asha", "grace": 25, "reduction": 2},
        arms={"gold_only": {"rows": gold}},
    )  # fmt: skip
    done = raykd("tune", *map(str, files), timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "runs/small-rates"
    found = json.loads((sweep / "results.json").read_text())
    states = {t["point"][RATE]: t["state"] for t in found["trials"]}
    assert states[0.02] == "done" and {states[0.00001], states[0.00002]} == {"stopped"}
    assert set(rungs(sweep)["stopped"]) == follows(rungs(sweep), 2)
    best = found["trials"][0]
    assert best["id"] == found["best"] and best["metrics"]["test/phoneme_error_rate"] > 0
    own = [path for path in sweep.glob("**/teacher/labels/manifest.json") if not path.parent.is_symlink()]
    labels = [json.loads(path.read_text()) for path in own]
    assert own == [sweep / "teacher/teacher/labels/manifest.json"]
    assert found["teacher_tokens"] == labels[0]["stats"]["output_tokens"] > 0
    assert set(found["arms"]) == {"teacher", "gold_only"}
    text = (sweep / "report.html").read_text()
    assert all(part in text for part in ("Parallel coordinates", "While they trained", "gold_only", "<svg"))
    assert list((sweep / "tune").glob("*/events.out.tfevents*"))
    assert "trial " in done.stdout and "stopped at 25 %" in done.stdout

    before = {path: path.stat().st_mtime_ns for path in sweep.glob("trials/*/trial.json")}
    again = raykd("tune", *map(str, files), timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in sweep.glob("trials/*/trial.json")} == before

    alone = yaml.safe_load((sweep / "best.yaml").read_text())
    assert (
        alone["student"]["training"]["learning_rate"] == best["point"][RATE] and alone["cluster"]["student"]["threads"]
    )
    ran = raykd("run", str(sweep / "best.yaml"), timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "runs/small-rates-best/report.json").read_text())
    for metric, value in report["arms"]["distilled"].items():
        assert value == best["metrics"][f"test/{metric}"]
    assert set(report["arms"]) == {"teacher", "gold_only", "distilled"}


def running(sweep: Path) -> dict[str, list[float]]:
    """What was heard of each trial that is neither over nor stopped: its progress."""
    known = set(trials(sweep)) | set(rungs(sweep)["stopped"] if (sweep / "rungs.json").exists() else ())
    heard = {path.parent.name: path.read_text() for path in sweep.glob("tune/*/result.json")}
    told = {name: [json.loads(line)["progress"] for line in text.split("\n")[:-1]] for name, text in heard.items()}
    return {name: progress for name, progress in told.items() if name not in known and progress}


def start(files: tuple[Path, Path]) -> subprocess.Popen:
    command = [sys.executable, "-m", "raykd", "tune", *map(str, files)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_and_remembers_its_rungs(tmp_path, tiny_models):
    files = swept(
        tmp_path, tiny_models, "killed",
        f"{{{RATE!r}: tune.choice([0.01, 0.012, 0.00001, 0.011, 0.00002, 0.013])}}",
        {"kind": "grid", "concurrent": 2}, {"kind": "asha", "grace": 25, "reduction": 2},
        training={"max_steps": 800, "evaluate_every": 100}, metrics=[], data__test=None,
    )  # fmt: skip
    sweep = tmp_path / "runs/small-killed"
    killed = start(files)
    until = time.monotonic() + 400
    while time.monotonic() < until and killed.poll() is None:
        if trials(sweep) and any(2 <= len(told) < 8 for told in running(sweep).values()):
            break
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before, over, heard = rungs(sweep), trials(sweep), running(sweep)
    assert over and heard, (over, before)
    marks = {name: (sweep / f"trials/{name}/trial.json").stat().st_mtime_ns for name in over}

    done = raykd("tune", *map(str, files), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    after = rungs(sweep)
    for (milestone, old), (same, new) in zip(before["rungs"][0], after["rungs"][0], strict=True):
        assert milestone == same and list(old.items()) == list(new.items())[: len(old)]
    assert set(after["stopped"]) == follows(after, 2) and set(before["stopped"]) <= set(after["stopped"])
    assert {name: (sweep / f"trials/{name}/trial.json").stat().st_mtime_ns for name in over} == marks
    found = {t["id"]: t for t in json.loads((sweep / "results.json").read_text())["trials"]}
    assert len(found) == 6 and {t["state"] for t in found.values()} <= {"done", "stopped"}
    assert sorted(t["point"][RATE] for t in found.values()) == [0.00001, 0.00002, 0.01, 0.011, 0.012, 0.013]
    for name, told in heard.items():  # from its checkpoint, at most one evaluation behind what was heard
        lines = [json.loads(line)["progress"] for line in (sweep / f"tune/{name}/result.json").read_text().splitlines()]
        later = lines[len(told) :]
        assert not later or later[0] >= max(told) - 12.6, (told, later)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_optuna_finds_a_front_of_quality_and_size(tmp_path, tiny_models):
    """Fields of a choice that was not drawn are not asked for."""
    ways = "{'plain': {'seed': 0}, 'warm': {'student.training.warmup_ratio': tune.uniform(0.1, 0.5)}}"
    size = "'student.model.settings.d_ff': tune.choice([16, 64])"
    files = swept(
        tmp_path, tiny_models, "front",
        f"{{{RATE!r}: tune.loguniform(1e-3, 3e-2), {size}, 'way': {ways}}}",
        {"kind": "optuna", "trials": 9, "concurrent": 2}, {"kind": "none"}, [{}, {"metric": "parameters"}],
        metrics=[], data__test=None,
    )  # fmt: skip
    found = searched(files)
    assert len(found["trials"]) == 9 and {t["state"] for t in found["trials"]} == {"done"}
    for t in found["trials"]:
        assert ("student.training.warmup_ratio" in t["point"]) == (t["point"]["way"] == "warm")
    assert 1 <= len(found["front"]) <= 9 and found["best"] in found["front"]
    by = {t["id"]: (t["metrics"]["dev_loss"], t["metrics"]["parameters"]) for t in found["trials"]}
    for name in found["front"]:
        assert not any(a <= by[name][0] and b <= by[name][1] and (a, b) != by[name] for a, b in by.values())
    assert len({p for _, p in by.values()}) == 2 and sum(found["importance"].values()) == pytest.approx(1)
    assert "The front" in (tmp_path / "runs/small-front/report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_population_based_training_goes_on_from_better_trials(tmp_path, tiny_models):
    files = swept(
        tmp_path, tiny_models, "population", f"{{{RATE!r}: tune.choice([0.01, 0.012, 0.000001, 0.000002])}}",
        {"kind": "grid", "concurrent": 4}, {"kind": "pbt", "every": 20, "share": 0.5},
        training={"max_steps": 400, "evaluate_every": 40}, metrics=[], data__test=None,
    )  # fmt: skip
    found, sweep = searched(files), tmp_path / "runs/small-population"
    assert {t["state"] for t in found["trials"]} == {"done"} and len(found["trials"]) == 4
    went_on = [path for path in sweep.glob("trials/*/run-1")]  # with another's checkpoint, and other settings
    assert went_on
    losses = [t["metrics"]["dev_loss"] for t in found["trials"]]
    assert max(losses) < 2.5, losses  # alone the two that hardly move stay above 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_of_two_workers_are_stopped_and_leave_nothing_behind(tmp_path, tiny_models):
    files = swept(
        tmp_path, tiny_models, "workers", f"{{{RATE!r}: tune.choice([0.01, 0.02, 0.00001])}}",
        {"kind": "grid", "concurrent": 1}, {"kind": "asha", "grace": 25, "reduction": 2},
        training={"max_steps": 80, "evaluate_every": 20}, metrics=[], data__test=None,
        cluster={"student": {"workers": 2, "resources": {"CPU": 1}}, "local_cpus": 4},
    )  # fmt: skip
    found = searched(files)
    assert sorted(t["state"] for t in found["trials"]) == ["done", "done", "stopped"] or (
        sorted(t["state"] for t in found["trials"]) == ["done", "stopped", "stopped"]
    )


def test_what_cannot_be_searched_is_said_before_anything_starts(tmp_path, tiny_models):
    space = f"{{{RATE!r}: tune.choice([0.01])}}"
    grid, none = {"kind": "grid"}, {"kind": "none"}
    files = swept(tmp_path, tiny_models, "odd", space, grid, none, {"metric": "blue"})
    done = raykd("tune", *map(str, files))
    assert done.returncode == 2 and "odd: GOAL.metric: nobody reports 'blue'" in done.stderr
    files = swept(tmp_path, tiny_models, "field", "{'student.trainin.max_steps': tune.choice([1])}", grid, none)
    done = raykd("tune", *map(str, files))
    assert done.returncode == 2 and "field: SPACE: student.trainin: unknown key; did you mean training?" in done.stderr
    file = tmp_path / "a file"
    file.touch()
    files = swept(tmp_path, tiny_models, "place", space, grid, none, output=str(file / "runs"))
    done = raykd("tune", *map(str, files))
    assert done.returncode == 1 and f"{file}/runs" in done.stderr and "cannot be written" in done.stderr
    needs = {"student": {"resources": {"CPU": 1, "GPU": 3}}, "capacity": {"CPU": 8, "GPU": 2}}
    files = swept(tmp_path, tiny_models, "large", space, grid, none, cluster=needs)
    done = raykd("tune", *map(str, files))
    assert done.returncode == 1 and "cluster.student: needs GPU 3 x 1, the cluster may grow to 2" in done.stderr
    assert not (tmp_path / "runs/small-large/tune").exists()
    assert os.listdir(tmp_path)
