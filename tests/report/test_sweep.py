"""From the files of a sweep to its results."""

import csv
import json
from dataclasses import asdict

import pytest
from conftest import RECIPE

from raykd.errors import RunError
from raykd.recipe.load import dump_recipe, load_recipe
from raykd.recipe.space import Objective
from raykd.report.importance import field_importance
from raykd.report.sweep import gather_sweep, write_sweep_report
from raykd.run.manifests import StageAbout

RATE = "student.training.learning_rate"
ONE_GOAL = [["exact_match", "max"]]


@pytest.fixture
def folder(tmp_path):
    """A sweep with two finished trials, a failed, a stopped and an unfinished one, and its teacher's run."""
    path = tmp_path / "runs" / "r-space"
    (tmp_path / "r.yaml").write_text(RECIPE.format(output=tmp_path / "runs", bad=0))
    recipe = load_recipe(tmp_path / "r.yaml")
    write(path / "sweep.json", {"recipe": recipe.model_dump(mode="json"), "space": "SPACE <1>", "goals": ONE_GOAL})
    write(path / "rungs.json", {"stopped": ["stopped"]})
    for name, score, size in (("worse", 40.0, 900), ("better", 60.0, 2000)):
        run = path / "trials" / name / "run"
        write(run / "recipe.yaml", dump_recipe(recipe))
        metrics = {"exact_match": score, "parameters": size, "test/exact_match": score - 1}
        trial(path, name, score / 1000, {"run": str(run), "metrics": metrics})
    trial(path, "failed", 0.3, {"error": "it <broke>", "metrics": None})
    trial(path, "stopped", 0.2)
    trial(path, "unfinished", 0.1)
    manifest(path / "teacher", "teacher/labels", "label", {"store": "x"}, StageAbout("teacher"), output_tokens=40)
    manifest(path / "trials/better/run", "evaluate/mckd-predictions", "label", {}, StageAbout("mckd"), output_tokens=7)
    (path / "trials/better/run/teacher").symlink_to(path / "teacher/teacher")  # a stage that the trial shares
    scores = {"arm": "teacher", "metrics": {"exact_match": 80.0}}
    manifest(path / "teacher", "evaluate/teacher", "evaluate", scores, StageAbout("teacher"))
    return path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def trial(path, name, rate, over=None):
    point = {RATE: rate}
    lines = [{"config": {"point": point}, "progress": p, "time_total_s": p, "exact_match": p / 2} for p in (25.0, 50.0)]
    write(path / "tune" / name / "result.json", "".join(json.dumps(line) + "\n" for line in lines))
    if over:
        write(path / "trials" / name / "trial.json", {"point": point, **over})


def manifest(run, stage, kind, results, about, **stats):
    whole = {"stage": stage, "kind": kind, **asdict(about), "inputs": {}, "started": 0.0, "seconds": 1.0}
    write(run / stage / "manifest.json", {**whole, "results": results, "stats": stats, "fingerprint": ""})


def test_trials_are_ordered_and_the_best_is_named(folder):
    results = write_sweep_report(folder)
    states = {t["id"]: t["state"] for t in results["trials"]}
    assert list(states) == ["better", "worse", "failed", "stopped", "unfinished"]
    assert list(states.values()) == ["done", "done", "failed", "stopped", "unfinished"]
    assert results["best"] == "better" and results["front"] == []
    assert results["teacher_tokens"] == 40  # once, and not what a student wrote
    assert results["arms"] == {"teacher": {"exact_match": 80.0}} and results["importance"] == {}
    assert load_recipe(folder / "best.yaml").name == "r-space-best"
    assert json.loads((folder / "results.json").read_text())["goals"] == ONE_GOAL


def test_what_the_report_shows(folder):
    write_sweep_report(folder)
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert "| **better** | done | 0.06 | 60 | 2,000 | 59 | 50 |" in text
    assert "| stopped | stopped at 50 % | 0.2 |" in text and "| failed | it &lt;broke&gt; | 0.3 |" in text
    assert "| teacher | 80 |" in text and "| best trial, better | 59 |" in text
    assert "Too few finished trials" in text and "5 trials: 2 done, 1 failed, 1 stopped, 1 unfinished." in text
    assert "SPACE &lt;1&gt;" in page and "While they trained" in page and "<svg" in page
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert rows[0]["trial"] == "better" and rows[0][RATE] == "0.06" and rows[4]["exact_match"] == ""


def test_several_goals_have_a_front(folder):
    searched = json.loads((folder / "sweep.json").read_text())
    write(folder / "sweep.json", {**searched, "goals": [["exact_match", "max"], ["parameters", "min"]]})
    assert gather_sweep(folder)["front"] == ["better", "worse"]
    write(folder / "sweep.json", {**searched, "goals": [["exact_match", "max"], ["parameters", "max"]]})
    assert gather_sweep(folder)["front"] == ["better"]


def test_a_damaged_file_is_named(folder):
    (folder / "trials/worse/trial.json").write_text("{")
    with pytest.raises(RunError, match="worse/trial.json: damaged"):
        write_sweep_report(folder)


def test_no_sweep(tmp_path):
    with pytest.raises(RunError, match="no sweep"):
        write_sweep_report(tmp_path)


def test_the_field_that_differs_between_good_and_bad_trials_mattered():
    trials = [{"point": {"rate": i / 10, "kind": "ab"[i % 2]}, "metrics": {"loss": i / 10}} for i in range(1, 17)]
    shares = field_importance(trials, Objective("loss", "min"))
    assert shares["rate"] > shares["kind"] and sum(shares.values()) == pytest.approx(1)
    assert field_importance(trials[:7], Objective("loss", "min")) == {}
