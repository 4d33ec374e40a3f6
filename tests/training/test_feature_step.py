"""Losses on hidden states in a training: exact over workers and micro-batches, and no more kept than is compared."""

import gc
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import pairs, write_rows
from safetensors.torch import load_file
from test_trajectory import run
from transformers import AutoConfig, AutoModelForSequenceClassification

from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.errors import ModelError
from raykd.losses import features
from raykd.losses.features import CrossCorrelation
from raykd.losses.loss import FeatureBatch, Hidden, make_loss
from raykd.models.layers import captured
from raykd.models.load import load_model
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.models import Checkpoint, FromConfig
from raykd.recipe.training import Training
from raykd.training.features import FeatureStep, draw_of
from raykd.training.job import MarkedSource, TrainingSpec
from raykd.training.loop import train

BERT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS = ["short", "long"]
TOKENS, WIDTH, TEACHER_WIDTH = 42, 5, 4


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, shared_tokenizer) -> Path:
    """A BERT that is wider and deeper than the students."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(3)
    tokenizer = load_tokenizer(str(shared_tokenizer), generates=False)
    settings = {**BERT, "hidden_size": 24, "num_hidden_layers": 4}
    model = load_model(
        FromConfig(kind="config", model_type="bert", settings=settings), tokenizer, "classification", LABELS
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def training_spec(folder: Path, tokenizer: Path, teacher: Path, **changes) -> TrainingSpec:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"learning_rate": 0.01, "max_steps": 12, "batch_tokens": 160, "evaluate_every": 4} | changes
    settings |= {"precision": "float64", "holdout": 0.1, "teacher": {"kind": "in_process", "dtype": "float64"}}
    rows = [{**row, "target": LABELS[len(row["input"]) > 6]} for row in pairs(60)]
    reader = PromptEncoder(str(tokenizer), "{input}", encoder=True, task="classification", labels=tuple(LABELS))
    return TrainingSpec(
        name="train",
        model=FromConfig(kind="config", model_type="bert", settings=BERT),
        tokenizer=str(tokenizer),
        training=Training(**settings),
        rows=MarkedSource(FileSource(str(write_rows(folder / "rows.jsonl", rows))), "rows"),
        student=reader,
        teacher=replace(reader, tokenizer=str(teacher)),
        folder=str(folder),
        tokens=str(folder / "tokens"),
        seed=1,
        threads=1,
    )


LOSSES = {
    "cross_entropy": {"weight": 0.5},
    "correlation": {"kind": "cross_correlation", "teacher_layer": 3, "weight": 0.3},
    "masked": {"kind": "cross_correlation", "keep": 0.5, "weight": 0.1, "student_layer": 1},
    "hidden_mse": {"weight": 0.2},
    "hidden_cosine": {"student_layer": 0, "teacher_layer": 0},
}


def logged(folder: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    names = ("loss", "dev_loss", "gradient_norm", *LOSSES)
    for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()):
        found.setdefault(line["step"], {}).update({name: line[name] for name in names if name in line})
    return found


def same(one: Path, other: Path) -> None:
    left, right = logged(one), logged(other)
    assert left.keys() == right.keys() == set(range(1, 13))
    for step, values in left.items():
        assert right[step] == pytest.approx(values, rel=1e-9), step
    weights, others = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-8, atol=1e-11)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, shared_tokenizer, teacher):
    folder = tmp_path_factory.mktemp("straight")

    def make(where: Path, **changes) -> TrainingSpec:
        return training_spec(where, shared_tokenizer, teacher, losses=LOSSES, **changes)

    run(make(folder / "train"), kept=folder / "kept")
    return make, folder / "train", folder / "kept"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("world", "budget", "parallel"),
    [
        (2, 30, "data"),
        pytest.param(1, 40, "data", marks=pytest.mark.slow),
        pytest.param(2, None, "data", marks=pytest.mark.slow),
        pytest.param(2, 30, "fsdp", marks=pytest.mark.slow),
    ],
)
def test_however_a_batch_is_cut(straight, tmp_path, world, budget, parallel):
    make, folder, _ = straight
    run(replace(make(tmp_path / "train", micro_batch_tokens=budget), parallel=parallel), world)
    same(folder, tmp_path / "train")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_and_resumed_with_its_projections(straight, tmp_path):
    make, folder, _ = straight
    spec, kept = make(tmp_path / "train"), tmp_path / "kept"
    run(spec, killed_at=7, kept=kept)
    run(spec, 2, resume=kept / "4")
    same(folder, tmp_path / "train")


def test_every_loss_is_lowered_and_projections_are_not_exported(straight):
    _, folder, _ = straight
    first, last = logged(folder)[1], logged(folder)[12]
    assert set(LOSSES) <= first.keys() and all(last[name] < first[name] for name in ("hidden_mse", "hidden_cosine"))
    total = sum(LOSSES[name].get("weight", 1.0) * first[name] for name in LOSSES)
    assert first["loss"] == pytest.approx(total, rel=1e-12)
    weights = load_file(folder / "model/model.safetensors")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    assert weights.keys() == model.state_dict().keys() and not [n for n in weights if "projection" in n]


def moments_on_workers(rank: int, port: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
    student, teacher, weights, projection = torch.load(folder / "tokens.pt")
    loss = CrossCorrelation(keep=0.7)
    loss.fit({Hidden(-1): WIDTH}, {Hidden(-1): TEACHER_WIDTH})
    loss.double()
    loss.pair.projection.weight.data.copy_(projection)
    parts = [slice(7 * number, 7 * number + 7) for number in range(rank, 6, 2)]  # three micro-batches of each worker
    student.requires_grad_()
    batches = [FeatureBatch({Hidden(-1): teacher[None, part]}, weights[None, part]) for part in parts]
    step = FeatureStep([make_loss(Given, loss=loss)], batches, draw_of(1, 5))

    def sums(number: int) -> dict:
        return {"Given": loss.sums({Hidden(-1): student[None, parts[number]]}, batches[number], draw_of(1, 5))}

    step.read_twice(sums, 3)
    sum(step.loss(sums(number)) for number in range(3)).backward()
    gradients = [student.grad, loss.pair.projection.weight.grad]
    for gradient in gradients:
        dist.all_reduce(gradient)
    step.finish()
    if rank == 0:
        torch.save([step.values["Given"], *gradients], folder / "result.pt")
    dist.destroy_process_group()


class Given:
    """A loss that was made before."""

    def __new__(cls, loss):
        return loss


@pytest.mark.timeout(120)
def test_value_and_gradient_over_two_workers_and_three_micro_batches_are_those_over_all_tokens(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=generator) + 3
    teacher = torch.randn(TOKENS, TEACHER_WIDTH, dtype=torch.float64, generator=generator) * 2 - 1
    projection = torch.randn(TEACHER_WIDTH, WIDTH, dtype=torch.float64, generator=generator)
    weights = torch.ones(TOKENS, dtype=torch.float64).index_fill(0, torch.tensor([2, 9, 30]), 0.0)
    torch.save([student, teacher, weights, projection], tmp_path / "tokens.pt")
    mp.spawn(moments_on_workers, (port, tmp_path), nprocs=2)
    value, student_gradient, projection_gradient = torch.load(tmp_path / "result.pt")

    student.requires_grad_()
    projection.requires_grad_()
    kept = weights > 0
    mask = features.FeatureMask(features.draw_features(TEACHER_WIDTH, 0.7, draw_of(1, 5)()))
    expected = features.cross_correlation(student[kept] @ projection.T, teacher[kept], mask=mask).sum
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(student_gradient, student.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(projection_gradient, projection.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wanted", [[], [-1], [1, 2], [0, 1, 2, 3, -1]])
def test_only_the_layers_that_are_wanted_are_kept(teacher, wanted):
    """At the last layer, where most is held, and after it: so many hidden states more than without any wanted."""
    model = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    ids = torch.arange(14).view(2, 7)
    shape, counts = (2, 7, 24), []

    def alive(*_) -> None:
        gc.collect()
        counts.append(sum(torch.is_tensor(x) and x.shape == shape for x in gc.get_objects()))

    model.bert.encoder.layer[-1].register_forward_pre_hook(alive)
    with torch.no_grad():
        model(ids)
        base = counts.pop()
        with captured(model, [Hidden(layer) for layer in wanted]) as states:
            model(ids)
            alive()
        states_of_model = model(ids, output_hidden_states=True).hidden_states
    before_last = [layer for layer in wanted if layer in (1, 2)]  # 0 and 3, what the last layer reads, are held anyhow
    assert counts[0] - base == len(before_last) and len(states) == len(wanted)
    for layer in wanted:
        assert torch.equal(states[Hidden(layer)], states_of_model[layer])


def test_a_layer_that_is_not_there_is_one_line(tmp_path, shared_tokenizer, teacher):
    for losses, words in (
        (
            {"hidden_mse": {"student_layer": 3}},
            r"BertForSequenceClassification has hidden states 0 to 2, or -3 to -1; found 3",
        ),
        ({"hidden_mse": {"teacher_layer": -6}}, r"has hidden states 0 to 4, or -5 to -1; found -6"),
    ):
        spec = training_spec(tmp_path, shared_tokenizer, teacher, losses={"cross_entropy": {}, **losses})
        with pytest.raises(ModelError, match=words):
            train(spec, lambda metrics, folder: None)
        shutil.rmtree(tmp_path / "tokens", ignore_errors=True)


def test_a_teacher_that_reads_other_tokens_is_refused(tmp_path, shared_tokenizer, teacher):
    spec = training_spec(tmp_path, shared_tokenizer, teacher, losses={"cross_entropy": {}, "hidden_mse": {}})
    assert spec.teacher
    spec = replace(spec, teacher=replace(spec.teacher, prompt="a {input}"))
    with pytest.raises(Exception, match="student and teacher must read the same tokens"):
        train(spec, lambda metrics, folder: None)


def test_equal_models_have_no_distance(tmp_path, shared_tokenizer, teacher):
    losses = {"cross_entropy": {"weight": 0.0}, "hidden_mse": {}, "hidden_cosine": {}}
    spec = training_spec(tmp_path, shared_tokenizer, teacher, losses=losses, max_steps=1)
    spec = replace(spec, model=Checkpoint(kind="checkpoint", path=str(teacher)))
    result = train(spec, lambda metrics, folder: None)
    assert AutoConfig.from_pretrained(teacher).hidden_size == 24 and result["dev_loss"] < 1e-9
