"""Plain distillation by every way of teaching, through the command line on real Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import LLAMA, raykd, stored_tables, word
from test_end_to_end import recipe

from raykd.data.examples import chunk_order
from raykd.store.store import Store

CAUSAL = {"kind": "config", "model_type": "llama", "settings": LLAMA}
TRAINING = {"learning_rate": 0.01, "max_steps": 40, "batch_tokens": 512, "evaluate_every": 20}
ACTORS = {"kind": "remote", "k": 8, "dtype": "float32"}
IN_PROCESS = {"kind": "in_process", "dtype": "float32"}
MIXED = {"sequences": {"shares": {"gold": 0.5, "pseudo_targets": 0.5}, "by": "ratio"}}
ARMS = {"arms": {}, "method": {"kind": "distill"}}


def manifest(folder: Path, stage: str) -> dict:
    return json.loads((folder / "runs/small" / stage / "manifest.json").read_text())


def ran(file: Path) -> None:
    done = raykd("run", str(file), timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("engine", "side", "losses", "kept", "sequences"),
    [
        # the vocabulary of 20 words is all within a top-k
        ("vllm", {"kind": "store"}, {"forward_kl": {"weight": 0.5}, "cross_entropy": {"weight": 0.5}}, "top_k", {}),
        pytest.param("transformers", ACTORS, {"jsd": {"options": {"beta": 0.3}}}, "text", {}, marks=pytest.mark.slow),
        ("transformers", IN_PROCESS, {"reverse_kl": {}, "cross_entropy": {}}, "text", MIXED),
    ],
)
def test_a_student_learns_probabilities(tmp_path, engine, side, losses, kept, sequences):
    training = {**TRAINING, "losses": losses, "teacher": side, **sequences}
    student = {"model": CAUSAL, "training": training, "prompt": "{input} =>", "sampling": {"max_tokens": 10}}
    arguments = (
        {"arguments": {"enforce_eager": True, "dtype": "float32", "max_num_seqs": 64}} if engine == "vllm" else {}
    )
    file = recipe(tmp_path, **ARMS, student=student, teachers__main__engine={"kind": engine, **arguments})
    ran(file)
    labels, trained = manifest(tmp_path, "teacher/labels"), manifest(tmp_path, "distilled")
    assert Store(labels["results"]["store"]).payload.kind == kept
    lines = [json.loads(line) for line in (tmp_path / "runs/small/distilled/log.jsonl").read_text().splitlines()]
    dev = [line["dev_loss"] for line in lines if "dev_loss" in line]
    assert len(dev) == 2 and dev[1] < dev[0]
    rows = trained["stats"]["rows"] + trained["stats"]["dev_rows"]
    assert rows == (800 if sequences else 400)  # the gold inputs as well
    assert trained["results"]["steps"] == 40 and list((tmp_path / "runs/small/distilled/tensorboard").iterdir())
    card = (Path(trained["results"]["model"]) / "README.md").read_text()
    assert all(word in card for word in [*losses, "phoneme_error_rate", "raykd run small.yaml"])
    assert not list((tmp_path / "runs/small/distilled").glob(".checkpoint-*"))


@pytest.mark.timeout(500)
def test_a_student_is_trained_while_the_teacher_still_writes(tmp_path, tiny_models):
    """The teacher keeps back an answer of the last chunk until the student has logged its first steps."""
    model = {"kind": "checkpoint", "path": str(tiny_models["llama"])}
    last = [rows for rows in chunk_order(480, 64, 0) if rows.start < 400][-1]  # 400 to learn, 80 of the test
    path = tmp_path / "runs/small/distilled/log.jsonl"
    teacher = {"model": model, "prompt": f"{{input}}|{word(last.start)}|{path}", "shard_rows": 64}
    teacher["engine"] = {"kind": "scripted", "function": "answers:after_the_student"}
    training = {**TRAINING, "max_steps": None, "epochs": 2, "batch_tokens": 128}
    student = {"model": CAUSAL, "training": training, "prompt": "{input} =>", "sampling": {"max_tokens": 10}}
    method = {"kind": "distill", "overlap": True}
    file = recipe(tmp_path, arms={}, method=method, data__gold=None, teachers__main=teacher, student=student)
    ran(file)
    labels, trained = manifest(tmp_path, "teacher/labels"), manifest(tmp_path, "distilled")
    texts = stored_tables(Store(labels["results"]["store"]), ["text"])
    assert "nobody trained" not in [text for rows in texts for text in rows["text"].to_pylist()]
    assert trained["started"] < labels["started"] + labels["seconds"]
    assert trained["stats"]["rows"] + trained["stats"]["dev_rows"] == 400
    again = raykd("run", str(file), timeout=200)
    assert again.returncode == 0 and "distilled: complete, nothing to do" in again.stdout, again.stdout
    assert "Ray" not in again.stdout
