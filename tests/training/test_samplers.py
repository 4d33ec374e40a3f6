"""Samples that are written while a student trains: they depend on the weights, the row and the step alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LLAMA, T5, pairs, write_rows
from test_trajectory import losses, run, same

from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.errors import RecipeError, TrainingError
from raykd.models.adapters import with_lora
from raykd.models.load import load_model
from raykd.models.tokenizers import encode_inputs, load_tokenizer
from raykd.recipe.models import Checkpoint, FromConfig, Lora
from raykd.recipe.training import Sequences, StudentSampling, Training
from raykd.training.job import MarkedSource, TrainingSpec
from raykd.training.loop import train
from raykd.training.samplers import Requests, StudentSampler
from raykd.training.sequences import row_seed, source_of_step

HALF = {"shares": {"student": 0.5, "pseudo_targets": 0.5}, "by": "step"}
WHICH = {"temperature": [1.0], "warm, nucleus": [1.5, 0.95], "top-k": [1.3, 1.0, 4], "greedy": [0.0]}


def training_spec(folder: Path, tokenizer: Path, kind: str, teacher: Path, **changes) -> TrainingSpec:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"learning_rate": 0.01, "max_steps": 12, "batch_tokens": 160, "evaluate_every": 4} | changes
    settings |= {"precision": "float64", "holdout": 0.1, "teacher": {"kind": "in_process", "dtype": "float64"}}
    settings |= {"losses": {"forward_kl": {"temperature": 2.0}, "cross_entropy": {"weight": 0.1}}}
    settings["sequences"] = {"student": {"max_tokens": 6}, **settings.get("sequences", HALF)}
    prompt = "{input}" if kind == "t5" else "{input} =>"
    return TrainingSpec(
        name="train",
        model=FromConfig(kind="config", model_type=kind, settings=T5 if kind == "t5" else LLAMA),
        tokenizer=str(tokenizer),
        training=Training(**settings),
        rows=MarkedSource(FileSource(str(write_rows(folder / "rows.jsonl", pairs(60)))), "rows"),
        student=PromptEncoder(str(tokenizer), prompt, encoder=kind == "t5"),
        teacher=PromptEncoder(str(teacher), prompt, encoder=kind == "t5"),
        folder=str(folder),
        tokens=str(folder / "tokens"),
        seed=1,
        threads=1,
    )


@torch.no_grad()
def plain_sample(model, prompt: list[int], seed: int, settings: StudentSampling, end: int) -> list[int]:
    """Token by token, the whole sequence read anew each time, with torch.multinomial."""
    generator, seen = torch.Generator().manual_seed(seed), []
    while len(seen) < settings.max_tokens and end not in seen:
        if model.config.is_encoder_decoder:
            decoder = torch.tensor([[model.config.decoder_start_token_id, *seen]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0, -1]
        else:
            logits = model(input_ids=torch.tensor([[*prompt, *seen]])).logits[0, -1]
        if settings.temperature == 0:
            seen.append(int(logits.argmax()))
            continue
        logits = logits / settings.temperature
        if settings.top_k:
            logits[logits < logits.topk(settings.top_k).values[-1]] = -torch.inf
        if settings.top_p < 1:
            ordered, order = logits.softmax(0).sort(descending=True)
            logits[order[ordered.cumsum(0) - ordered >= settings.top_p]] = -torch.inf
        seen.append(int(torch.multinomial(logits.softmax(0), 1, generator=generator)))
    return seen


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("name", WHICH)
def test_samples_are_those_of_a_plain_loop_however_they_are_batched(shared_tokenizer, tiny_models, kind, name):
    tokenizer = load_tokenizer(str(shared_tokenizer))
    model = load_model(Checkpoint(kind="checkpoint", path=str(tiny_models[kind])), tokenizer).double().train()
    model.generation_config.update(repetition_penalty=5.0, min_new_tokens=6)  # a checkpoint's, not the sampler's
    fields = dict(zip(("temperature", "top_p", "top_k"), WHICH[name], strict=False))
    settings = StudentSampling(**fields, max_tokens=7)
    prompts = encode_inputs(tokenizer, [row["input"] for row in pairs(12)], kind == "t5")
    seeds = [row_seed(1, 3, f"r{number}#0") for number in range(12)]
    requests = Requests([np.array(prompt) for prompt in prompts], seeds)
    by_budget = [StudentSampler(model, tokenizer, settings, budget).complete(requests) for budget in (1, 10_000)]
    assert model.training and by_budget[0] == by_budget[1]
    model.eval()
    expected = [
        plain_sample(model, prompt, seed, settings, tokenizer.eos_token_id)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert by_budget[0] == expected and (name == "greedy" or len({tuple(ids) for ids in expected}) > 6)


def test_a_model_with_lora_writes_with_its_adapters_and_keeps_its_generation_config(shared_tokenizer, tiny_models):
    tokenizer = load_tokenizer(str(shared_tokenizer))
    model = with_lora(
        load_model(Checkpoint(kind="checkpoint", path=str(tiny_models["llama"])), tokenizer), Lora(rank=4)
    )
    before = model.get_base_model().generation_config.to_dict()
    requests = Requests([np.array([4, 5, 3])], [7])
    settings = StudentSampling(temperature=0, max_tokens=5)
    plain = StudentSampler(model, tokenizer, settings, 100).complete(requests)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    assert StudentSampler(model, tokenizer, settings, 100).complete(requests) != plain
    assert model.get_base_model().generation_config.to_dict() == before == model.generation_config.to_dict()


def test_a_sample_has_its_rows_and_its_steps_own_noise():
    seeds = {row_seed(seed, step, name) for seed in (1, 2) for step in (0, 1) for name in ("a#0", "a#1", "b#0")}
    assert len(seeds) == 12 and row_seed(1, 2, "a") == row_seed(1, 2, "a")


@pytest.mark.parametrize(
    ("shares", "turns"),
    [
        ([0.5, 0.5], [0, 1, 0, 1, 0, 1]),
        ([0.25, 0.75], [1, 0, 1, 1, 1, 0]),
        ([0.5, 0.25, 0.25], [0, 1, 2, 0, 0, 1]),
        ([1.0], [0, 0, 0]),
    ],
)
def test_sources_take_turns(shares, turns):
    assert [source_of_step(np.array(shares), step) for step in range(len(turns))] == turns
    counts = np.bincount([source_of_step(np.array(shares), step) for step in range(400)])
    assert (counts / 400).tolist() == shares


def kinds_of_steps(folder: Path) -> list[float]:
    return [json.loads(line)["tokens"] for line in (folder / "log.jsonl").read_text().splitlines() if "tokens" in line]


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.timeout(300)
def test_half_of_the_steps_are_the_students_own_killed_and_on_two_workers(
    tmp_path, shared_tokenizer, tiny_models, kind
):
    def make(name: str, **changes) -> TrainingSpec:
        return training_spec(tmp_path / name, shared_tokenizer, kind, tiny_models[kind], **changes)

    run(make("straight"), kept=tmp_path / "kept")
    run(make("killed"), killed_at=7)
    run(make("killed"), resume=tmp_path / "kept" / "4")
    same(tmp_path / "straight", tmp_path / "killed")
    run(make("workers", micro_batch_tokens=40), 2)
    same(tmp_path / "straight", tmp_path / "workers")
    run(make("stored", sequences={"union": ["pseudo_targets"], "student": None}))
    assert losses(tmp_path / "straight")[1] == pytest.approx(losses(tmp_path / "stored")[1], rel=1e-9)
    assert losses(tmp_path / "straight")[2] != pytest.approx(losses(tmp_path / "stored")[2], rel=1e-3)
    assert kinds_of_steps(tmp_path / "straight")[:1] == kinds_of_steps(tmp_path / "stored")[:1]


@pytest.mark.parametrize("by", ["batch", "row", "ratio"])
def test_other_ways_of_sharing_train_and_resume_alike(tmp_path, shared_tokenizer, tiny_models, by):
    shares = {"shares": {"student": 0.4, "pseudo_targets": 0.6}, "by": by}
    logs = []
    for budget in (None, 40):
        spec = training_spec(
            tmp_path / str(budget),
            shared_tokenizer,
            "t5",
            tiny_models["t5"],
            sequences=shares,
            micro_batch_tokens=budget,
        )
        result = train(spec, lambda metrics, folder: None)
        logs.append((result["dev_loss"], result["stats"]["tokens"]))
    assert logs[0] == pytest.approx(logs[1], rel=1e-9)


class Echo:
    """A sampler that repeats a prompt's first token, ended."""

    def __init__(self, model, tokenizer, settings):
        self.end, self.settings = tokenizer.eos_token_id, settings

    def begin(self, requests):
        return requests

    def complete(self, pending):
        assert self.settings.max_tokens == 6 and len(pending.seeds) == len(pending.prompts)
        return [[int(prompt[0]), self.end] for prompt in pending.prompts]


class Silent(Echo):
    def complete(self, pending):
        return [[] for _ in pending.prompts]


def test_a_users_own_sampler(tmp_path, shared_tokenizer, tiny_models):
    def shares(name: str) -> dict:
        return {"shares": {f"test_samplers:{name}": 0.5, "pseudo_targets": 0.5}, "by": "step"}

    def make(folder: str, name: str, **changes) -> TrainingSpec:
        changes |= {"sequences": shares(name)}
        return training_spec(tmp_path / folder, shared_tokenizer, "llama", tiny_models["llama"], **changes)

    result = train(make("echo", "Echo"), lambda metrics, folder: None)
    assert result["steps"] == 12
    with pytest.raises(TrainingError, match=r"step 2: a sample of the sampler has no tokens: expected one or more"):
        train(make("silent", "Silent"), lambda metrics, folder: None)
    with pytest.raises(RecipeError, match=r"sequences: test_samplers:Nothing: .*has no attribute 'Nothing'"):
        train(make("nothing", "Nothing"), lambda metrics, folder: None)


def test_a_teacher_of_another_architecture_reads_along(tmp_path, shared_tokenizer, tiny_models):
    """A Llama that teaches a T5 in process reads the same target tokens after its own prompt."""
    spec = training_spec(tmp_path, shared_tokenizer, "t5", tiny_models["llama"], max_steps=4)
    spec = replace(spec, teacher=PromptEncoder(str(tiny_models["llama"]), "{input} =>", encoder=False))
    assert train(spec, lambda metrics, folder: None)["steps"] == 4


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        ({}, "exactly one of union and shares"),
        ({"union": ["gold", "gold"]}, "gold is given twice"),
        ({"union": ["student"]}, "student writes anew in each step: it goes with shares"),
        ({"union": ["gold"], "by": "row"}, "by does nothing without shares"),
        ({"union": ["gold"], "student": {}}, "student does nothing"),
        ({"shares": {"gold": 0.5, "student": 0.4}, "by": "row"}, "numbers above 0 that sum to 1"),
        ({"shares": {"gold": 0.5, "student": 0.5}}, "shares need by"),
        ({"shares": {"gold": 0.5, "student": 0.5}, "by": "token"}, "token is not built yet"),
        ({"shares": {"student": 1.0}, "by": "step"}, "student alone is not built yet"),
        ({"shares": {"teacher": 0.5, "gold": 0.5}, "by": "step"}, "the source teacher is not built yet"),
        ({"union": ["gold"], "student": {"temperature": 0, "top_k": 3}}, "top_p and top_k do nothing at temperature 0"),
    ],
)
def test_what_sequences_cannot_be_is_refused(sequences, words):
    with pytest.raises(ValueError, match=words):
        Sequences.model_validate(sequences)
