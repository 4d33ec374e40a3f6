"""From manifests to reports."""

import json

import pytest
from test_run import RECIPE

from raykd import report
from raykd.errors import RunError


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    text = RECIPE.format(output=tmp_path / "runs", bad=0).replace("{kind: distill}", "{kind: mckd}")
    text += 'description: "<script>alert(1)</script>"\nmetrics: [bleu]\n'
    text = text.replace("max_bad_rows: 0", "max_bad_rows: 0, test: {kind: jsonl, path: t.jsonl}, licence: CC BY 4.0")
    (run / "recipe.yaml").write_text(text)
    return run


def manifest(folder, stage, kind, started, results, **stats):
    (folder / stage).mkdir(parents=True, exist_ok=True)
    whole = {
        "stage": stage,
        "kind": kind,
        "started": 1000 + started,
        "seconds": 10.0,
        "results": results,
        "stats": stats,
    }
    (folder / stage / "manifest.json").write_text(json.dumps({**whole, "fingerprint": "", "inputs": {}}))


@pytest.fixture
def finished(folder):
    manifest(folder, "teacher/labels", "label", 0, {"store": "x"}, rows=5, output_tokens=40, tokens_per_second=4.0)
    manifest(
        folder,
        "teacher/quality",
        "quality",
        10,
        {"round": 0, "labeller": "teacher", "rows": 5, "metrics": {"e_rate": 9.0}},
    )
    manifest(folder, "mckd/final", "train", 10, {"model": "m"}, rows=5, tokens=60, tokens_per_second=6.0)
    (folder / "mckd/final/log.jsonl").write_text('{"step": 10, "loss": 2.5}\n{"step": 10, "dev_loss": 2.0}\n{"st')
    for arm, rate in (("teacher", 8.0), ("gold_only", 40.0), ("distilled", 25.0), ("mckd", 30.0)):
        values = {"e_rate": rate, "bleu": 100 - rate}
        manifest(folder, f"evaluate/{arm}", "evaluate", 20, {"arm": arm, "rows": 9, "metrics": values, "model": "m"})
    return folder


def test_the_numbers(finished):
    found = report.write(finished)
    assert found == json.loads((finished / "report.json").read_text())
    assert found["complete"] and found["arms"]["mckd"] == {"e_rate": 30.0, "bleu": 70.0}
    assert list(found["arms"]) == ["teacher", "gold_only", "distilled", "mckd"]
    assert found["totals"]["teacher_tokens"] == 40 and found["totals"]["tokens_trained"] == 60
    assert found["totals"]["wall_seconds"] == 30.0
    assert found["pseudo_targets"][0]["metrics"] == {"e_rate": 9.0}
    assert [s["started"] for s in found["stages"]] == sorted(s["started"] for s in found["stages"])


def test_the_best_student_is_bold_and_compared_with_the_control(finished):
    report.write(finished)
    text = (finished / "report.md").read_text()
    assert "| distilled | **25.00 (-38 %)** | **75.00 (+25 %)** |" in text
    assert "| teacher | 8.00 | 92.00 |" in text
    assert "Licence of the data: CC BY 4.0" in text


def test_html_is_one_file_and_escaped(finished):
    report.write(finished)
    text = (finished / "report.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert text.count("<svg") == 2 and "mckd/final" in text
    assert "<link" not in text and "src=" not in text


def test_writing_again_changes_nothing(finished):
    report.write(finished)
    before = {p.name: p.read_bytes() for p in finished.glob("report.*")}
    report.write(finished)
    assert {p.name: p.read_bytes() for p in finished.glob("report.*")} == before and len(before) == 3


def test_an_unfinished_run(folder):
    manifest(folder, "teacher/labels", "label", 0, {"store": "x"}, rows=5)
    found = report.write(folder)
    assert not found["complete"] and found["arms"] == {}
    assert "not complete" in (folder / "report.md").read_text()


def test_what_failed_is_shown(finished):
    (finished / "bad_rows.jsonl").write_text('{"file": "rows.jsonl", "line": 7, "reason": "not JSON"}\n')
    assert report.write(finished)["failed"] == {
        "count": 1,
        "rows": [{"file": "rows.jsonl", "line": 7, "reason": "not JSON"}],
    }
    assert "| rows.jsonl | 7 | not JSON |" in (finished / "report.md").read_text()


def test_no_run_and_a_damaged_one(tmp_path, folder):
    with pytest.raises(RunError, match="no run folder"):
        report.write(tmp_path)
    manifest(folder, "a", "label", 0, {})
    (folder / "a" / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="damaged manifest"):
        report.write(folder)
