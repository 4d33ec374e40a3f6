"""Ray's own autoscaler, with its fake nodes: a run that starts with none ends right, also when it loses some."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, T5
from ray_head import finished, head
from test_end_to_end import TRAINING, recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
NODES = {
    "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
    "teacher": {"resources": {"CPU": 2, "raykd_teacher": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "student": {"resources": {"CPU": 2, "raykd_student": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}
PROVIDER = {
    "type": "fake_multinode",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
    "gcs_address": "127.0.0.1:26379",
}
EMPTY = ("auth", "docker", "file_mounts")
NONE = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
NONE += (
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)


def autoscaling(folder: Path) -> Path:
    for node in NODES.values():
        node["resources"]["object_store_memory"] = 100_000_000
    tree = {"cluster_name": "fake", "max_workers": 4, "idle_timeout_minutes": 0.2, "provider": PROVIDER}
    tree |= {"available_node_types": NODES, "head_node_type": "ray.head.default", "upscaling_speed": 1.0}
    tree |= {name: {} for name in EMPTY} | {name: [] for name in NONE} | {"file_mounts_sync_continuously": False}
    file = folder / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def alive(environment: dict[str, str]) -> dict[str, int]:
    """How many nodes there are of each kind."""
    code = "import ray, json; ray.init('127.0.0.1:26379', log_to_driver=False, logging_level='ERROR');"
    code += "print(json.dumps([n['Resources'] for n in ray.nodes() if n['Alive']]))"
    done = finished(environment, "python", "-c", code, timeout=60)
    nodes = json.loads(done.stdout.splitlines()[-1])
    return {kind: sum(f"raykd_{kind}" in resources for resources in nodes) for kind in ("teacher", "student")}


def raylets(kind: str) -> list[int]:
    """Process ids of the fake nodes of a kind."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            if b"raylet/raylet" in command and f"raykd_{kind}".encode() in command:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_nodes_come_when_they_are_needed_and_go_again(tmp_path, tiny_models):
    model = {"kind": "checkpoint", "path": str(tiny_models["llama"])}
    teacher = {"model": model, "prompt": "{input} =>", "shard_rows": 16}
    teacher["passes"] = {"pseudo_targets": {"max_tokens": 10}}
    teacher["engine"] = {"kind": "scripted", "function": "answers:slowly"}
    student = {"model": {"kind": "config", "model_type": "t5", "settings": T5}, "sampling": {"max_tokens": 10}}
    student["training"] = {**TRAINING, "max_steps": 400, "evaluate_every": 50}
    cluster = {
        "teacher": {"resources": {"CPU": 1, "raykd_teacher": 1}, "replicas": [1, 2]},
        "student": {"resources": {"CPU": 1, "raykd_student": 1}},
        "labelling_students": {"resources": {"CPU": 1, "raykd_student": 0.5}},
        "capacity": {"CPU": 10, "raykd_teacher": 2, "raykd_student": 2},
    }
    file = recipe(
        tmp_path, data__gold=None, arms={"distilled": True}, teachers__main=teacher, student=student, cluster=cluster
    )
    run = tmp_path / "runs/small"
    variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "PYTHONPATH": str(ROOT / "tests")}
    variables |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
    options = ("--num-cpus=2", f"--autoscaling-config={autoscaling(tmp_path)}")
    with head(tmp_path, *options, **variables) as environment:
        assert alive(environment) == {"teacher": 0, "student": 0}
        submit = ["ray", "job", "submit", "--no-wait", "--submission-id", "scaled", "--", "python", "-m", "raykd"]
        done = finished(environment, *submit, "run", str(file))
        assert done.returncode == 0, done.stdout

        def logs() -> str:
            return finished(environment, "ray", "job", "logs", "scaled", timeout=60).stdout

        def until(what, seconds: float) -> None:
            end = time.monotonic() + seconds
            while not what():
                assert time.monotonic() < end, logs()[-4000:]
                time.sleep(1)

        until(lambda: len(list(tmp_path.glob("runs/stores/*/shards/*"))) >= 3, 300)
        os.kill(raylets("teacher")[0], signal.SIGKILL)
        until(lambda: list(run.glob("mckd/round-1/student-*/log.jsonl")), 400)
        os.kill(raylets("student")[0], signal.SIGKILL)
        status = ["ray", "job", "status", "scaled"]
        until(lambda: any(word in finished(environment, *status).stdout for word in (" succeeded", " failed")), 900)
        said = logs()
        assert " succeeded" in finished(environment, *status).stdout, said[-4000:]
        assert "teacher/labels: waiting for nodes with raykd_teacher 1 (there are 0)" in said
        assert "waiting for nodes with raykd_student 1 (there are 0)" in said
        until(lambda: alive(environment) == {"teacher": 0, "student": 0}, 120)
    report = json.loads((run / "report.json").read_text())
    assert report["complete"] and set(report["arms"]) == {"teacher", "distilled", "mckd"}
    labels = json.loads((run / "teacher/labels/manifest.json").read_text())["stats"]
    assert labels["rows"] == 480 and labels["failed_rows"] == 0
