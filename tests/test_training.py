"""The loop, without Ray."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import LLAMA, T5, pairs, write_rows

from raykd import batches, encoded, models, training
from raykd.errors import DataError, TrainingError
from raykd.losses import tokens
from raykd.losses.tokens import Kind, TokenLoss
from raykd.recipe import Checkpoint, FromConfig, Training
from raykd.students import Student
from raykd.training import Job


def job(tmp_path, tokenizer, kind="t5", rows=None, **changes):
    settings = {"learning_rate": 0.01, "max_steps": 30, "batch_tokens": 256, "evaluate_every": 10, **changes}
    folder = tmp_path / "train"
    folder.mkdir(parents=True, exist_ok=True)
    path = write_rows(tmp_path / "rows.jsonl", rows or pairs(200))
    return Job(
        name="train",
        model=FromConfig(kind="config", model_type=kind, settings=T5 if kind == "t5" else LLAMA),
        tokenizer=str(tokenizer),
        training=Training(**settings),
        source=encoded.Rows(str(path)),
        dev=None,
        student=encoded.Reading(str(tokenizer), "{input}", encoder=kind == "t5"),
        folder=str(folder),
        tokens=str(tmp_path / "tokens"),
        marks=("rows", ""),
        seed=1,
        threads=1,
    )


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_training_lowers_the_dev_loss_and_leaves_a_model(tmp_path, shared_tokenizer, kind):
    reports = []
    result = training.train(job(tmp_path, shared_tokenizer, kind, max_steps=60), lambda m, f: reports.append(m))
    assert result["steps"] == 60 and [m["step"] for m in reports] == [10, 20, 30, 40, 50, 60]
    assert result["dev_loss"] == min(m["dev_loss"] for m in reports) < reports[0]["dev_loss"]
    assert result["stats"]["rows"] + result["stats"]["dev_rows"] == 200
    made = Checkpoint(kind="checkpoint", path=result["model"])
    tokenizer = models.load_tokenizer(result["model"])
    assert sum(p.numel() for p in models.load(made, tokenizer).parameters()) == result["stats"]["parameters"]


def test_resumed_is_as_straight_through(tmp_path, shared_tokenizer):
    straight = job(tmp_path / "a", shared_tokenizer)
    training.train(straight, lambda m, f: None)

    class Killed(Exception):
        pass

    kept = tmp_path / "kept"

    def report(metrics, folder):
        if metrics["step"] == 20:
            shutil.copytree(folder, kept)
            raise Killed

    broken = job(tmp_path / "b", shared_tokenizer)
    with pytest.raises(Killed):
        training.train(broken, report)
    training.train(broken, lambda m, f: None, kept)
    left, right = losses(tmp_path / "a" / "train"), losses(tmp_path / "b" / "train")
    assert left.keys() == right.keys() == {10, 20, 30}
    assert left == pytest.approx(right, rel=1e-6)


def test_the_best_model_is_the_one_that_is_kept(tmp_path, shared_tokenizer):
    result = training.train(
        job(tmp_path, shared_tokenizer, max_steps=80, learning_rate=0.3, patience=2), lambda m, f: None
    )
    lines = [json.loads(line) for line in (tmp_path / "train" / "log.jsonl").read_text().splitlines()]
    dev = {line["step"]: line["dev_loss"] for line in lines if "dev_loss" in line}
    assert result["best_step"] == min(dev, key=dev.get)
    if result["stopped"] == "patience":
        assert result["steps"] == result["best_step"] + 20


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_rows(tmp_path, shared_tokenizer, monkeypatch):
    monkeypatch.setitem(tokens.LOSSES, "cross_entropy", Kind(nan_loss, teacher=False, target=True))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1; \d+ rows in the batch: r\d+"):
        training.train(job(tmp_path, shared_tokenizer), lambda m, f: None)
    assert not (tmp_path / "train" / "model").exists()


def nan_loss(student_NV, at_N):
    return student_NV.sum(1) * math.nan


def test_a_users_own_loss_is_used(tmp_path, shared_tokenizer):
    with pytest.raises(TrainingError, match="the loss is nan"):
        training.train(job(tmp_path, shared_tokenizer, losses={"test_training:nan_loss": {}}), lambda m, f: None)


def test_rows_that_are_too_long_are_bad_rows(tmp_path, shared_tokenizer):
    rows = [
        *pairs(50),
        {"id": "long", "input": "a " * 60, "target": "A"},
        {"id": "wide", "input": "a", "target": "A " * 60},
    ]
    strict = job(tmp_path, shared_tokenizer, rows=rows, max_input_tokens=20, max_target_tokens=20, max_steps=2)
    with pytest.raises(DataError, match=r"train: row long: input of 61 tokens, at most 20 \(bad row 1, 0 tolerated\)"):
        training.train(strict, lambda m, f: None)
    tolerant = replace(strict, max_bad_rows=2)
    result = training.train(tolerant, lambda m, f: None)
    assert [b.split(":")[0] for b in result["bad_rows"]] == ["row long", "row wide"]
    assert result["stats"]["rows"] + result["stats"]["dev_rows"] == 50


def test_the_loss_does_not_depend_on_padding(shared_tokenizer, tiny_models):
    tokenizer = models.load_tokenizer(shared_tokenizer)
    for kind, causal in (("t5", False), ("llama", True)):
        model = models.load(Checkpoint(kind="checkpoint", path=str(tiny_models[kind])), tokenizer).double().eval()
        student = Student(model)
        short, long = ([4, 5, 3], [6, 1]), ([4] * 9, [7] * 6 + [1])

        def total(rows, student=student, causal=causal):
            tensors = batches.collate([r[0] for r in rows], [r[1] for r in rows], tokenizer.pad_token_id, causal)
            labels = tensors.pop("labels")
            return student(
                tensors, labels, [TokenLoss("cross_entropy")], denominators={"cross_entropy": 1}
            ).total.item()

        with torch.no_grad():
            assert total([short]) + total([long]) == pytest.approx(total([short, long]), rel=1e-9)
