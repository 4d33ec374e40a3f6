"""What a training logs: the record, its copies, and what happens when one of them fails."""

import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from raykd.errors import RecipeError
from raykd.recipe.load import load_recipe, recipe_differences
from raykd.recipe.trackers import Mlflow, Wandb
from raykd.run.session import Session
from raykd.stages.rows import check_recipe
from raykd.training import trackers
from raykd.training.trackers import Log

SETTINGS = {"training": {"learning_rate": 0.5, "losses": {"dkd": {"weight": 1.0}}}, "note": "a | b\n<c>"}
NONE = [name for name in ("wandb", "mlflow") if (found := find_spec(name)) is None or found.origin is None]
needs_wandb = pytest.mark.skipif("wandb" in NONE, reason="wandb is not installed")
needs_mlflow = pytest.mark.skipif("mlflow" in NONE, reason="mlflow is not installed")


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No key, no settings and no caches of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.fixture
def silent():
    """A `warn` that nothing may be said to; it is called from threads, where a failure would be lost."""
    said = []
    yield said.append
    assert said == []


def record(folder):
    return [json.loads(line, parse_constant=pytest.fail) for line in (folder / "log.jsonl").read_text().splitlines()]


def curve(folder, name):
    """(step, value) of a scalar in the event files, and the settings' text."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    texts = [e.tensor_proto.string_val[0].decode() for e in events.Tensors("settings/text_summary")]
    return [(event.step, event.value) for event in events.Scalars(name)], texts


def written(folder, steps, start=0, name="student", chosen=(), **options):
    with Log(folder, start, name, SETTINGS, chosen, **options) as log:
        for step in steps:
            log.write(step, {"loss": 1 / step, "tokens": 100 * step})


def test_every_number_reaches_the_record_and_tensorboard(tmp_path, silent):
    with Log(tmp_path / "new" / "student", 0, "student", SETTINGS, warn=silent) as log:
        log.write(10, {"loss": 2.5, "tokens": 100})
        assert record(tmp_path / "new" / "student") == [{"step": 10, "loss": 2.5, "tokens": 100}]  # while it runs
        log.write(10, {"dev_loss": math.nan, "grad_norm": math.inf})
    folder = tmp_path / "new" / "student"
    assert record(folder)[1] == {"step": 10, "dev_loss": None, "grad_norm": None}
    losses, (table,) = curve(folder, "loss")
    assert losses == [(10, 2.5)]
    (step, value), *rest = curve(folder, "dev_loss")[0]
    assert step == 10 and math.isnan(value) and not rest
    lines = table.splitlines()
    assert "| training.learning_rate | 0.5 |" in lines and "| training.losses.dkd.weight | 1.0 |" in lines
    assert lines[-1] == "| note | a \\| b &lt;c> |"


def test_numbers_of_numpy_and_torch_are_written_as_plain_ones(tmp_path, silent):
    import numpy as np
    import torch

    with Log(tmp_path, 0, "student", {}, warn=silent) as log:
        log.write(1, {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": np.int64(3)})
    assert record(tmp_path) == [{"step": 1, "a": 0.5, "b": 2.0, "c": 3.0}]


def test_a_resumed_training_repeats_no_step(tmp_path):
    written(tmp_path, [10, 20, 30])
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 20, "lo')  # cut short by a kill
    written(tmp_path, [30, 40], start=20)
    assert [line["step"] for line in record(tmp_path)] == [10, 20, 30, 40]
    losses, texts = curve(tmp_path, "loss")
    assert [step for step, _ in losses] == [10, 20, 30, 40] and len(texts) == 1


def test_a_training_that_begins_anew_forgets_the_attempt_before(tmp_path):
    written(tmp_path, [10, 20])
    written(tmp_path, [15])
    assert [line["step"] for line in record(tmp_path)] == [15]
    losses, texts = curve(tmp_path, "loss")
    assert [step for step, _ in losses] == [15] and len(texts) == 1


def test_a_tracker_that_fails_costs_one_line(tmp_path, monkeypatch):
    asked = []

    def broken(tracker, folder, name, settings):
        def write(step, numbers):
            asked.append(step)
            raise ConnectionError("no route\nto host")

        return write, lambda failed: asked.append("closed")

    monkeypatch.setattr(trackers, "_mlflow", broken)
    monkeypatch.setitem(trackers.PACKAGES, "mlflow", "json")
    warned = []
    chosen = [Mlflow(kind="mlflow", tracking_uri="https://nowhere", experiment="e")]
    written(tmp_path, range(1, 50), chosen=chosen, warn=warned.append)
    assert warned == ["mlflow: nothing more is sent to it, log.jsonl goes on: ConnectionError: no route to host"]
    assert asked == [1] and len(record(tmp_path)) == 49 and len(curve(tmp_path, "loss")[0]) == 49


def test_a_package_that_is_missing_costs_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "no_such_package")
    written(tmp_path, [1], chosen=[Wandb(kind="wandb", project="p")])
    assert "wandb: nothing more is sent to it" in capsys.readouterr().err and len(record(tmp_path)) == 1


def test_a_tracker_that_hangs_does_not_hold_the_training(tmp_path, monkeypatch):
    import threading

    free = threading.Event()
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(trackers, "_wandb", lambda *_: (lambda step, numbers: free.wait(30), lambda failed: None))
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "json")
    warned = []
    with Log(tmp_path, 0, "s", {}, [Wandb(kind="wandb", project="p")], warned.append) as log:
        log.copies[0].end(failed=False)
        log.copies[0].thread.join()  # TensorBoard's first import may take longer than what is tested here
        log.write(1, {"loss": 1.0})
    free.set()
    assert warned == ["wandb: not everything was sent in 0.1 s after the end, log.jsonl has it all"]


def test_trackers_are_told_that_a_training_failed(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(trackers, "_wandb", lambda *_: (lambda step, numbers: None, told.append))
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "json")
    for error in (None, ValueError):
        try:
            with Log(tmp_path, 0, "s", {}, [Wandb(kind="wandb", project="p")]) as log:
                log.write(1, {"loss": 1.0})
                if error:
                    raise error
        except ValueError:
            pass
    assert told == [False, True]


# ------------------------------------------------------------------------------------------------- W&B


def wandb_history(file):
    """The run's ids, and by step what was logged, in the file of an offline run.

    After 7 bytes come records of crc (4 bytes), length (2), kind (1: whole), data, in blocks of 32 KB: one block here.
    """
    from wandb.proto import wandb_internal_pb2

    ids, history, rest = set(), {}, file.read_bytes()[7:]
    assert len(rest) < 2**15 - 7
    while rest:
        size, kind = struct.unpack("<4xHB", rest[:7])
        assert kind == 1
        data, rest = rest[7 : 7 + size], rest[7 + size :]
        found = wandb_internal_pb2.Record()
        found.ParseFromString(data)
        if found.HasField("run"):
            ids.add(found.run.run_id)
        if found.HasField("history"):
            values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in found.history.item}
            history.setdefault(values.pop("_step"), {}).update(values)
    return ids, history


@needs_wandb
def test_wandb_offline_lies_in_the_folder_and_a_resumed_training_continues_its_run(tmp_path, silent):
    chosen = [Wandb(kind="wandb", project="p", mode="offline")]
    written(tmp_path / "s", [10, 20], chosen=chosen, warn=silent)
    time.sleep(1)  # W&B names its folders by the second
    written(tmp_path / "s", [30], start=20, chosen=chosen, warn=silent)
    files = sorted((tmp_path / "s" / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    until = time.monotonic() + 20
    while not all(history for _, history in map(wandb_history, files)) and time.monotonic() < until:
        time.sleep(0.2)  # W&B's own process writes
    found = [wandb_history(file) for file in files]
    assert [ids for ids, _ in found] == [{json.loads((tmp_path / "s" / trackers.IDS).read_text())["wandb"]}] * 2
    assert [list(history) for _, history in found] == [[10, 20], [30]]
    assert found[0][1][10]["loss"] == 0.1


@needs_wandb
def test_wandb_without_a_key_costs_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    warned = []
    written(tmp_path / "s", [1, 2], chosen=[Wandb(kind="wandb", project="p")], warn=warned.append)
    assert len(warned) == 1 and warned[0].startswith("wandb: nothing more is sent") and "\n" not in warned[0]
    assert len(record(tmp_path / "s")) == 2


# ---------------------------------------------------------------------------------------------- MLflow


@needs_mlflow
def test_a_resumed_training_continues_its_mlflow_run_and_repeats_no_step(tmp_path, silent):
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "store").as_uri()
    chosen = [Mlflow(kind="mlflow", tracking_uri=uri, experiment="words")]
    written(tmp_path / "s", [10, 20, 30], chosen=chosen, warn=silent)
    written(tmp_path / "s", [30, 40], start=20, chosen=chosen, warn=silent)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("words")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "student" and run.info.status == "FINISHED"
    assert run.data.params["training.learning_rate"] == "0.5"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [10, 20, 30, 40]


@needs_mlflow
def test_students_that_begin_together_share_an_experiment(tmp_path, silent):
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "store").as_uri()
    chosen = [Mlflow(kind="mlflow", tracking_uri=uri, experiment="words")]
    with (
        Log(tmp_path / "a", 0, "a", {}, chosen, silent) as a,
        Log(tmp_path / "b", 0, "b", {"x": "y" * 9000}, chosen, silent) as b,
    ):
        a.write(1, {"loss": math.nan})
        b.write(1, {"loss": 1.0})
    runs = MlflowClient(uri).search_runs([MlflowClient(uri).get_experiment_by_name("words").experiment_id])
    assert {run.info.run_name for run in runs} == {"a", "b"}


@needs_mlflow
def test_an_experiment_that_another_student_made_first_is_used():
    from mlflow.exceptions import MlflowException

    class Client:
        found = [None, SimpleNamespace(experiment_id="7")]

        def get_experiment_by_name(self, name):
            return self.found.pop(0)

        def create_experiment(self, name):
            raise MlflowException("already exists")

    assert trackers._mlflow_experiment(Client(), "words") == "7"


@needs_mlflow
def test_an_mlflow_that_is_not_there_costs_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warned = []
    chosen = [Mlflow(kind="mlflow", tracking_uri="http://127.0.0.1:9", experiment="e")]
    written(tmp_path, [1, 2], chosen=chosen, warn=warned.append)
    assert len(warned) == 1 and warned[0].startswith("mlflow: nothing more is sent") and "\n" not in warned[0]
    assert len(record(tmp_path)) == 2


# ---------------------------------------------------------------------------------------------- recipes

RECIPE = """
name: small
output: {output}
method: {{kind: distill}}
data: {{unlabelled: {{kind: jsonl, path: rows.jsonl}}}}
teachers: {{main: {{model: {{kind: checkpoint, path: teacher}}}}}}
student:
  model: {{kind: checkpoint, path: student}}
  training: {{learning_rate: 0.001, max_steps: 10}}
"""
OFFLINE = "trackers=[{kind: wandb, project: p, mode: offline}]"


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "runs"))
    return path


def test_trackers_do_not_change_a_run(small):
    plain = load_recipe(small)
    changed = load_recipe(small, [OFFLINE, "student.push_to_hub={repo: me/words}"])
    assert recipe_differences(plain, changed) == []
    assert (changed.trackers[0].kind, changed.student.push_to_hub.private) == ("wandb", True)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trackers=[{kind: wandb, project: p}, {kind: wandb, project: q}]", ["trackers: wandb is given twice"]),
        ("trackers=[{kind: wandb}]", ["trackers.0.project"]),
        ("trackers=[{kind: wandb, project: p, api_key: k}]", ["trackers.0.api_key", "unknown key"]),
        ("trackers=[{kind: magic}]", ["trackers", "wandb"]),
        ("trackers=[{kind: mlflow, experiment: e, tracking_uri: mlruns}]", ["tracking_uri", "'mlruns'"]),
        ("student.push_to_hub={repo: words}", ["student.push_to_hub.repo"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(small, override, words):
    with pytest.raises(RecipeError) as error:
        load_recipe(small, [override])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_password_in_the_address_is_refused_and_not_shown(small):
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_PASSWORD") as error:
        load_recipe(small, ["trackers=[{kind: mlflow, experiment: e, tracking_uri: 'https://me:hush@host/x'}]"])
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_before_anything_starts(small, monkeypatch, kind):
    fields = {"wandb": "project: p", "mlflow": "experiment: e, tracking_uri: 'file:///x'"}[kind]
    run = Session(load_recipe(small, [f"trackers=[{{kind: {kind}, {fields}}}]"]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=rf"^trackers: {kind} is not installed: pip install raykd\[{kind}\]$"):
        check_recipe(run)


def test_trackers_are_imported_only_when_they_are_asked_for():
    code = (
        "import sys, raykd.training.trackers;"
        "found = {'torch', 'tensorboard', 'wandb', 'mlflow', 'ray'} & set(sys.modules);"
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
