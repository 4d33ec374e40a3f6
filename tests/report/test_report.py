"""From manifests to reports."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import RECIPE, write_rows

from raykd.errors import RunError
from raykd.recipe.load import dump_recipe, load_recipe
from raykd.report.plots import smoothed
from raykd.report.write import write_report
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.evaluate import compare_trees

ROOT = Path(__file__).parents[2]
TEST_ROWS = "test: {main: {kind: jsonl, path: t.jsonl}}, "
TEACHER, CONTROL, OWN = StageAbout("teacher"), StageAbout("gold_only"), StageAbout("mckd", own=True)
ROUND_1 = StageAbout("mckd", own=True, round=1)


@pytest.fixture
def folder(tmp_path):
    """A run that has its recipe and nothing else."""
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    text = RECIPE.format(output=tmp_path / "runs", bad=0).replace("{kind: distill}", "{kind: mckd}")
    text += 'description: "<script>alert(1)</script>"\nmetrics: [{kind: bleu}]\n'
    text = text.replace("max_bad_rows: 0", f"max_bad_rows: 0, {TEST_ROWS}licence: CC BY 4.0")
    (tmp_path / "written.yaml").write_text(text)
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe(tmp_path / "written.yaml")))
    return run


def manifest(folder, stage, kind, started, results, about=OWN, sources=(), **stats):
    (folder / stage).mkdir(parents=True, exist_ok=True)
    whole = {"stage": stage, "kind": kind, **asdict(about), "started": 1000 + started, "seconds": 10.0}
    inputs = {"rows": dict.fromkeys(sources, "")}
    whole |= {"results": results, "stats": stats, "fingerprint": "", "inputs": inputs}
    (folder / stage / "manifest.json").write_text(json.dumps(whole))


def scored(folder, arm, **metrics):
    results = {"arm": arm, "rows": 9, "metrics": metrics, "model": "m"}
    manifest(folder, f"evaluate/{arm}", "evaluate", 20, results, StageAbout(arm, own=arm == "mckd"))


@pytest.fixture
def finished(folder):
    stats = {"rows": 5, "output_tokens": 40, "tokens_per_second": 4.0}
    manifest(folder, "teacher/labels", "label", 0, {"store": "x"}, TEACHER, ["unlabelled", "test"], **stats)
    quality = {"round": 0, "labeller": "teacher", "rows": 5, "metrics": {"word_error_rate": 9.0}}
    manifest(folder, "teacher/quality", "quality", 10, quality, TEACHER)
    by_0 = StageAbout("mckd", own=True, round=1, partition=0)
    manifest(folder, "mckd/round-1/labels-by-0", "label", 10, {"store": "x"}, by_0, ["part-1"], rows=5, output_tokens=7)
    manifest(folder, "mckd/final", "train", 10, {"model": "m"}, rows=5, tokens=60, tokens_per_second=6.0)
    (folder / "mckd/final/log.jsonl").write_text('{"step": 10, "loss": 2.5}\n{"step": 10, "dev_loss": 2.0}\n{"st')
    for arm, rate in (("teacher", 8.123456), ("gold_only", 40.0), ("distilled", 25.0), ("mckd", 30.0)):
        scored(folder, arm, word_error_rate=rate, bleu=100 - rate)
    return folder


def test_the_numbers(finished):
    report = write_report(finished)
    assert report == json.loads((finished / "report.json").read_text())
    assert report["complete"] and report["arms"]["mckd"] == {"word_error_rate": 30.0, "bleu": 70.0}
    assert list(report["arms"]) == ["teacher", "gold_only", "distilled", "mckd"]
    assert report["arms"]["teacher"]["word_error_rate"] == 8.123456
    quality = {"round": 0, "labeller": "teacher", "rows": 5, "metrics": {"word_error_rate": 9.0}}
    assert report["pseudo_targets"] == [quality]
    assert report["licences"] == {"data": "CC BY 4.0", "teacher": "not stated"}
    assert report["again"] == f"raykd run {finished}/recipe.yaml"


def test_what_the_stages_took(finished):
    report = write_report(finished)
    assert report["totals"] == {
        "wall_seconds": 30.0,
        "stage_seconds": 80.0,
        "teacher_tokens": 40,  # not the 7 that a student wrote
        "tokens_trained": 60,
        "failed_rows": 0,
        "endpoint_rows": 0,
        "endpoint_cost": 0,
    }
    assert [s["started"] for s in report["stages"]] == [0, 10, 10, 10, 20, 20, 20, 20]
    assert [s["stage"] for s in report["stages"]][1:4] == ["mckd/final", "mckd/round-1/labels-by-0", "teacher/quality"]
    stats = {"rows": 5, "tokens": 60, "tokens_per_second": 6.0}
    stage = {"stage": "mckd/final", "kind": "train", "started": 10.0, "seconds": 10.0, **stats, "stats": stats}
    assert report["stages"][1] == stage


def test_what_the_arms_cost(finished):
    manifest(finished, "teacher/fine_tune", "train", 0, {"model": "m"}, TEACHER)
    manifest(finished, "gold_only/lr-1", "train", 0, {"model": "m"}, CONTROL)
    manifest(finished, "evaluate/mckd-predictions", "label", 0, {"store": "x"}, OWN, ["test"])  # nobody learns from it
    manifest(finished, "evaluate/teacher-predictions", "label", 0, {"store": "x"}, TEACHER, ["test"])
    own = {"trainings": 10.0, "students_labelling": 0.0, "teacher": 20.0}
    assert write_report(finished)["costs"] == {
        "teacher": {**own, "trainings": 0.0},
        "gold_only": {**own, "teacher": 0.0},
        "distilled": {**own, "trainings": 0.0},
        "mckd": {**own, "students_labelling": 10.0},
    }
    assert "| mckd | 10.0 | 10.0 | 20.0 |" in (finished / "report.md").read_text()


def test_what_an_endpoint_was_sent_and_cost(finished):
    stats = {"endpoint_rows": 1200, "endpoint_cost": 0.5, "output_tokens": 40}
    manifest(finished, "teacher/labels", "label", 0, {"store": "x"}, TEACHER, **stats)
    write_report(finished)
    text = (finished / "report.md").read_text()
    assert "1,200 rows left the cluster for the endpoint, at a cost of 0.50 by the recipe's price." in text
    stats |= {"endpoint_cost": 0.0, "output_tokens": 0}
    manifest(finished, "teacher/labels", "label", 0, {"store": "x"}, TEACHER, **stats)
    write_report(finished)
    assert "the endpoint, which did not say how many tokens that were" in (finished / "report.md").read_text()


def test_what_students_memorise_and_what_was_chosen(finished):
    students = [{"partition": 0, "seen": 91.0, "unseen": 60.25}, {"partition": 1, "seen": None, "unseen": 3.0}]
    manifest(
        finished, "mckd/round-1/memorisation", "memorisation", 15, {"metric": "bleu", "students": students}, ROUND_1
    )
    counts = {"rows": 90, "invalid": 12, "repaired": 0, "dropped": 10, "retried": 4}
    manifest(finished, "teacher/chosen", "choose", 15, {"sizes": [90]}, TEACHER, **counts)
    assert write_report(finished)["memory"][0]["stage"] == "mckd/round-1/memorisation"
    text = (finished / "report.md").read_text()
    assert "| stage | partition | bleu, taught | bleu, never seen |" in text
    assert "| mckd/round-1/memorisation | 0 | 91.00 | 60.25 |" in text and "| 1 |  | 3.00 |" in text
    assert "| teacher/chosen | 90 | 12 | 0 | 10 | 4 |" in text


@pytest.mark.parametrize(("metric", "seen", "unseen", "warned"), [
    ("bleu", 90.0, 87.0, True), ("bleu", 99.0, 87.0, False),
    ("word_error_rate", 5.0, 8.0, True), ("word_error_rate", 1.0, 13.0, False),
])  # fmt: skip
def test_students_that_learn_little_by_heart_are_warned_of(finished, metric, seen, unseen, warned):
    students = [{"partition": 0, "seen": seen, "unseen": unseen}, {"partition": 1, "seen": seen, "unseen": unseen}]
    results = {"metric": metric, "students": students}
    manifest(finished, "mckd/round-1/memorisation", "memorisation", 15, results, ROUND_1)
    report = write_report(finished)
    assert any("learnt little of their pseudo-targets by heart" in text for text in report["warnings"]) == warned
    assert ("**Warning.** The students of" in (finished / "report.md").read_text()) == warned
    assert ("<b>Warning.</b> The students of" in (finished / "report.html").read_text()) == warned


@pytest.mark.parametrize(("value", "rows", "warned"), [(12.5, 5, True), (7.0, 5, False), (12.5, 6, False)])
def test_pseudo_targets_worse_than_the_teachers_are_warned_of(finished, value, rows, warned):
    """Not where the teacher's worst were dropped, and are not among what it is scored on."""
    quality = {"round": 1, "labeller": "students", "rows": rows, "metrics": {"word_error_rate": value}}
    manifest(finished, "mckd/round-1/quality", "quality", 15, quality, ROUND_1)
    warnings = write_report(finished)["warnings"]
    expected = (
        "The pseudo-targets of round 1 are worse than the teacher's (word_error_rate 12.5 against 9.0): where this "
        "was so, relabelling lost to plain distillation (arms.distilled)."
    )
    assert warnings == ([expected] if warned else [])


def test_trees_are_compared_with_the_teachers(finished):
    tenth = {"rows": 12, "agreement": 0.25, "teacher_f1": 0.5, "student_f1": 0.6, "better": 7, "worse": 2}
    agreed = {"mckd": {"mean": 0.25, "both_trees": 11, "teacher_f1": 0.5, "student_f1": 0.6, "deciles": [tenth]}}
    recall = {"teacher": {"NP": [30, 40], "VP": [1, 8]}, "mckd": {"NP": [40, 40], "VP": [2, 8]}}
    manifest(finished, "evaluate/trees", "compare", 18, {"agreement": agreed, "label_recall": recall}, StageAbout())
    assert write_report(finished)["trees"]["label_recall"]["mckd"]["VP"] == [2, 8]
    text = (finished / "report.md").read_text()
    assert "| mckd | 12 | 25.0 | 50.0 | 60.0 | 7 | 2 | 3 |" in text
    assert (
        "| mckd, all | 12 | 25.0 | 50.0 | 60.0 | 7 | 2 | 3 |" in text and "both predictions are trees: mckd 11." in text
    )
    assert "| NP | 40 | 75.0 | 100.0 |" in text and "| VP | 8 | 12.5 | 25.0 |" in text


@pytest.mark.parametrize("form", ["trees", "labelled_trees"])
def test_what_is_compared_of_trees(tmp_path, form):
    gold = "(TOP (S (NP (DT The) (NN dog)) (VP (VBZ barks) (ADVP (RB very) (RB loudly)))))"
    flat, right = "( The dog barks very loudly )", "( ( The dog ) ( barks ( very loudly ) ) )"
    if form == "labelled_trees":
        flat, right = "(S The dog barks very loudly )", "(S (NP The dog ) (VP barks (ADVP very loudly ) ) )"
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "runs", bad=0))
    session = Session(load_recipe(path, [f"pseudo_targets.format={form}"]))
    compare_trees(session, ["gold_only"])  # of a sweep, where no teacher is scored
    scored(session.path, "teacher")
    for arm, prediction in {"teacher": flat, "mckd": right}.items():
        (session.path / "evaluate" / arm).mkdir(parents=True, exist_ok=True)
        rows = [{"prediction": prediction, "references": [right, gold]}] * 2
        write_rows(session.path / "evaluate" / arm / "predictions.jsonl", rows)
    compare_trees(session, ["mckd"])
    report = write_report(session.path)["trees"]
    assert report["label_recall"] == {
        "teacher": {"S": [2, 2], "NP": [0, 2], "VP": [0, 2], "ADVP": [0, 2]},
        "mckd": {"S": [2, 2], "NP": [2, 2], "VP": [2, 2], "ADVP": [2, 2]},
    }
    agreed = report["agreement"]["mckd"]
    assert agreed["mean"] == pytest.approx(0.4) and agreed["student_f1"] == 1 and len(agreed["deciles"]) == 2


def test_the_best_is_bold_and_compared_with_the_control(finished):
    write_report(finished)
    text = (finished / "report.md").read_text()
    assert "| arm | word_error_rate ↓ | bleu ↑ |" in text
    assert "| teacher | **8.12 (-79.7 %)** | **91.88 (+53.1 %)** |" in text
    assert "| gold_only | 40.00 | 60.00 |" in text
    assert "| distilled | **25.00 (-37.5 %)** | **75.00 (+25.0 %)** |" in text  # the best student
    assert "| mckd | 30.00 (-25.0 %) | 70.00 (+16.7 %) |" in text
    assert "<td class=n><b>25.00 (-37.5 %)</b></td>" in (finished / "report.html").read_text()


def test_an_arm_or_metric_that_others_lack(finished):
    scored(finished, "mine", word_error_rate=1.0)
    assert list(write_report(finished)["arms"])[-1] == "mine"
    assert "| mine | **1.00 (-97.5 %)** |  |" in (finished / "report.md").read_text()


def test_without_a_control_nothing_is_compared(folder):
    scored(folder, "mckd", word_error_rate=1.0)
    write_report(folder)
    assert "| mckd | 1.00 |" in (folder / "report.md").read_text()
    assert "gold_only" not in (folder / "report.html").read_text().partition("<details>")[0]


def test_quality_is_marked_as_reporting_only(finished):
    write_report(finished)
    for name in ("report.md", "report.html"):
        assert "given for reporting only" in (finished / name).read_text()


def test_html_is_one_file_and_escaped(finished):
    manifest(finished, "odd", "<b>new kind</b>", 5, {})
    write_report(finished)
    text = (finished / "report.html").read_text()
    assert "<script" not in text and "&lt;script&gt;alert" in text
    assert "<b>new kind" not in text and "&lt;b&gt;new kind" in text
    assert not any(mark in text for mark in ("<link", " src=", "@import", "url(http", '<image xlink:href="http'))
    assert "<script" not in (finished / "report.md").read_text()


def test_plots_show_every_stage_and_training(finished):
    manifest(finished, "odd", "new kind", 5, {})
    (finished / "distilled").mkdir()  # still trains, no dev loss yet
    (finished / "distilled" / "log.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": NaN}\n')
    write_report(finished)
    curves, timeline = (part for part in (finished / "report.html").read_text().split("<svg")[1:])
    assert "mckd/final" in curves and "distilled" in curves
    assert all(name in timeline for name in ("odd", "evaluate/mckd", "other", "label", "train"))


def test_training_losses_are_smoothed():
    assert smoothed((5.0, 0.0, 0.0)) == pytest.approx([5.0, 4.0, 3.2])


def test_without_matplotlib_a_line_says_so(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(finished)
    text = (finished / "report.html").read_text()
    assert "matplotlib is not installed: no plots." in text and "<svg" not in text


def test_writing_again_changes_nothing(finished, monkeypatch):
    write_report(finished)
    before = {p.name: p.read_bytes() for p in finished.glob("report.*")}
    monkeypatch.chdir(finished.parent)
    write_report(Path(finished.name))
    assert {p.name: p.read_bytes() for p in finished.glob("report.*")} == before and len(before) == 3
    code = "import sys; from raykd.report.write import write_report; write_report(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, finished], cwd=ROOT, check=True)
    assert {p.name: p.read_bytes() for p in finished.glob("report.*")} == before


def test_an_unfinished_run(folder):
    assert write_report(folder)["stages"] == []
    assert "stages done so far: none" in (folder / "report.md").read_text()
    manifest(folder, "teacher/labels", "label", 0, {"store": "x"}, TEACHER, rows=5)
    report = write_report(folder)
    assert not report["complete"] and report["arms"] == {}
    text = (folder / "report.md").read_text()
    assert "no arms yet" in text and "stages done so far: teacher/labels" in text


def test_a_run_is_complete_with_its_own_student(folder):
    scored(folder, "teacher", bleu=50.0)
    scored(folder, "distilled", bleu=40.0)
    assert not write_report(folder)["complete"]
    scored(folder, "mckd", bleu=30.0)
    assert write_report(folder)["complete"]


def test_without_test_rows_the_final_training_completes(folder):
    text = (
        (folder.parent.parent / "written.yaml")
        .read_text()
        .replace(TEST_ROWS, "")
        .replace("metrics: [{kind: bleu}]", "")
    )
    (folder / "recipe.yaml").write_text(text)
    manifest(folder, "mckd/round-1/student-0", "train", 0, {"model": "m"}, ROUND_1)
    assert not write_report(folder)["complete"]
    manifest(folder, "mckd/final", "train", 10, {"model": "m"})
    assert write_report(folder)["complete"]
    assert "no test rows" in (folder / "report.md").read_text()


def test_what_failed_is_shown(finished):
    rows = [{"file": "rows.jsonl", "line": n, "reason": f"a|b <i>{n}", "row": None} for n in range(1, 25)]
    rows[2:2] = [{"file": "teacher/labels", "line": None, "reason": "too long", "row": "r7"}]
    (finished / "bad_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_report(finished)
    assert report["failed"] == {"count": 25, "rows": rows[:20]} and report["totals"]["failed_rows"] == 25
    text = (finished / "report.md").read_text()
    assert "25 rows were left out; the first 20 of them" in text
    assert "| rows.jsonl | 7 | a\\|b &lt;i&gt;7 |" in text and "&gt;20" not in text
    assert "| teacher/labels | row r7 | too long |" in text


def test_the_environment_is_told(finished):
    assert write_report(finished)["environment"] == {}
    assert "Made with" not in (finished / "report.md").read_text()
    (finished / "environment.json").write_text('{"packages": {"ray": "9.9"}}')
    assert write_report(finished)["environment"] == {"packages": {"ray": "9.9"}}
    assert "Made with ray 9.9." in (finished / "report.md").read_text()


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"stage": "evaluate/mckd", "kind": "evaluate"}'])
def test_a_damaged_manifest(finished, text):
    (finished / "evaluate/mckd/manifest.json").write_text(text)
    with pytest.raises(RunError, match="evaluate/mckd/manifest.json: damaged manifest") as error:
        write_report(finished)
    assert "\n" not in str(error.value) and not (finished / "report.json").exists()


@pytest.mark.parametrize("name", ["bad_rows.jsonl", "environment.json"])
def test_another_damaged_file(finished, name):
    (finished / name).write_text("{\n")
    with pytest.raises(RunError, match=f"{name}.*damaged"):
        write_report(finished)


def test_neither_torch_nor_ray_nor_matplotlib_is_imported():
    code = "import sys; import raykd.report.write; print({'torch', 'ray', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
