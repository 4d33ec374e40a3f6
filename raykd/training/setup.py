"""Everything that a worker builds from a spec before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import get_scheduler

from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.errors import ModelError, RecipeError, TrainingError
from raykd.losses.loss import Loss
from raykd.models.adapters import with_lora
from raykd.models.layers import layer_widths, widths_of
from raykd.models.load import load_model, model_blocks
from raykd.models.tokenizers import load_tokenizer, shared_vocab_size, tokenizer_mark
from raykd.recipe.training import InProcessOutputs, RemoteOutputs, StoredOutputs, Training
from raykd.run import remote
from raykd.run.files import fingerprint
from raykd.training.dataset import ENCODED_FORMAT, EncodedStream
from raykd.training.encode import Limits, encode_source
from raykd.training.job import MarkedSource, TrainingSpec
from raykd.training.losses import build_losses
from raykd.training.planner import BatchPlan, Lengths
from raykd.training.samplers import Sampler, sampler_of
from raykd.training.sharder import BatchSharder
from raykd.training.sources import chunks_of
from raykd.training.student import Student
from raykd.training.teachers import (
    InProcessTeacher,
    Needs,
    NoTeacher,
    RemoteTeacher,
    Scorer,
    StoredTeacher,
    TeacherByOrigin,
    TeacherSource,
    teacher_head,
)
from raykd.training.workers import from_all_workers, parallelised, rank, world_size

UNKNOWN_STEPS = 10_000  # the schedule's number of steps if the real one is not known from the start


class Streams(NamedTuple):
    """Encoded rows to learn, and encoded dev rows if the spec has some."""

    rows: EncodedStream
    dev: EncodedStream | None


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that the loop needs; `build` makes it.

    parallel     the student as a step calls it: alone, data parallel, or in parts (FSDP2)
    schedule     maps the share of the training that is done (0 to 1) to a factor of the learning rate
    losses, feature_losses  those on logits or numbers, and those on features; needs: what they need of the teacher
    sampler      writes sequences during the training; None where all are known before
    total_steps  None if the first epoch follows a teacher, so that the number of steps is not known
    """

    spec: TrainingSpec
    device: torch.device
    tokenizer: Any
    student: Student
    parallel: Any
    losses: list[Loss]
    feature_losses: list[Loss]
    needs: Needs
    optimizer: torch.optim.Optimizer
    schedule: Callable[[float], float]
    total_steps: int | None
    teacher: TeacherSource
    sampler: Sampler | None
    streams: Streams
    plan: BatchPlan
    sharder: BatchSharder


def build(spec: TrainingSpec, scorer: Scorer | None) -> TrainingSetup:
    """Build a training's setup; random weights come from the spec's seed. `scorer` is for a teacher of kind remote.

    Raises ModelError, DataError, RecipeError or TrainingError for models, rows or settings that do not fit each other.
    """
    settings, task = spec.training, spec.student.task
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(spec.seed)
    tokenizer = load_tokenizer(spec.tokenizer, task == "generation")
    vocab_size = teacher_vocab_size(spec, tokenizer)
    losses = build_losses(settings)
    feature_losses = [loss for loss in losses if loss.of_features]
    losses = [loss for loss in losses if not loss.of_features]
    model = student_model(spec, tokenizer)
    needs = Needs(
        distribution=any("teacher" in loss.needs for loss in losses),
        features=frozenset(need for loss in feature_losses for need in loss.loss.teacher_needs),
    )
    lengths = Lengths(apart=model.config.is_encoder_decoder or task != "generation", task=task)
    streams = encoded_streams(spec)
    teacher = teacher_source(spec, scorer, device, vocab_size)
    fit_projections(spec, feature_losses, model)
    student = Student(model, vocab_size, task, feature_losses).to(device)
    parallel = parallelised(student, spec.parallel, device)
    plan = BatchPlan(streams.rows, settings, spec.seed, lengths, windows=followed_chunks(spec), dev=streams.dev)
    teacher_pad = None
    if spec.teacher and settings.live_outputs():
        teacher_pad = load_tokenizer(spec.teacher.tokenizer, task == "generation").pad_token_id
    optimizer = build_optimizer(student, settings)
    total_steps = settings.max_steps
    if total_steps is None and not plan.follows:
        total_steps = max(1, round((settings.epochs or 0) * plan.epoch_batches))
    schedule = build_schedule(settings, total_steps or UNKNOWN_STEPS)
    if settings.compile:
        for block in model_blocks(student.model):
            block.compile(dynamic=True)
    return TrainingSetup(
        spec=spec,
        device=device,
        tokenizer=tokenizer,
        student=student,
        parallel=parallel,
        losses=losses,
        feature_losses=feature_losses,
        needs=needs,
        optimizer=optimizer,
        schedule=schedule,
        total_steps=total_steps,
        teacher=teacher,
        sampler=sampler_of(settings.sequences, model, tokenizer, settings.batch_tokens),
        streams=streams,
        plan=plan,
        sharder=BatchSharder(
            rank=rank(),
            world=world_size(),
            training=settings,
            lengths=lengths,
            pad=tokenizer.pad_token_id,
            teacher_pad=teacher_pad,
            teacher_apart=spec.teacher is not None and spec.teacher.encoder,
            equal=spec.parallel == "fsdp",
        ),
    )


def student_model(spec: TrainingSpec, tokenizer: Any) -> Any:
    """The model to train, with LoRA and gradient checkpointing if the training has them. Raises ModelError."""
    settings, labels = spec.training, spec.student.labels
    model = load_model(spec.model, tokenizer, spec.student.task, list(labels) if labels else None)
    if settings.precision == "float64":
        model.double()
    if settings.lora:
        model = with_lora(model, settings.lora)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if settings.lora:
            model.enable_input_require_grads()
    return model


def teacher_vocab_size(spec: TrainingSpec, tokenizer: Any) -> int | None:
    """How many token ids student and teacher share; None if no loss compares their tokens. Raises ModelError."""
    if not spec.training.needs_teacher():
        return None
    if spec.teacher is None:
        raise ModelError(f"{spec.name}: {_teacher_loss(spec.training)} needs a teacher, and these rows have none")
    if spec.student.task == "generation":
        return shared_vocab_size(tokenizer, load_tokenizer(spec.teacher.tokenizer))
    same = tokenizer_mark(spec.tokenizer) == tokenizer_mark(spec.teacher.tokenizer)
    if spec.student.task == "extractive_qa" and not same:
        raise ModelError(f"{spec.name}: spans are places in a prompt: student and teacher need the same tokenizer")
    return None


def _teacher_loss(training: Training) -> str:
    """The name of a loss that needs the teacher, for messages."""
    return f"losses.{training.teacher_losses()[0]}"


def followed_chunks(spec: TrainingSpec) -> int | None:
    """The number of chunks of the stream that the first epoch follows; None if it follows none."""
    source = spec.rows.source
    if isinstance(source, FileSource) or not source[0].follow:
        return None
    return len(chunks_of(source[0]))


def encoded_streams(spec: TrainingSpec) -> Streams:
    """The streams of encoded rows; in each folder of encoded rows the first worker that has it writes them."""
    writer = 0
    if remote.url(spec.tokens):  # then every machine has a folder of its own, and a worker that writes it
        machines = from_all_workers(remote.machine())
        writer = machines.index(machines[rank()])

    def stream(rows: MarkedSource) -> EncodedStream:
        settings, teacher = spec.training, spec.teacher if spec.training.live_outputs() else None
        limits = Limits(
            name=spec.name,
            input_tokens=settings.max_input_tokens,
            target_tokens=settings.max_target_tokens,
            long_targets=settings.long_targets,
            empty_targets=settings.empty_targets,
            bad_rows=spec.max_bad_rows,
        )
        return EncodedStream(
            Path(spec.tokens) / f"{_stream_name(rows, spec.student, teacher, limits)}.arrow",
            writes=rank() == writer,
            encode=lambda path: encode_source(path, rows.source, spec.student, teacher, limits),
            agree=lambda value: from_all_workers(value)[writer],
        )

    return Streams(rows=stream(spec.rows), dev=stream(spec.dev) if spec.dev else None)


def _stream_name(rows: MarkedSource, student: PromptEncoder, teacher: PromptEncoder | None, limits: Limits) -> str:
    """A fingerprint of all that decides the encoded rows, so that other trainings reuse them."""
    readers = [student, *([teacher] if teacher else [])]
    tokenizers = [tokenizer_mark(r.tokenizer) for r in readers]
    prompts = [
        [str(r.prompt), [s.input for s in r.shots], [s.target for s in r.shots], r.encoder, r.task, r.labels]
        for r in readers
    ]
    rules = (limits.input_tokens, limits.target_tokens, limits.long_targets, limits.empty_targets)
    no_places = {"path": None, "prompts": None, "store": None, "follow": None}  # the mark stands for the content
    sources = [rows.source] if isinstance(rows.source, FileSource) else rows.source
    settings = [{**vars(source), **no_places} for source in sources]
    return fingerprint([ENCODED_FORMAT, rows.mark, tokenizers, prompts, rules, settings])


def teacher_source(
    spec: TrainingSpec, scorer: Scorer | None, device: torch.device, vocab_size: int | None
) -> TeacherSource:
    """The source of the teacher's outputs that `training.teacher` asks for.

    Raises TrainingError if the kind remote has no scorer, RecipeError if the store lacks what the losses need.
    """
    settings = spec.training
    if not settings.needs_teacher():
        return NoTeacher()
    stored = _source(spec, settings.outputs_for(sampled=False), scorer, device, vocab_size)
    if not settings.sequences.samplers():
        return stored
    of_samples = settings.outputs_for(sampled=True)
    if of_samples == settings.outputs_for(sampled=False):
        return stored
    return TeacherByOrigin(stored, _source(spec, of_samples, scorer, device, vocab_size))


def _source(
    spec: TrainingSpec,
    section: StoredOutputs | InProcessOutputs | RemoteOutputs,
    scorer: Scorer | None,
    device: torch.device,
    vocab_size: int | None,
) -> TeacherSource:
    assert spec.teacher is not None
    if isinstance(section, InProcessOutputs):
        return InProcessTeacher(spec.teacher, section.dtype, device, vocab_size)
    if isinstance(section, RemoteOutputs):
        if scorer is None:
            raise TrainingError(f"{spec.name}: training.teacher: kind remote needs a cluster")
        return RemoteTeacher(scorer, section.tail, device)
    source = spec.rows.source
    payload = None if isinstance(source, FileSource) else source[0].payload
    if payload is None or payload.kind == "text":
        kind = payload.kind if payload else "texts"
        loss = _teacher_loss(spec.training)
        raise RecipeError(f"{spec.name}: {loss} needs the teacher's side, and the rows are {kind}")
    head = teacher_head(spec.teacher.tokenizer, device, vocab_size) if payload.kind == "hidden" else None
    return StoredTeacher(payload, section.tail, head, device)


def fit_projections(spec: TrainingSpec, feature_losses: Sequence[Loss], model: Any) -> None:
    """Make the projections of the feature losses, for the student and its teacher's configuration.

    Raises ModelError for a layer that a model does not have, or widths that do not fit.
    """
    if not feature_losses:
        return
    assert spec.teacher is not None
    for loss in feature_losses:
        student_widths = layer_widths(model, loss.loss.student_needs)
        teacher_widths = widths_of(spec.teacher.tokenizer, loss.loss.teacher_needs)
        try:
            loss.loss.fit(student_widths, teacher_widths)
        except ValueError as error:
            raise ModelError(f"{spec.name}: losses.{loss.name}: {error}") from None
        if isinstance(loss.loss, torch.nn.Module):
            loss.loss.to(next(model.parameters()).dtype)


def build_optimizer(student: Student, settings: Training) -> torch.optim.AdamW:
    """AdamW, without weight decay for vectors and norms."""
    trained = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
    plain = [p for n, p in trained if p.ndim < 2 or "norm" in n.lower()]
    decayed = [p for n, p in trained if not (p.ndim < 2 or "norm" in n.lower())]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, fused=True)


def build_schedule(settings: Training, steps: int) -> Callable[[float], float]:
    """A schedule of transformers: it maps the share of the training that is done (0 to 1) to the rate's factor.

    Raises RecipeError for a schedule or an option that transformers does not know.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # which the scheduler wants to have
    try:
        scheduler: Any = get_scheduler(
            settings.schedule,
            optimizer,
            round(settings.warmup_ratio * steps),
            steps,
            scheduler_specific_kwargs=settings.schedule_options or None,
        )
        factor = scheduler.lr_lambdas[0]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise RecipeError(f"training.schedule {settings.schedule!r}: {str(error).splitlines()[0]}") from None
    return lambda share: factor(share * steps)
