"""The loop: one for every student and every fine-tuned teacher.

It knows neither Ray nor recipes' files: `train` is a function of a job, given back what a checkpoint holds, that
calls `report` whenever there is something worth keeping. Its trajectory depends on the job alone: not on the number
of workers, on micro-batches, or on how often it was interrupted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

from raykd.errors import ModelError, RecipeError, TrainingError
from raykd.losses.tokens import Kind, TokenLoss
from raykd.models.adapters import with_lora
from raykd.models.load import load_model, model_blocks
from raykd.models.tokenizers import load_tokenizer, shared_vocab_size, tokenizer_mark
from raykd.recipe.losses import Loss
from raykd.recipe.training import InProcessOutputs, StoredOutputs, Training
from raykd.run import remote
from raykd.run.files import fingerprint
from raykd.training.dataset import ENCODED_FORMAT, EncodedStream
from raykd.training.encode import Limits, encode_source
from raykd.training.job import TrainingSpec
from raykd.training.sources import FileSource, StoredSource, chunks_of
from raykd.training.student import Student
from raykd.training.teachers import (
    InProcessTeacher,
    NoTeacher,
    RemoteTeacher,
    Scorer,
    StoredTeacher,
    TeacherSource,
    teacher_head,
)
from raykd.training.workers import from_all_workers


def student_model(job: TrainingSpec, tokenizer: Any) -> Any:
    settings = job.training
    model = load_model(job.model, tokenizer, job.student.task, list(job.student.labels) if job.student.labels else None)
    if settings.precision == "float64":
        model.double()
    if settings.lora:
        model = with_lora(model, settings.lora)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if settings.lora:
            model.enable_input_require_grads()
    return model


def shared_vocab(job: TrainingSpec, tokenizer: Any) -> int | None:
    """How many tokens student and teacher share; None where no loss compares them. Raises ModelError."""
    if not job.training.needs_teacher():
        return None
    if job.teacher is None:
        raise ModelError(f"{job.name}: {_needy(job.training)} needs a teacher, and these rows have none")
    if job.student.task != "generation":
        if (
            tokenizer_mark(job.tokenizer) != tokenizer_mark(job.teacher.tokenizer)
            and job.student.task == "extractive_qa"
        ):
            raise ModelError(f"{job.name}: spans are places in a prompt: student and teacher need the same tokenizer")
        return None
    return shared_vocab_size(tokenizer, load_tokenizer(job.teacher.tokenizer))


def _needy(training: Training) -> str:
    return f"losses.{training.teacher_losses()[0]}"


def parallelised(student: Student, how: str, device: torch.device, world: int) -> Any:
    """The student as every worker calls it: alone, data parallel, or in parts (FSDP2)."""
    blocks = model_blocks(student.model)
    if how == "fsdp" and dist.is_initialized():
        mesh = dist.device_mesh.init_device_mesh(device.type, (world,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(student, mesh=mesh)
    return DistributedDataParallel(student) if world > 1 else student


def unwrapped(parallel: Any) -> Student:
    """The student inside what `_parallel` made of it."""
    return parallel.module if isinstance(parallel, DistributedDataParallel) else parallel


def stream_chunks(job: TrainingSpec) -> int | None:
    """How many chunks a stream will have that the first epoch follows."""
    if isinstance(job.source, FileSource) or not job.source[0].follow:
        return None
    return len(chunks_of(job.source[0]))


def encoded_streams(job: TrainingSpec, rank: int) -> tuple[EncodedStream, EncodedStream | None]:
    """Encoded rows, and encoded dev rows."""
    settings = job.training
    rules = (settings.max_input_tokens, settings.max_target_tokens, settings.long_targets, settings.empty_targets)
    limits = Limits(job.name, *rules, job.max_bad_rows)
    first = 0
    if remote.url(job.tokens):  # of this machine, which has a folder of its own
        machines = from_all_workers(remote.machine())
        first = machines.index(machines[rank])

    def agree(value: Any) -> Any:
        return from_all_workers(value)[first]

    def one(source: FileSource | tuple[StoredSource, ...], mark: str) -> EncodedStream:
        also = job.teacher if reads_along(settings) else None
        readers = [job.student, *([also] if also else [])]
        names = [tokenizer_mark(r.tokenizer) for r in readers]
        places = {"path": None, "prompts": None, "store": None, "follow": None}
        how = [{**vars(part), **places} for part in ([source] if isinstance(source, FileSource) else source)]
        shown = [
            [str(r.prompt), [s.input for s in r.shots], [s.target for s in r.shots], r.encoder, r.task, r.labels]
            for r in readers
        ]
        path = Path(job.tokens) / f"{fingerprint([ENCODED_FORMAT, mark, names, shown, rules, how])}.arrow"
        return EncodedStream(
            path, rank == first, lambda part: encode_source(part, source, job.student, also, limits), agree
        )

    return one(job.source, job.marks[0]), one(job.dev, job.marks[1]) if job.dev else None


def reads_along(settings: Training) -> bool:
    return settings.needs_teacher() and not isinstance(settings.teacher, StoredOutputs)


def teacher_source(
    job: TrainingSpec, scorer: Scorer | None, device: torch.device, columns: int | None
) -> TeacherSource:
    settings = job.training
    if not settings.needs_teacher():
        return NoTeacher()
    assert job.teacher is not None
    if isinstance(settings.teacher, InProcessOutputs):
        return InProcessTeacher(job.teacher, settings.teacher.dtype, device, columns)
    if not isinstance(settings.teacher, StoredOutputs):
        if scorer is None:
            raise TrainingError(f"{job.name}: training.teacher: kind remote needs a cluster")
        return RemoteTeacher(scorer, settings.teacher.tail, device)
    payload = None if isinstance(job.source, FileSource) else job.source[0].payload
    if payload is None or payload.kind == "text":
        found = payload.kind if payload else "texts"
        raise RecipeError(f"{job.name}: {_needy(settings)} needs the teacher's side, and the rows are {found}")
    head = teacher_head(job.teacher.tokenizer, device, columns) if payload.kind == "hidden" else None
    return StoredTeacher(payload, settings.teacher.tail, head, device)


def build_losses(settings: Training) -> list[TokenLoss]:
    def one(name: str, loss: Loss) -> TokenLoss:
        kind: Any = name
        if ":" in name:  # a user's own
            module, _, function = name.partition(":")
            kind = Kind(getattr(importlib.import_module(module), function), teacher=False, target=True)
        given = {field: value for field, value in loss.model_dump().items() if value is not None}
        return TokenLoss(kind, **given)

    return [one(name, loss) for name, loss in settings.losses.items()]


def build_optimizer(student: Student, settings: Training) -> torch.optim.AdamW:
    """AdamW; vectors and norms do not decay."""
    named = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if p.ndim < 2 or "norm" in n.lower()]
    decayed = [p for n, p in named if not (p.ndim < 2 or "norm" in n.lower())]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, fused=True)


def build_schedule(settings: Training, steps: int) -> Callable[[float], float]:
    """The learning rate's factor by progress, of a schedule of transformers over so many steps. Raises RecipeError."""
    drawn = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        made: Any = get_scheduler(
            settings.schedule,
            drawn,
            round(settings.warmup_ratio * steps),
            steps,
            scheduler_specific_kwargs=settings.schedule_options or None,
        )
        factor = made.lr_lambdas[0]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise RecipeError(f"training.schedule {settings.schedule!r}: {str(error).splitlines()[0]}") from None
    return lambda progress: factor(progress * steps)
