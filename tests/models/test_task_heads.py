"""Encoders with a head: taught by the loop, served by an engine, on each task."""

from dataclasses import replace

import pytest
from conftest import LETTERS, word, write_rows

from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.engines.engine import EngineConfig, Rejected, open_engine
from raykd.errors import DataError, EngineError
from raykd.models import task_heads
from raykd.models.files import saved_configuration
from raykd.recipe.generation import Sampling, TextPayload, TransformersEngine
from raykd.recipe.models import FromConfig
from raykd.recipe.training import Training
from raykd.store import payloads
from raykd.store.schema import shard_table
from raykd.training.job import MarkedSource, TrainingSpec
from raykd.training.loop import train

BERT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS = ("early", "late")


def rows(task, count=600):
    """Which half of the alphabet a word begins in; its share of letters that are an a; what follows its first c."""
    found = []
    for number in range(count):
        text = " ".join([word(number), "c", LETTERS[number % 7], word(number * 3)])
        letters = text.split()
        target = {
            "classification": LABELS[int(letters[0] in LETTERS[4:])],
            "regression": str(letters.count("a") / len(letters)),
            "extractive_qa": f"c {letters[letters.index('c') + 1]}",
        }[task]
        found.append({"id": str(number), "input": text, "target": target})
    return found


def job(folder, tokenizer, task, lines=None, **changes):
    losses = {"mse": {}} if task == "regression" else {"cross_entropy": {}}
    settings = {"learning_rate": 0.003, "max_steps": 400, "batch_tokens": 600, "evaluate_every": 200, "losses": losses}
    labels = LABELS if task == "classification" else None
    (folder / "train").mkdir(parents=True)
    return TrainingSpec(
        name="train",
        model=FromConfig(kind="config", model_type="bert", settings=BERT),
        tokenizer=str(tokenizer),
        training=Training(**{**settings, "dev_metrics": [{"kind": "exact_match"}], **changes}),
        rows=MarkedSource(FileSource(str(write_rows(folder / "rows.jsonl", lines or rows(task)))), "rows"),
        student=PromptEncoder(str(tokenizer), "{input}", task=task, labels=labels),
        folder=str(folder / "train"),
        tokens=str(folder / "tokens"),
        seed=1,
        threads=1,
    )


@pytest.mark.parametrize("task", ["classification", "regression", "extractive_qa"])
def test_a_head_is_learnt_served_and_distilled(tmp_path, shared_tokenizer, task):
    reports = []
    task_job = job(tmp_path / "teacher", shared_tokenizer, task)
    result = train(task_job, lambda metrics, folder: reports.append(metrics))
    assert task_heads.task_of(saved_configuration(result["model"])) == task
    if task != "regression":
        assert reports[-1]["exact_match"] > 90
    engine = open_engine(
        EngineConfig(
            engine=TransformersEngine(kind="transformers"),
            model=result["model"],
            sampling=Sampling(),
            seed=0,
            threads=1,
            special_tokens=True,
        )
    )
    fresh = rows(task, 700)[600:]
    said = [answer[0] for answer in engine.generate([row["input"] for row in fresh])]
    answers = [answer.text for answer in said]
    assert {len(answer.logprobs) for answer in said} == {
        {"classification": 1, "regression": 0, "extractive_qa": 2}[task]
    }
    kept = shard_table([bytes([at] * 16) for at in range(100)], range(1), [[a] for a in said], TextPayload(kind="text"))
    assert payloads.faults(kept) == []
    assert all((answer.logprobs <= 0).all() for answer in said)
    if task == "regression":
        errors = [abs(float(a) - float(r["target"])) for a, r in zip(answers, fresh, strict=True)]
        assert sum(errors) / len(errors) < 0.05
    else:
        right = [a == r["target"] for a, r in zip(answers, fresh, strict=True)]
        assert sum(right) > 85
        surest = sorted(range(len(said)), key=lambda at: -said[at].logprobs.mean())[:50]
        assert sum(right[at] for at in surest) >= sum(right) / 2
    assert isinstance(engine.generate(["a " * 40])[0], Rejected)
    with pytest.raises(EngineError, match="answers once"):
        engine.generate(["a"], range(2))
    engine.close()
    loss = {"teacher_mse": {}} if task == "regression" else {"forward_kl": {}, "reverse_kl": {"weight": 0.1}}
    taught = job(
        tmp_path / "student", shared_tokenizer, task, losses=loss, dev_metrics=[], max_steps=200, evaluate_every=20
    )
    where = {"kind": "in_process", "dtype": "float32"}
    changed = Training(**{**taught.training.model_dump(), "teacher": where})
    taught = replace(taught, training=changed, teacher=replace(taught.student, tokenizer=result["model"]))
    reports.clear()
    train(taught, lambda metrics, folder: reports.append(metrics))
    assert reports[-1]["dev_loss"] < 0.3 * reports[0]["dev_loss"]


@pytest.mark.parametrize(
    ("task", "target", "words"),
    [
        ("classification", "later", "'later' is none of the labels early, late"),
        ("regression", "much", "'much' is no number"),
        ("extractive_qa", "z", "'z' is no part of the input"),
    ],
)
def test_a_target_that_no_head_can_say_is_a_bad_row(tmp_path, shared_tokenizer, task, target, words):
    lines = [*rows(task, 20), {"id": "odd", "input": "a b", "target": target}]
    with pytest.raises(DataError, match=f"train: row odd: {words}"):
        train(job(tmp_path, shared_tokenizer, task, lines), lambda metrics, folder: None)
