"""One trajectory: the same losses, point by point, and the same weights, however a training is run."""

import json
import math
import os
import shutil
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import LLAMA, T5, pairs, write_rows
from safetensors.torch import load_file

from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.recipe.models import FromConfig
from raykd.recipe.training import Training
from raykd.training import loop
from raykd.training.job import MarkedSource, TrainingSpec
from raykd.training.loop import train
from raykd.training.trackers import Log

KD = {"cross_entropy": {"weight": 0.3}, "forward_kl": {"weight": 0.5, "temperature": 2.0}, "atkd": {"hard_share": 0.3}}


def training_spec(folder: Path, tokenizer: Path, kind: str, teacher: Path | None = None, **changes) -> TrainingSpec:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"learning_rate": 0.01, "max_steps": 12, "batch_tokens": 160, "evaluate_every": 4} | changes
    settings |= {"precision": "float64", "holdout": 0.1, "teacher": {"kind": "in_process", "dtype": "float64"}}
    prompt = "{input}" if kind == "t5" else "{input} =>"
    return TrainingSpec(
        name="train",
        model=FromConfig(kind="config", model_type=kind, settings=T5 if kind == "t5" else LLAMA),
        tokenizer=str(tokenizer),
        training=Training(**settings),
        rows=MarkedSource(FileSource(str(write_rows(folder / "rows.jsonl", pairs(60)))), "rows"),
        student=PromptEncoder(str(tokenizer), prompt, encoder=kind == "t5"),
        teacher=PromptEncoder(str(teacher), prompt, encoder=kind == "t5") if teacher else None,
        folder=str(folder),
        tokens=str(folder / "tokens"),
        seed=1,
        threads=1,
    )


def run(
    spec: TrainingSpec,
    world: int = 1,
    killed_at: int | None = None,
    resume: Path | None = None,
    kept: Path | None = None,
):
    """Train in processes of their own; `killed_at`: with SIGKILL once so many steps are logged."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        mp.spawn(_worker, (world, port, spec, killed_at, resume, kept), nprocs=world)
    except mp.ProcessExitedException:
        assert killed_at


def _worker(
    rank: int, world: int, port: int, spec: TrainingSpec, killed_at: int | None, resume: Path | None, kept: Path | None
):
    loop.LOG_EVERY = 1
    if world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=world)
    write = Log.write

    def written(log, step, numbers):
        write(log, step, numbers)
        if killed_at and step >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    Log.write = written

    def report(metrics: dict, folder: Path) -> None:
        if kept:  # as Ray does: every worker's part in one folder
            shutil.copytree(folder, kept / str(metrics["step"]), dirs_exist_ok=True)

    train(spec, report, resume)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def losses(folder: Path) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()):
        names = ("loss", "dev_loss", "gradient_norm", "atkd_easy", "atkd_hard", "forward_kl")
        found.setdefault(line["step"], []).extend(line[n] for n in names if n in line)
    return found


def same(one: Path, other: Path) -> None:
    left, right = losses(one), losses(other)
    assert left.keys() == right.keys() == set(range(1, 13))
    for step in left:
        assert right[step] == pytest.approx(left[step], rel=1e-6), step
    weights, others = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-6, atol=1e-9)


CASES = {"micro-batches of one": (1, {"micro_batch_tokens": 1}, "data"), "two workers": (2, {}, "data")}
CASES |= {"two workers, micro-batches": (2, {"micro_batch_tokens": 40}, "data"), "fsdp": (2, {}, "fsdp")}
CASES |= {"fsdp, micro-batches": (2, {"micro_batch_tokens": 40}, "fsdp")}


KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("t5", "llama", "llama by sequences")]


@pytest.fixture(scope="module", params=["t5 distilled", *KINDS])
def straight(request, tmp_path_factory, shared_tokenizer, tiny_models):
    """(how to make a spec in a folder, the folder of one that ran at once, its checkpoints)."""
    kind, _, how = request.param.partition(" ")
    changes = {"losses": KD} if how else {}
    changes |= {"reduction": "sequences"} if "sequences" in how else {}
    folder = tmp_path_factory.mktemp("straight")

    def make(where: Path, **more) -> TrainingSpec:
        return training_spec(where, shared_tokenizer, kind, tiny_models[kind] if how else None, **changes, **more)

    run(make(folder / "train"), kept=folder / "kept")
    values = [value for one in losses(folder / "train").values() for value in one]
    assert all(map(math.isfinite, values)) and len(set(values)) == len(values)
    return make, folder / "train", folder / "kept"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
def test_however_a_batch_is_cut(straight, tmp_path, name):
    make, folder, _ = straight
    world, changes, parallel = CASES[name]
    run(replace(make(tmp_path / "train", **changes), parallel=parallel), world)
    same(folder, tmp_path / "train")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1)])
def test_killed_and_resumed(straight, tmp_path, before, after):
    make, folder, _ = straight
    spec, kept = make(tmp_path / "train"), tmp_path / "kept"
    run(spec, before, killed_at=7, kept=kept)
    assert max(losses(tmp_path / "train")) == 7 and [p.name for p in kept.iterdir()] == ["4"]
    run(spec, after, resume=kept / "4")
    same(folder, tmp_path / "train")


@pytest.mark.timeout(300)
def test_a_checkpoint_of_a_student_in_parts_is_read_by_one_worker(straight, tmp_path):
    make, folder, _ = straight
    spec, kept = make(tmp_path / "train"), tmp_path / "kept"
    run(replace(spec, parallel="fsdp"), 2, killed_at=7, kept=kept)
    run(spec, 1, resume=kept / "4")
    same(folder, tmp_path / "train")
