"""Bundles on a node with eight logical GPUs, of which the machine has none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import raykd, stored_tables
from test_end_to_end import TRAINING, recipe

from raykd import reaper
from raykd.store.store import Store

SCRIPTED = {"kind": "scripted", "function": "answers:placed"}


@pytest.fixture(scope="module")
def eight_gpus():
    """Environment of commands that join a cluster of one node with eight logical GPUs."""
    mark, port = f"RAYKD_TEST={os.getpid()}-gpus", 26479
    environment = {**os.environ, "RAYKD_TEST": mark.partition("=")[2], "SPT_NOENV": "1"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port", str(port)]
    command += ["--num-cpus", "8", "--num-gpus", "8", "--include-dashboard", "false", "--node-ip-address", "127.0.0.1"]
    command += ["--temp-dir", f"/tmp/raykd-gpus-{os.getpid()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    yield {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    reaper.end(reaper.marked(mark.encode()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replicas_and_students_have_gpus_of_their_own(tmp_path, eight_gpus, tiny_models):
    """Three replicas of two GPUs each, students of two workers, and relabelling, none waiting for another for ever."""
    training = {**TRAINING, "max_steps": 20, "evaluate_every": 10}
    file = recipe(
        tmp_path,
        teachers__main__engine=SCRIPTED,
        teachers__main__model={"kind": "checkpoint", "path": str(tiny_models["llama"])},
        teachers__main__fine_tune=None,
        teachers__main__shard_rows=8,
        data__gold=None,
        student__training=training,
        cluster__teacher={"replicas": 3, "resources": {"CPU": 0.5, "GPU": 2}},
        cluster__student={"workers": 2, "resources": {"CPU": 0.5, "GPU": 1}},
        cluster__labelling_students={"resources": {"CPU": 0.5, "GPU": 1}},
    )
    done = raykd("run", str(file), env=eight_gpus)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/small"
    labels = json.loads((run / "teacher/labels/manifest.json").read_text())["results"]
    texts = {text for rows in stored_tables(Store(labels["store"]), ["text"]) for text in rows["text"].to_pylist()}
    pairs = [set(text.split(",")) for text in texts]
    assert len(pairs) == 3 and all(len(pair) == 2 for pair in pairs) and len(set.union(*pairs)) == 6
    spans = [json.loads((run / f"mckd/round-1/student-{i}/manifest.json").read_text()) for i in range(2)]
    begun, ended = max(s["started"] for s in spans), min(s["started"] + s["seconds"] for s in spans)
    assert begun < ended  # both partitions' students at the same time: four GPUs of eight


def test_more_than_the_node_has_is_one_line(tmp_path, eight_gpus):
    file = recipe(tmp_path, cluster__teacher={"replicas": [2, 4], "resources": {"GPU": 5}})
    done = raykd("run", str(file), env=eight_gpus)
    assert done.returncode == 1
    assert "cluster.teacher: needs GPU 5 x 2, the cluster may grow to 8" in done.stderr


def test_a_tensor_parallel_teacher_needs_as_many_gpus(tmp_path):
    engine = {"kind": "vllm", "arguments": {"tensor_parallel_size": 4}}
    file = recipe(tmp_path, teachers__main__engine=engine, cluster__teacher={"resources": {"GPU": 2}})
    done = raykd("check", str(file))
    assert done.returncode == 2 and "cluster.teacher.resources.GPU: expected 4" in done.stderr
