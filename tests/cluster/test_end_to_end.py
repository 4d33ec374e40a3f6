"""The command line from recipe to report, on real Ray, interrupted and not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import LLAMA, ROOT, T5, pairs, raykd, write_rows

TRAINING = {"learning_rate": 0.01, "max_steps": 60, "batch_tokens": 512, "evaluate_every": 20}


def recipe(folder: Path, **changes) -> Path:
    """A small MCKD on made-up words: capitals are their pronunciation."""
    for name, (start, count) in {
        "unlabelled": (0, 400),
        "gold": (400, 400),
        "dev": (800, 60),
        "test": (900, 80),
    }.items():
        write_rows(folder / f"{name}.jsonl", pairs(count, start))
    rows = {name: {"kind": "jsonl", "path": str(folder / f"{name}.jsonl")} for name in ("gold", "dev", "test")}
    for source in rows.values():
        source["columns"] = {"target": "target", "id": "id"}
    teacher = {
        "model": {"kind": "config", "model_type": "llama", "settings": LLAMA},
        "fine_tune": TRAINING,
        "prompt": "{input} =>",
        "engine": {"kind": "vllm", "arguments": {"enforce_eager": True, "dtype": "float32", "max_num_seqs": 64}},
        "passes": {"pseudo_targets": {"max_tokens": 10}},
        "shard_rows": 64,
    }
    tree = {
        "name": "small",
        "output": str(folder / "runs"),
        "method": {"kind": "mckd", "partitions": 2, "stages": 2},
        "data": {
            **rows,
            "test": {"main": rows["test"]},
            "unlabelled": {**rows["gold"], "path": str(folder / "unlabelled.jsonl")},
        },
        "tokenizer": {"kind": "words", "extra": ["=>"]},
        "teachers": {"main": teacher},
        "student": {
            "model": {"kind": "config", "model_type": "t5", "settings": T5},
            "training": TRAINING,
            "sampling": {"max_tokens": 10},
            "shard_rows": 64,
        },
        "arms": {"gold_only": {"rows": rows["gold"]}, "distilled": True},
        "metrics": [{"kind": "phoneme_error_rate"}, {"kind": "exact_match"}],
    }
    for path, value in changes.items():
        *sections, field = path.split("__")
        at = tree
        for section in sections:
            at = at.setdefault(section, {})
        at[field] = value
    if not tree["teachers"]["main"].get("fine_tune") and not tree["arms"].get("gold_only"):
        tree["data"]["dev"] = None  # nothing uses it
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def manifests(run: Path) -> dict[str, bytes]:
    return {str(p.parent.relative_to(run)): p.read_bytes() for p in run.rglob("manifest.json")}


def keys(stores: Path) -> dict[str, list[str]]:
    found = {}
    for store in stores.iterdir():
        found[store.name] = [
            k for s in sorted(store.glob("shards/*.parquet")) for k in pq.read_table(s)["key"].to_pylist()
        ]
    return found


@pytest.mark.timeout(1000)
def test_a_run_with_a_real_engine_then_again(tmp_path):
    file, run = recipe(tmp_path), tmp_path / "runs" / "small"
    secret = "planted-7f3a9c"
    done = raykd("run", str(file), env={**os.environ, "HF_TOKEN": secret, "WANDB_API_KEY": secret})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""  # chatter is in the run folder
    report = json.loads((run / "report.json").read_text())
    assert set(report["arms"]) == {"teacher", "gold_only", "distilled", "mckd"}
    assert all(set(values) == {"phoneme_error_rate", "exact_match"} for values in report["arms"].values())
    assert [q["labeller"] for q in report["pseudo_targets"]] == ["teacher", "students"]
    labels = json.loads((run / "teacher/labels/manifest.json").read_text())
    assert labels["stats"]["engine"] == "vllm" and labels["stats"]["new_rows"] == 480
    assert all(len(k) == len(set(k)) for k in keys(tmp_path / "runs" / "stores").values())
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path

    before, html = manifests(run), (run / "report.html").read_bytes()
    again = raykd("run", str(run / "recipe.yaml"))  # the resolved recipe is the same run
    assert again.returncode == 0, again.stderr
    assert manifests(run) == before and (run / "report.html").read_bytes() == html
    assert "Ray started" not in again.stdout  # nothing was left to do


def running(mark: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def kill_when(file: Path, mark: str, ready) -> str:
    """Start the run, SIGKILL its driver as soon as `ready()`, and see that nothing of it is left after 30 seconds."""
    environment = {**os.environ, "RAYKD_TEST": mark, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "raykd", "run", str(file)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until = time.monotonic() + 400
    while not ready():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < until, "never came to the moment to kill it at"
        time.sleep(0.05)
    assert len(running(f"RAYKD_TEST={mark}")) > 3
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    until = time.monotonic() + 30
    while running(f"RAYKD_TEST={mark}") and time.monotonic() < until:
        time.sleep(0.2)
    assert running(f"RAYKD_TEST={mark}") == []
    return output


@pytest.mark.timeout(1500)
def test_killed_in_labelling_training_and_cross_labelling(tmp_path):
    training = {**TRAINING, "max_steps": 300}
    file = recipe(tmp_path, teachers__main__shard_rows=8, student__training=training, student__shard_rows=16)
    run, stores = tmp_path / "runs" / "small", tmp_path / "runs" / "stores"

    def shards(stage: str) -> int:
        """Shards in the stores of a labelling that has not ended yet."""
        manifests = [p for at in ("*", "mckd/*") for p in run.glob(f"{at}/labels*/manifest.json")]  # rglob meets ghosts
        ended = {json.loads(p.read_text())["results"].get("store") for p in manifests}
        open_ = [s for s in (stores.iterdir() if stores.exists() else []) if str(s) not in ended]
        return sum(len(list(s.glob("shards/*.parquet"))) for s in open_) if (run / stage).exists() else 0

    kill_when(file, f"a{os.getpid()}", lambda: 2 <= shards("teacher/labels"))
    landed = {p.name: p.read_bytes() for p in stores.glob("*/shards/*.parquet")}
    assert landed and not (run / "teacher/labels/manifest.json").exists()

    kill_when(file, f"b{os.getpid()}", lambda: list(run.glob("mckd/round-1/student-0/checkpoints/checkpoint_*")))
    labels = json.loads((run / "teacher/labels/manifest.json").read_text())["stats"]
    assert labels["reused_rows"] >= 16 and labels["reused_rows"] + labels["new_rows"] == 480
    assert {p.name: p.read_bytes() for p in stores.glob("*/shards/*.parquet") if p.name in landed} == landed
    assert not (run / "mckd/round-1/student-0/manifest.json").exists()

    kill_when(file, f"c{os.getpid()}", lambda: 1 <= shards("mckd/round-1/labels-by-0"))
    log = [json.loads(line) for line in (run / "mckd/round-1/student-0/log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in log if "loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 300
    done = before = manifests(run)

    last = raykd("run", str(file), env={**os.environ, "PYTHONPATH": str(ROOT / "tests")})
    assert last.returncode == 0, last.stdout + last.stderr
    done = manifests(run)
    assert {name: done[name] for name in before} == before  # what was complete was not made again
    assert "evaluate/mckd" in done
    for name, found in keys(stores).items():
        assert len(found) == len(set(found)), name


BAD = [
    ({"arms__distilled": "maybe"}, None, "arms.distilled", 2),
    ({"student__trainning": {}}, None, "did you mean training?", 2),
    ({}, ("unlabelled", '{"id": "x", "input": "a b", "target": "A B"}\n{"input": \n'), "unlabelled.jsonl:2: ", 1),
    ({}, ("gold", '{"id": "x", "text": "a b"}\n'), "gold.jsonl", 1),
    ({}, ("unlabelled", ""), "unlabelled.jsonl", 1),
    (
        {"student__model": {"kind": "checkpoint", "path": "/nowhere/model"}},
        None,
        "/nowhere/model: no such model folder",
        1,
    ),
    ({"metrics": [{"kind": "blue"}]}, None, "bleu", 2),
    ({"cluster": {"student": {"resources": {"GPU": 4}}}}, None, "cluster.student: needs GPU 4 x 1", 1),
    ({"teachers__main__engine": {"kind": "scripted", "function": "answers:refuse"}}, None, "row r7: too long", 1),
]


@pytest.mark.parametrize(("changes", "content", "words", "code"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_one_line_and_a_code(tmp_path, changes, content, words, code):
    if "teachers__main__engine" in changes:
        changes = {**changes, "teachers__main__fine_tune": {**TRAINING, "max_steps": 1, "evaluate_every": 1}}
    file = recipe(tmp_path, **changes)
    if content:
        (tmp_path / f"{content[0]}.jsonl").write_text(content[1])
    done = raykd("run", str(file), env={**os.environ, "PYTHONPATH": str(ROOT / "tests")})
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("raykd: ") and words in lines[0], done.stderr
    made = manifests(tmp_path / "runs" / "small") if (tmp_path / "runs").exists() else {}
    assert not {name for name in made if name.startswith(("mckd/round", "mckd/final", "distilled", "evaluate"))}
    assert "teacher/labels" not in made
