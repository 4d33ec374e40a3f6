"""The loop, without Ray."""

import json
import math
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LLAMA, T5, pairs, write_rows
from named_losses import token_loss
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.errors import DataError, RecipeError, TrainingError
from raykd.losses import divergences
from raykd.losses.tokens import TokenBatch
from raykd.models.adapters import merged_weights, with_lora
from raykd.models.load import load_model
from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
from raykd.recipe.models import Checkpoint, FromConfig, Lora
from raykd.recipe.training import Training
from raykd.training import batches, setup
from raykd.training.dataset import EncodedStream
from raykd.training.encode import Limits, encode_source
from raykd.training.job import MarkedSource, TrainingResult, TrainingSpec, TrainingStats
from raykd.training.loop import train
from raykd.training.planner import BatchPlan, Lengths
from raykd.training.student import Student


def training_spec(tmp_path, tokenizer, kind="t5", rows=None, **changes):
    settings = {"learning_rate": 0.01, "max_steps": 30, "batch_tokens": 256, "evaluate_every": 10, **changes}
    folder = tmp_path / "train"
    folder.mkdir(parents=True, exist_ok=True)
    path = write_rows(tmp_path / "rows.jsonl", rows or pairs(200))
    return TrainingSpec(
        name="train",
        model=FromConfig(kind="config", model_type=kind, settings=T5 if kind == "t5" else LLAMA),
        tokenizer=str(tokenizer),
        training=Training(**settings),
        rows=MarkedSource(FileSource(str(path)), "rows"),
        student=PromptEncoder(str(tokenizer), "{input}", encoder=kind == "t5"),
        folder=str(folder),
        tokens=str(tmp_path / "tokens"),
        seed=1,
        threads=1,
    )


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_training_lowers_the_dev_loss_and_leaves_a_model(tmp_path, shared_tokenizer, kind):
    reports = []
    result = train(training_spec(tmp_path, shared_tokenizer, kind, max_steps=60), lambda m, f: reports.append(m))
    assert result["steps"] == 60 and [m["step"] for m in reports] == [10, 20, 30, 40, 50, 60]
    assert result["dev_loss"] == min(m["dev_loss"] for m in reports) < reports[0]["dev_loss"]
    assert result.keys() == TrainingResult.__annotations__.keys()
    assert result["stats"].keys() == TrainingStats.__annotations__.keys()
    assert result["stats"]["rows"] + result["stats"]["dev_rows"] == 200
    made = Checkpoint(kind="checkpoint", path=result["model"])
    tokenizer = load_tokenizer(result["model"])
    assert sum(p.numel() for p in load_model(made, tokenizer).parameters()) == result["stats"]["parameters"]


def test_resumed_is_as_straight_through(tmp_path, shared_tokenizer):
    straight = training_spec(tmp_path / "a", shared_tokenizer)
    train(straight, lambda m, f: None)

    class Killed(Exception):
        pass

    kept = tmp_path / "kept"

    def report(metrics, folder):
        if metrics["step"] == 20:
            shutil.copytree(folder, kept)
            raise Killed

    broken = training_spec(tmp_path / "b", shared_tokenizer)
    with pytest.raises(Killed):
        train(broken, report)
    train(broken, lambda m, f: None, kept)
    left, right = losses(tmp_path / "a" / "train"), losses(tmp_path / "b" / "train")
    assert left.keys() == right.keys() == {10, 20, 30}
    assert left == pytest.approx(right, rel=1e-6)


def test_the_best_model_is_the_one_that_is_kept(tmp_path, shared_tokenizer):
    result = train(
        training_spec(tmp_path, shared_tokenizer, max_steps=80, learning_rate=0.3, patience=2), lambda m, f: None
    )
    lines = [json.loads(line) for line in (tmp_path / "train" / "log.jsonl").read_text().splitlines()]
    dev = {line["step"]: line["dev_loss"] for line in lines if "dev_loss" in line}
    assert result["best_step"] == min(dev, key=dev.get)
    if result["stopped"] == "patience":
        assert result["steps"] == result["best_step"] + 20


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_rows(tmp_path, shared_tokenizer, monkeypatch):
    monkeypatch.setattr(divergences, "cross_entropy", nan_loss)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1; \d+ rows in the batch: r\d+"):
        train(training_spec(tmp_path, shared_tokenizer), lambda m, f: None)
    assert not (tmp_path / "train" / "model").exists()


@pytest.mark.parametrize("reduction", ["tokens", "sequences"])
def test_a_row_that_counts_twice_is_as_two_rows(tmp_path, shared_tokenizer, reduction):
    """All rows are one batch; micro-batches cut it elsewhere."""
    first, *others = pairs(12)
    found = []
    for name, rows in (("weight", [{**first, "weight": 2.0}, *others]), ("twice", [first, first, *others])):
        settings = {"precision": "float64", "reduction": reduction, "batch_tokens": 4096, "max_steps": 10}
        made = training_spec(tmp_path / name, shared_tokenizer, rows=rows, **settings, micro_batch_tokens=64)
        dev = MarkedSource(FileSource(str(write_rows(tmp_path / "dev.jsonl", pairs(5, 50)))), "dev")
        train(replace(made, dev=dev), lambda m, f: None)
        found.append(losses(tmp_path / name / "train")[10])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def nan_loss(student_NE, at_N):
    return student_NE.sum(1) * math.nan


def test_a_users_own_loss_is_used(tmp_path, shared_tokenizer):
    with pytest.raises(TrainingError, match="the loss is nan"):
        train(
            training_spec(tmp_path, shared_tokenizer, losses={"test_loop:nan_loss": {"teacher_outputs": False}}),
            lambda m, f: None,
        )


def test_rows_that_are_too_long_are_bad_rows(tmp_path, shared_tokenizer):
    rows = [
        *pairs(50),
        {"id": "long", "input": "a " * 60, "target": "A"},
        {"id": "wide", "input": "a", "target": "A " * 60},
    ]
    strict = training_spec(
        tmp_path, shared_tokenizer, rows=rows, max_input_tokens=20, max_target_tokens=20, max_steps=2
    )
    with pytest.raises(DataError, match=r"train: row long: input of 61 tokens, at most 20 \(bad row 1, 0 tolerated\)"):
        train(strict, lambda m, f: None)
    tolerant = replace(strict, max_bad_rows=2)
    result = train(tolerant, lambda m, f: None)
    assert [bad["row"] for bad in result["bad_rows"]] == ["long", "wide"]
    assert result["stats"]["rows"] + result["stats"]["dev_rows"] == 50


def test_the_loss_does_not_depend_on_padding(shared_tokenizer, tiny_models):
    tokenizer = load_tokenizer(shared_tokenizer)
    for kind, causal in (("t5", False), ("llama", True)):
        model = load_model(Checkpoint(kind="checkpoint", path=str(tiny_models[kind])), tokenizer).double().eval()
        student = Student(model)
        short, long = ([4, 5, 3], [6, 1]), ([4] * 9, [7] * 6 + [1])

        def total(rows, student=student, causal=causal):
            tensors = batches.collate([r[0] for r in rows], [r[1] for r in rows], tokenizer.pad_token_id, causal)
            labels = tensors.pop("labels")
            batch = TokenBatch(labels, denominators={"cross_entropy": 1})
            return student(tensors, [token_loss("cross_entropy")], batch).total.item()

        with torch.no_grad():
            assert total([short]) + total([long]) == pytest.approx(total([short, long]), rel=1e-9)


def nothing(metrics, folder):
    """Keep no checkpoint."""


def served(folder, kind):
    """The loss of a saved model on some rows, by transformers alone."""
    family = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model, tokenizer = family.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = pairs(20, 300)
    sources = encode_inputs(tokenizer, [r["input"] for r in rows], kind == "t5")
    targets = encode_targets(tokenizer, [r["target"] for r in rows])
    tensors = batches.collate(sources, targets, tokenizer.pad_token_id, kind != "t5")
    with torch.no_grad():
        batch = TokenBatch(tensors.pop("labels"))
        result = Student(model)(tensors, [token_loss("cross_entropy")], batch)
    return result.total.item()


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}, "learning_rate": 0.03},
        {"gradient_checkpointing": True, "precision": "bfloat16"},
        {"lora": {"rank": 4}, "gradient_checkpointing": True, "micro_batch_tokens": 64, "learning_rate": 0.03},
        {"schedule": "cosine_with_min_lr", "schedule_options": {"min_lr_rate": 0.1}, "weight_decay": 0.1},
    ],
)
def test_ways_of_training_lower_the_loss_and_leave_a_plain_model(tmp_path, shared_tokenizer, kind, changes):
    spec = training_spec(tmp_path, shared_tokenizer, kind, max_steps=60, evaluate_every=60, **changes)
    train(replace(spec, training=spec.training.model_copy(update={"max_steps": 1})), nothing)
    before = served(tmp_path / "train/model", kind)
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train").mkdir()
    result = train(spec, nothing)
    assert served(result["model"], kind) < before - 0.1
    stats = result["stats"]
    assert (stats["trained_parameters"] < stats["parameters"] / 2) == bool(spec.training.lora)


def test_merged_is_what_peft_merges(shared_tokenizer):
    tokenizer = load_tokenizer(shared_tokenizer)
    for kind, settings in (("t5", T5), ("llama", LLAMA)):
        model = load_model(FromConfig(kind="config", model_type=kind, settings=settings), tokenizer)
        wrapped = with_lora(model, Lora(rank=3, alpha=5))
        for parameter in wrapped.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        mine = merged_weights(wrapped.state_dict(), wrapped)
        for name, weight in wrapped.merge_and_unload().state_dict().items():
            torch.testing.assert_close(mine[name], weight)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_compiled_blocks_train_as_plain_ones(tmp_path, shared_tokenizer):
    found = []
    for compiled in (False, True):
        spec = training_spec(tmp_path / str(compiled), shared_tokenizer, "llama", max_steps=10, compile=compiled)
        found.append(train(spec, nothing)["dev_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_model_is_chosen_by_its_answers_at_fractions_of_an_epoch(tmp_path, shared_tokenizer):
    reports = []
    changes = {"max_steps": None, "epochs": 3, "evaluate_every": 0.5, "evaluate_unit": "epochs", "learning_rate": 0.02}
    changes |= {
        "dev_metrics": [{"kind": "phoneme_error_rate"}, {"kind": "exact_match"}],
        "choose_by": "phoneme_error_rate",
    }
    for kind in ("t5", "llama"):
        reports.clear()
        spec = training_spec(
            tmp_path / kind, shared_tokenizer, kind, dev_prediction_rows=8, dev_prediction_tokens=8, **changes
        )
        result = train(spec, lambda metrics, folder: reports.append(metrics))
        assert len(reports) == 6 and reports[-1]["step"] == result["steps"]
        rates = {metrics["step"]: metrics["phoneme_error_rate"] for metrics in reports}
        assert len(set(rates.values())) > 1 and result["best_step"] == min(rates, key=lambda step: (rates[step], step))
        assert result["score"] == -min(rates.values())


def test_an_unknown_schedule_is_one_line(tmp_path, shared_tokenizer):
    for changes, words in (
        ({"schedule": "cosin"}, "no such schedule: 'cosin'; did you mean cosine"),
        ({"schedule": "cosine", "schedule_options": {"cycles": 1}}, "schedule_options"),
    ):
        with pytest.raises(ValueError, match=words):
            training_spec(tmp_path, shared_tokenizer, **changes)
    unchecked = training_spec(tmp_path, shared_tokenizer).training.model_copy(update={"schedule": "cosin"})
    with pytest.raises(RecipeError, match="training.schedule 'cosin'"):
        setup.build_schedule(unchecked, 10)


def test_a_damaged_checkpoint_is_one_line(tmp_path, shared_tokenizer):
    kept = tmp_path / "kept"
    spec = training_spec(tmp_path, shared_tokenizer)
    train(spec, lambda metrics, folder: shutil.copytree(folder, kept / str(metrics["step"])))
    largest = max((kept / "20").iterdir(), key=lambda file: file.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-7])
    with pytest.raises(TrainingError, match=f"damaged checkpoint: {largest.name} has {len(whole) - 7} bytes, not"):
        train(spec, nothing, kept / "20")
    cursor = kept / "10" / "cursor-0.json"
    cursor.write_text(json.dumps({**json.loads(cursor.read_text()), "way": 0.5}))
    with pytest.raises(TrainingError, match="the checkpoint is of another version of raykd: .*'way'"):
        train(spec, nothing, kept / "10")
    cursor.unlink()
    with pytest.raises(TrainingError, match="damaged checkpoint") as error:
        train(spec, nothing, kept / "10")
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path, shared_tokenizer):
    kept, spec = tmp_path / "kept", training_spec(tmp_path, shared_tokenizer)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def report(metrics, folder):
        shutil.copytree(folder, kept / str(metrics["step"]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # no file may grow larger

    try:
        with pytest.raises(TrainingError, match="cannot be written") as error:
            train(spec, report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value) and [folder.name for folder in kept.iterdir()] == ["10"]
    assert train(spec, nothing, kept / "10")["steps"] == 30


def test_padding_is_counted(tmp_path, shared_tokenizer):
    rows = [{"id": str(i), "input": "a " * (1 + i % 30), "target": "A " * (1 + i % 7)} for i in range(400)]
    shares = []
    for budget in (8000, 500):
        spec = training_spec(tmp_path / str(budget), shared_tokenizer, rows=rows, max_steps=4, batch_tokens=budget)
        shares.append(train(spec, nothing)["stats"]["padding"])
    assert 0 < shares[1] < shares[0] < 0.6


def test_encoded_rows_are_kept(tmp_path, shared_tokenizer, monkeypatch):
    spec = training_spec(tmp_path, shared_tokenizer)
    first = train(spec, nothing)
    monkeypatch.setattr(setup, "encode_source", None)
    again = train(replace(spec, name="again"), nothing)
    assert again["dev_loss"] == first["dev_loss"] and len(list((tmp_path / "tokens").glob("*.arrow"))) == 1


def test_inputs_are_held_out_whole_and_their_samples_take_turns(tmp_path, shared_tokenizer):
    texts = [(row["input"], sample) for row in pairs(40) for sample in range(4)]
    rows = [
        {"id": f"{text}#{sample}", "input": text, "target": text.upper()[: sample + 1], "pseudo_target": True}
        for text, sample in texts
    ]
    spec = training_spec(tmp_path, shared_tokenizer, rows=rows, holdout=0.2, max_steps=None, epochs=2)
    stats = train(spec, nothing)["stats"]
    assert (stats["rows"], stats["dev_rows"]) == (32, 8)  # of 40 inputs
    alike = [{**row, "id": f"other {row['id']}"} for row in pairs(40)]
    rows = [row for pair in zip(pairs(40), alike, strict=True) for row in pair] + pairs(40)
    spec = training_spec(tmp_path / "gold", shared_tokenizer, rows=rows, holdout=0.2)
    stream = EncodedStream(Path(spec.tokens) / "rows", True, lambda path: written(spec, path), lambda value: value)
    plan = BatchPlan(stream, spec.training, 1, Lengths(apart=True))
    sources = [plan.dev.dataset.source(row).tobytes() for row in range(120)]
    held_out = {sources[row] for row in plan.held_out}
    assert len(plan.held_out) == 24 and len(held_out) == 8  # three rows each
    assert plan.rows == 96 and not held_out & {sources[row] for row in range(120) if row not in plan.held_out}


def written(spec, path):
    limits = Limits(
        name="train", input_tokens=99, target_tokens=99, long_targets="refuse", empty_targets="refuse", bad_rows=0
    )
    encode_source(path, spec.rows.source, spec.student, None, limits)


def test_rows_that_count_for_nothing_are_not_judged_by(tmp_path, shared_tokenizer):
    rows = [{**row, "weight": float(number < 5)} for number, row in enumerate(pairs(100))]
    spec = training_spec(tmp_path, shared_tokenizer, rows=rows, holdout=0.05, max_steps=2, evaluate_every=1)
    result = train(spec, nothing)
    assert result["dev_loss"] > 0.1 and result["stats"]["dev_rows"] == 5


def test_a_metric_that_finds_nothing_to_score_is_left_out(tmp_path, shared_tokenizer):
    reports = []
    changes = {
        "dev_metrics": [{"kind": "chunk_f1"}, {"kind": "exact_match"}],
        "choose_by": "chunk_f1",
        "dev_prediction_tokens": 4,
    }
    spec = training_spec(tmp_path, shared_tokenizer, max_steps=20, **changes)
    result = train(spec, lambda metrics, folder: reports.append(metrics))
    assert all("exact_match" in one and "chunk_f1" not in one for one in reports)
    assert result["score"] == -result["dev_loss"] == -min(one["dev_loss"] for one in reports)
