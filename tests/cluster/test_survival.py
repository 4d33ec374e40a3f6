"""Trainings that are killed, and where their checkpoints are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dying
import pytest
from conftest import ROOT
from test_end_to_end import TRAINING, recipe
from test_train import job, losses

from raykd.cluster import train
from raykd.errors import TrainingError
from raykd.recipe.cluster import Cluster, Workers


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [2, pytest.param((1, 2), marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_is_replaced(tmp_path, shared_tokenizer, ray_session, workers):
    """Two workers: the trajectory is the one of a training in which nobody died."""
    dying.FLAG.unlink(missing_ok=True)
    changes = {"max_steps": 60, "evaluate_every": 20, "losses": {"dying:once": {"teacher_outputs": False}}}
    cluster = Cluster(student=Workers(workers=workers, resources={"CPU": 1}))
    result = train.fit(job(tmp_path / "killed", shared_tokenizer, **changes), cluster, lambda step, note: None)
    assert dying.FLAG.exists() and result["steps"] == 60
    straight = train.fit(job(tmp_path / "straight", shared_tokenizer, **changes), cluster, lambda step, note: None)
    assert straight["stats"]["workers"] == 2
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "straight"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_run_goes_on_from_an_object_store(tmp_path, tiny_models, bucket):
    teacher = {"model": {"kind": "checkpoint", "path": str(tiny_models["llama"])}, "prompt": "{input} =>"}
    teacher["engine"] = {"kind": "scripted", "function": "raykd.engines.scripted:echo"}
    file = recipe(
        tmp_path,
        **{"arms": {}, "method": {"kind": "distill"}, "data__gold": None, "teachers__main": teacher, "metrics": []},
        data__test=None,
        student__training={**TRAINING, "max_steps": 1500, "evaluate_every": 100},
        cluster={"student": {"storage": "s3://place/checkpoints"}},
    )
    command = [sys.executable, "-m", "raykd", "run", str(file)]
    log = tmp_path / "runs/small/distilled/log.jsonl"
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 200
    while not (log.exists() and '"step": 250' in log.read_text()):
        assert time.monotonic() < until and first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert any(".distcp" in path for path in bucket.find("place/checkpoints"))
    assert not list((tmp_path / "runs/small/distilled").rglob("*.distcp"))
    before = log.read_text().splitlines()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    after = log.read_text().splitlines()
    kept = [line for line in before if json.loads(line)["step"] <= 200]
    assert kept == after[: len(kept)] and len(kept) > 15  # with the very seconds of the first attempt
    assert json.loads(after[-1])["step"] == 1500


def test_a_storage_that_cannot_be_written_is_one_line(tmp_path, shared_tokenizer, ray_session):
    Path(tmp_path / "file").touch()
    for storage, words in ((str(tmp_path / "file" / "x"), "ile"), ("nowhere://x", "rotocol")):
        cluster = Cluster(student=Workers(storage=storage))
        with pytest.raises(TrainingError, match=f"cluster.student.storage: .*{words}") as error:
            train.fit(job(tmp_path / str(len(words)), shared_tokenizer), cluster, lambda step, note: None)
        assert "\n" not in str(error.value)
