"""Plain distillation by every way of teaching, through the command line on real Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import LLAMA, raykd
from test_end_to_end import recipe

from raykd.store import Store

CAUSAL = {"kind": "config", "model_type": "llama", "settings": LLAMA}
TRAINING = {"learning_rate": 0.01, "max_steps": 40, "batch_tokens": 512, "evaluate_every": 20}
MIXED = {"sequences": {"kind": "mixture", "gold": 0.5, "by": "ratio"}}
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
        (
            "transformers",
            {"kind": "actors", "k": 8, "dtype": "float32"},
            {"jsd": {"options": {"beta": 0.3}}},
            "text",
            {},
        ),
        (
            "transformers",
            {"kind": "in_process", "dtype": "float32"},
            {"reverse_kl": {}, "cross_entropy": {}},
            "text",
            MIXED,
        ),
    ],
)
def test_a_student_learns_probabilities(tmp_path, engine, side, losses, kept, sequences):
    training = {**TRAINING, "losses": losses, "teacher": side, **sequences}
    student = {"model": CAUSAL, "training": training, "prompt": "{input} =>", "sampling": {"max_tokens": 10}}
    arguments = (
        {"arguments": {"enforce_eager": True, "dtype": "float32", "max_num_seqs": 64}} if engine == "vllm" else {}
    )
    file = recipe(tmp_path, **ARMS, student=student, teacher__engine={"kind": engine, **arguments})
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
    model = {"kind": "checkpoint", "path": str(tiny_models["llama"])}
    teacher = {"model": model, "prompt": "{input} =>", "engine": {"kind": "scripted", "function": "answers:slowly"}}
    student = {"model": CAUSAL, "training": {**TRAINING, "max_steps": None, "epochs": 2}, "prompt": "{input} =>"}
    student["sampling"] = {"max_tokens": 10}
    method = {"kind": "distill", "overlap": True}
    file = recipe(
        tmp_path, arms={}, method=method, data__gold=None, teacher={**teacher, "shard_rows": 64}, student=student
    )
    ran(file)
    labels, trained = manifest(tmp_path, "teacher/labels"), manifest(tmp_path, "distilled")
    ended = {m["stage"]: m["started"] + m["seconds"] for m in (labels, trained)}
    assert trained["started"] < ended["teacher/labels"] < ended["distilled"]
    assert trained["stats"]["waited_seconds"] > 5  # for the first epoch's chunks, one after the other
    assert trained["stats"]["rows"] + trained["stats"]["dev_rows"] == 400
    again = raykd("run", str(file), timeout=200)
    assert again.returncode == 0 and "distilled: complete, nothing to do" in again.stdout, again.stdout
