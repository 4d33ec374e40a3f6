"""Run folders: complete means complete, and nothing is mixed."""

import json
from types import SimpleNamespace

import pytest
from conftest import RECIPE

from raykd.errors import DataError, RunError
from raykd.recipe.load import load_recipe
from raykd.run.files import replaced
from raykd.run.manifests import manifests
from raykd.run.session import Session


@pytest.fixture
def made(tmp_path):
    def make(bad=0, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.format(output=tmp_path / "runs", bad=bad))
        return Session(load_recipe(path, list(overrides)))

    return make


def test_a_stage_is_done_once(made):
    calls = []

    def work(folder):
        calls.append(folder)
        return {"value": 7}, {"rows": 3}

    run = made()
    assert run.stage("a/b", "kind", {"x": 1}, work) == {"value": 7}
    assert made().stage("a/b", "kind", {"x": 1}, work) == {"value": 7}
    assert len(calls) == 1
    (manifest,) = manifests(run.path)
    assert (manifest["stage"], manifest["results"], manifest["stats"]) == ("a/b", {"value": 7}, {"rows": 3})


def test_a_stages_seconds_are_those_of_its_work_and_of_sending_its_files(made, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("raykd.run.session.time", SimpleNamespace(time=lambda: clock.now))
    monkeypatch.setattr("raykd.run.folder.time", SimpleNamespace(time=lambda: clock.now))
    run = made()

    def passes(seconds):
        clock.now += seconds

    monkeypatch.setattr("raykd.run.remote.send", lambda *paths: passes(3))
    run.stage("a", "kind", {}, lambda folder: (passes(7), ({}, {}))[1])
    (manifest,) = manifests(run.path)
    assert (manifest["started"], manifest["seconds"]) == (100, 10)


def test_a_stage_that_failed_is_not_complete(made):
    def fail(folder):
        raise ZeroDivisionError

    run = made()
    with pytest.raises(ZeroDivisionError):
        run.stage("a", "kind", {}, fail)
    assert manifests(run.path) == []
    assert run.stage("a", "kind", {}, lambda folder: ({"ok": True}, {})) == {"ok": True}


def test_other_inputs_are_refused_by_name(made):
    run = made()
    run.stage("a", "kind", {"x": 1, "y": 2}, lambda folder: ({}, {}))
    with pytest.raises(RunError, match=r"made from other inputs \(y\)"):
        run.stage("a", "kind", {"x": 1, "y": 3}, lambda folder: ({}, {}))


def test_another_recipe_in_the_folder_is_refused_and_the_field_named(made):
    made(0, "student.training.learning_rate=0.3")  # nothing was made with it: a slip that can be mended
    made().stage("a", "train", {}, lambda folder: ({}, {}))
    made(0, "cluster.teacher.replicas=4")  # where it runs is not what it computes
    with pytest.raises(RunError, match=r"holds another recipe \(student.training.learning_rate: 0.1 -> 0.2\)"):
        made(0, "student.training.learning_rate=0.2")


def test_a_damaged_manifest_is_named(made):
    run = made()
    run.stage("a", "kind", {}, lambda folder: ({}, {}))
    (run.path / "a" / "manifest.json").write_text('{"stage": ')
    with pytest.raises(RunError, match="a/manifest.json: damaged manifest"):
        run.stage("a", "kind", {}, lambda folder: ({}, {}))


def test_bad_rows_are_listed_and_counted_over_the_whole_run(made):
    run = made(2)
    bad = [{"file": "f", "line": 3, "reason": "no", "row": None}]
    run.stage("a", "kind", {}, lambda folder: ({"bad_rows": bad}, {}))
    assert run.folder.left_out() == 1

    def row(stage, name):
        return {"file": stage, "line": None, "reason": "too long", "row": name}

    run.tolerate([row("b", "7")])
    run.stage("b", "kind", {}, lambda folder: ({"bad_rows": [row("b", "7")]}, {}))
    run.tolerate([row("c", "7")])  # the same row in another stage is no further one
    assert run.folder.left_out([row("c", "7")]) == 2
    with pytest.raises(DataError, match=r"c: row 8: too long \(1 such rows, 3 in all, data.max_bad_rows is 2\)"):
        run.tolerate([row("c", "8")])
    made(3).tolerate([row("c", "8")])  # a run goes on with more
    bad.append(row("b", "7"))
    assert [json.loads(line) for line in (run.path / "bad_rows.jsonl").read_text().splitlines()] == bad


def test_a_folder_is_for_one_run_at_a_time(made, monkeypatch):
    monkeypatch.setattr("raykd.run.folder.LOCK_SECONDS", 1)
    with made():
        with pytest.raises(RunError, match="another raykd works in it"):
            made().__enter__()
    with made():
        pass


def test_replaced_shows_the_whole_or_the_old(tmp_path):
    target = tmp_path / "model"
    with replaced(target) as part:
        (part / "w").write_text("1")
    with pytest.raises(ZeroDivisionError):
        with replaced(target) as part:
            (part / "w").write_text("2")
            raise ZeroDivisionError
    assert (target / "w").read_text() == "1"


def test_a_folder_that_cannot_be_written_is_one_line(made, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        made()


def test_a_stage_made_from_equal_inputs_elsewhere_is_shared(made, tmp_path):
    first = made()
    first.stage("a/b", "train", {"x": 1}, lambda folder: ((folder / "w").write_text("w"), ({"value": 7}, {}))[1])
    second = Session(first.recipe, path=tmp_path / "second", shared=first.path)
    assert second.stage("a/b", "train", {"x": 1}, lambda folder: ({"value": 0}, {})) == {"value": 7}
    assert (second.path / "a/b/w").read_text() == "w" and (second.path / "a/b").is_symlink()
    assert [m["stage"] for m in manifests(second.path)] == ["a/b"]


def test_a_stage_made_from_other_inputs_elsewhere_is_made_anew(made, tmp_path):
    first = made()
    first.stage("a", "train", {"x": 1}, lambda folder: ({"value": 7}, {}))
    second = Session(first.recipe, path=tmp_path / "second", shared=first.path)
    assert second.stage("a", "train", {"x": 2}, lambda folder: ({"value": 8}, {})) == {"value": 8}
    assert first.stage("a", "train", {"x": 1}, lambda folder: ({}, {})) == {"value": 7}
