"""Every divergence through a recipe, on two rows: the loop's numbers are those of the definition."""

import json
from dataclasses import replace
from pathlib import Path

import naive
import pytest
import torch
from conftest import LLAMA, pairs, write_rows
from test_trajectory import run

from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.models.load import load_model
from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
from raykd.recipe.losses import LOSSES, LogitsLoss
from raykd.recipe.models import Checkpoint, FromConfig
from raykd.recipe.training import Training
from raykd.training.job import MarkedSource, TrainingSpec
from raykd.training.loop import train

DIVERGENCES = [name for name, section in LOSSES.items() if issubclass(section, LogitsLoss) and name != "atkd"]
OPTIONS = {"jsd": {"beta": 0.3}, "skewed_forward_kl": {"alpha": 0.2}, "skewed_reverse_kl": {"alpha": 0.4}}
OPTIONS |= {"weighted_kl": {"forward": 0.7}, "adaptive_kl": {"head": 0.6}, "nucleus_kl": {"p": 0.8}}
OPTIONS |= {"dkd": {"alpha": 0.5, "beta": 2.0}}
PROMPT = "{input} =>"


def training_spec(folder: Path, tokenizer: Path, teacher: Path, rows: int, losses: dict, **changes) -> TrainingSpec:
    """One step on all rows, without dropout, in float64."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"learning_rate": 0.01, "max_steps": 1, "batch_tokens": 10_000, "evaluate_every": 1, "losses": losses}
    settings |= {"precision": "float64"} | changes
    if losses.keys() != {"cross_entropy"}:
        settings["teacher"] = {"kind": "in_process", "dtype": "float64"}
    reader = PromptEncoder(str(tokenizer), PROMPT)

    def source(name: str, lines: list[dict]) -> MarkedSource:
        return MarkedSource(FileSource(str(write_rows(folder / f"{name}.jsonl", lines))), name)

    return TrainingSpec(
        name="train",
        model=FromConfig(kind="config", model_type="llama", settings=LLAMA),
        tokenizer=str(tokenizer),
        training=Training(**settings),
        rows=source("rows", pairs(rows)),
        dev=source("dev", pairs(2, 50)),
        student=reader,
        teacher=replace(reader, tokenizer=str(teacher)),
        folder=str(folder),
        tokens=str(folder / "tokens"),
        seed=1,
        threads=1,
    )


def probabilities(model, tokenizer, rows: int, temperature: float = 1.0) -> tuple[list[list[float]], list[int]]:
    """Of every target token of every row, by the model alone: its softmax, and the token."""
    softmaxes, targets = [], []
    for row in pairs(rows):
        prompt = encode_inputs(tokenizer, [PROMPT.replace("{input}", row["input"])], False)[0]
        target = encode_targets(tokenizer, [row["target"]])[0]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
        softmaxes += [naive.softmax(values, temperature) for values in logits.tolist()]
        targets += target
    return softmaxes, targets


def both(shared_tokenizer, teacher: Path, rows: int, temperature: float = 1.0):
    """(the student's softmaxes, the teacher's, targets); the student has the random weights of the spec's seed."""
    tokenizer = load_tokenizer(str(shared_tokenizer))
    torch.manual_seed(1)
    student = load_model(FromConfig(kind="config", model_type="llama", settings=LLAMA), tokenizer).double().eval()
    model = load_model(Checkpoint(kind="checkpoint", path=str(teacher)), tokenizer).double().eval()
    own, targets = probabilities(student, tokenizer, rows, temperature)
    return own, probabilities(model, tokenizer, rows, temperature)[0], targets


def first_losses(folder: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return next(line for line in lines if "loss" in line)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_divergence_of_a_recipe_is_its_definition_on_two_rows(
    tmp_path, shared_tokenizer, tiny_models, monkeypatch, name, temperature
):
    monkeypatch.setattr("raykd.training.loop.LOG_EVERY", 1)
    options, section = OPTIONS.get(name, {}), LOSSES[name]
    losses = {name: {"temperature": temperature, **options}}
    train(training_spec(tmp_path, shared_tokenizer, tiny_models["llama"], 2, losses), lambda metrics, folder: None)
    student, teacher, targets = both(shared_tokenizer, tiny_models["llama"], 2, temperature)
    values = [naive.VALUES[name](s, t, y, **options) for s, t, y in zip(student, teacher, targets, strict=True)]
    factor = temperature**2 if section.model_fields["squared"].default else 1.0
    assert first_losses(tmp_path)["loss"] == pytest.approx(factor * sum(values) / len(values), rel=1e-9)


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("world", "budget"), [(1, None), (1, 24), (2, None), (2, 24)])
def test_the_groups_of_atkd_are_those_of_the_global_batch(tmp_path, shared_tokenizer, tiny_models, world, budget):
    losses = {"atkd": {"easy_weight": 0.3}}
    changes = {"micro_batch_tokens": budget}
    spec = training_spec(tmp_path, shared_tokenizer, tiny_models["llama"], 9, losses, **changes)
    run(spec, world)
    expected = naive.atkd(*both(shared_tokenizer, tiny_models["llama"], 9), easy_weight=0.3)
    assert first_losses(tmp_path)["loss"] == pytest.approx(expected, rel=1e-9)
