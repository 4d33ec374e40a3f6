"""Run folders at a URL: an S3-compatible server of this machine, and nodes that share no folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import ExitStack

import pytest
from conftest import raykd
from ray_head import finished, head
from test_end_to_end import TRAINING, recipe

from raykd.cluster import train
from raykd.errors import RunError
from raykd.run import remote

TEACHER = {"engine": {"kind": "scripted", "function": "raykd.engines.scripted:echo"}, "prompt": "{input} =>"}


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """Go to a machine, each of which has copies of its own."""
    return lambda name: monkeypatch.setattr(remote, "COPIES", tmp_path / name)


@pytest.fixture
def place(bucket):
    """The URL of a bucket, of which this machine has no copy, before and after."""
    copy = remote.COPIES / "s3/place"
    shutil.rmtree(copy, ignore_errors=True)
    yield "s3://place"
    shutil.rmtree(copy, ignore_errors=True)


def test_files_go_from_machine_to_machine(machines, bucket):
    machines("one")
    folder = remote.folder("s3://place/runs") / "a"
    (folder / "stage/checkpoints").mkdir(parents=True)
    for name, text in {"stage/x": "1", "stage/.part": "2", "stage/checkpoints/c": "3", "y": ""}.items():
        (folder / name).write_text(text)
    remote.send(folder)
    assert bucket.find("place/runs") == ["place/runs/a/stage/x", "place/runs/a/y"]
    assert remote.url(folder / "y") == "s3://place/runs/a/y"

    machines("two")
    copy = remote.folder("s3://place/runs") / "a"
    assert copy != folder
    assert remote.fetch(copy, copy / "missing") == {copy / "stage/x", copy / "y"}
    assert (copy / "stage/x").read_text() == "1" and (copy / "y").read_text() == ""
    before = (copy / "y").stat().st_ino
    (copy / "stage/x").write_text("longer")
    remote.send(copy)
    remote.fetch(copy / "y")
    assert (copy / "y").stat().st_ino == before  # what has not changed is not brought again

    machines("one")
    remote.fetch(folder / "stage/x")
    assert (folder / "stage/x").read_text() == "longer"
    assert remote.tail(folder / "stage/x", 4) == b"er" and remote.tail(folder / "stage/x", 6) == b""
    assert remote.tail(folder / "stage/x", 7) is remote.tail(folder / "missing", 0) is None
    remote.remove(folder / "y")
    assert not (folder / "y").exists() and bucket.find("place/runs") == ["place/runs/a/stage/x"]


def test_a_model_that_is_half_sent_is_not_taken(machines, bucket, monkeypatch):
    machines("one")
    one = remote.folder("s3://place/runs") / "a/distilled"
    (one / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (one / "model" / name).write_text("100")
    train._send(one, 100)

    machines("two")
    two = remote.folder("s3://place/runs") / "a/distilled"
    remote.fetch(two)
    train._remove_other_model(two, 100)
    assert (two / "model/model.safetensors").read_text() == "100"

    machines("one")
    for name in ("config.json", "model.safetensors"):
        (one / "model" / name).write_text("of step 200")
    put = bucket.put_file

    def fails(local, target):
        if target.endswith("safetensors"):
            raise OSError("the node is gone")
        put(local, target)

    monkeypatch.setattr(bucket, "put_file", fails)
    with pytest.raises(RunError, match="the node is gone"):
        train._send(one, 200)

    machines("two")
    remote.fetch(two)
    assert (two / "model/config.json").read_text() == "of step 200"
    train._remove_other_model(two, 100)  # the checkpoint is the one before
    assert not (two / "model").exists()


def test_other_paths_are_left_alone(tmp_path):
    file = tmp_path / "file"
    file.write_text("abc")
    assert remote.url(file) is None and remote.folder(str(file)) == file
    remote.send(file, "a/hub", tmp_path)
    assert remote.fetch(file, tmp_path) == set()
    assert remote.tail(file, 1) == b"bc" and remote.tail(file, 4) is None
    remote.remove(file)
    assert not file.exists() and remote.tail(file, 0) is None


def test_what_cannot_be_reached_is_one_line(tmp_path, machines, bucket):
    machines("one")
    with pytest.raises(RunError, match="^hdfs:///runs: expected a URL with a bucket or host"):
        remote.folder("hdfs:///runs")
    for output in ("s3://nobodys/runs", "nowhere://x/runs"):
        file = remote.folder(output) / "a"
        file.parent.mkdir(parents=True)
        file.write_text("x")
        with pytest.raises(RunError, match=f"^{output}/a: [^\n]+$"):
            remote.send(file)
    done = raykd("run", str(recipe(tmp_path, output="s3://nobodys/runs")))
    assert done.returncode == 1 and done.stderr.startswith("raykd: s3://nobodys/runs/small"), done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.timeout(500)
def test_a_run_at_a_url_goes_on_on_another_machine(tmp_path, tiny_models, bucket, place):
    teacher = {**TEACHER, "model": {"kind": "checkpoint", "path": str(tiny_models["llama"])}}
    changes = {"teachers__main": teacher, "data__gold": None, "arms": {}, "output": f"{place}/runs"}
    file = recipe(tmp_path, **changes, method={"kind": "distill"})
    done = raykd("run", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report: s3://place/runs/small/report.html" in done.stdout
    assert json.loads(bucket.cat("place/runs/small/report.json"))["complete"]
    assert bucket.exists("place/runs/small/distilled/model/model.safetensors")
    stages = {path: bucket.cat(path) for path in bucket.find("place/runs") if path.endswith("manifest.json")}

    shutil.rmtree(remote.COPIES / "s3/place")
    gone = "place/runs/small/evaluate/distilled/manifest.json"
    bucket.rm(gone)
    again = raykd("run", str(file))
    assert again.returncode == 0, again.stdout + again.stderr
    said = [line.partition("] ")[2] for line in again.stdout.splitlines()]
    assert [line for line in said if line.endswith((": evaluate", ": train"))] == ["evaluate/distilled: evaluate"]
    assert "Ray started" not in again.stdout
    kept = {path: bucket.cat(path) for path in bucket.find("place/runs") if path.endswith("manifest.json")}
    assert set(kept) == set(stages) and all(kept[path] == stages[path] for path in stages if path != gone)

    shutil.rmtree(remote.COPIES / "s3/place")
    told = raykd("report", "s3://place/runs/small")
    assert told.returncode == 0 and "distilled" in told.stdout, told.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_that_share_no_folder(tmp_path, bucket, place):
    """A head and two nodes, each with copies of its own: teacher and students work where the driver is not."""
    apart = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    cluster = {
        "teacher": {"resources": {"CPU": 1, "raykd_teacher": 1}, "replicas": 2},
        "student": {"resources": {"CPU": 1, "raykd_student": 1}, "workers": 2},
        "labelling_students": {"resources": {"CPU": 1, "raykd_student": 1}},
    }
    file = recipe(
        tmp_path,
        **{"output": f"{place}/runs", "method": {"kind": "distill", "overlap": True}, "arms": {}, "cluster": cluster},
        student__training={**TRAINING, "max_steps": 200, "evaluate_every": 50},
        teachers__main__engine={"kind": "scripted", "function": "raykd.engines.scripted:echo"},
    )
    node = (
        f"mkdir -p {remote.COPIES} && mount -t tmpfs none {remote.COPIES} && exec ray start --address=127.0.0.1:26379"
    )
    node += " --block --num-cpus=3 --object-store-memory=100000000 --resources="
    node += "'" + json.dumps({"raykd_teacher": 1, "raykd_student": 1}) + "'"
    with head(tmp_path) as environment, ExitStack() as nodes:
        for number in range(2):
            log = nodes.enter_context(open(tmp_path / f"node-{number}", "w"))
            started = subprocess.Popen([*apart, node], env=environment, stdout=log, stderr=log)
            nodes.callback(started.wait, 40)
            nodes.callback(started.terminate)
            until = time.monotonic() + 60
            while "--block" not in (tmp_path / f"node-{number}").read_text():  # two at a time take each other's ports
                assert time.monotonic() < until and started.poll() is None, (tmp_path / f"node-{number}").read_text()
                time.sleep(0.5)
        done = finished(environment, "ray", "job", "submit", "--", "python", "-m", "raykd", "run", str(file))
        assert done.returncode == 0, done.stdout
    assert not (remote.COPIES / "s3/place/runs/tokens").exists()  # what the students' nodes made
    report = json.loads(bucket.cat("place/runs/small/report.json"))
    assert report["complete"] and set(report["arms"]) == {"teacher", "distilled"}
    trained = json.loads(bucket.cat("place/runs/small/distilled/manifest.json"))
    assert trained["stats"]["workers"] == 2 and trained["results"]["steps"] == 200
    lines = bucket.cat("place/runs/small/distilled/log.jsonl").splitlines()
    assert json.loads(lines[-1])["step"] == 200
