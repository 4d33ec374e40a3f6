"""Evaluating a student on its dev rows: their loss, and metrics of its predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from raykd import metrics
from raykd.errors import DataError
from raykd.losses.kinds import TokenLoss
from raykd.losses.tokens import TokenBatch
from raykd.models import task_heads
from raykd.recipe.metrics import metric_kinds
from raykd.recipe.training import StoredOutputs
from raykd.training import batches
from raykd.training.forward import easy_masks, forward, token_batch
from raykd.training.planner import DevRows
from raykd.training.setup import TrainingSetup
from raykd.training.sharder import MicroBatch, dev_micro_batches
from raykd.training.teachers import NoTeacher, TeacherSource
from raykd.training.workers import from_all_workers, rank, sum_over_workers, unwrapped, world_size


def evaluate(setup: TrainingSetup) -> dict[str, float]:
    """{dev_loss, and each of the training's dev metrics by name}, the same on every worker; all workers must call.

    A metric that has nothing to score in the references, such as no slot, is left out.
    """
    setup.parallel.eval()
    scores = {"dev_loss": dev_loss(setup)}
    return scores | dev_metrics(setup) if setup.spec.training.dev_metrics else scores


def score_of(scores: dict[str, float], choose_by: str) -> float:
    """What the best model is selected by, higher being better: this metric, or the dev loss where it is missing."""
    name = choose_by if choose_by in scores else "dev_loss"
    return -scores[name] if metrics.lower_is_better(name) else scores[name]


@torch.no_grad()
def dev_loss(setup: TrainingSetup) -> float:
    """The training loss of all dev rows, in nats per token or sequence as the training's reduction says.

    Of dev rows of their own no teacher's outputs are stored: there it is the cross entropy, or a regression's mse.
    """
    teacher, losses = setup.teacher, setup.losses
    if setup.spec.dev and isinstance(setup.spec.training.teacher, StoredOutputs):
        teacher = NoTeacher()
        losses = [TokenLoss("mse" if setup.student.task == "regression" else "cross_entropy")]
    factors = {name: factor for loss in losses for name, factor in loss.factors.items()}
    masks = []
    if "atkd_easy" in factors:  # by a pass of its own: the teacher's outputs for all dev rows may be too many to keep
        batches_once = (batch for _, batch in _dev_batches(setup, teacher))
        masks = easy_masks(batches_once, losses, setup.student.shared_vocab_size)
    zero = torch.zeros(2, dtype=torch.float64, device=setup.device)
    sums = dict.fromkeys(factors, zero)  # of the values, and of the denominators
    for number, (micro_batch, batch) in enumerate(_dev_batches(setup, teacher)):
        if masks:
            batch = batch._replace(easy_mask_N=masks[number].to(setup.device))
        result = forward(unwrapped(setup.parallel), micro_batch, losses, batch, setup.spec.training.precision)
        for name in factors:
            sums[name] = sums[name] + torch.stack([part.double() for part in result.terms[name]])
    totals = sum_over_workers(torch.stack(list(sums.values()))).tolist()
    return sum(
        factor * (value / max(denominator, 1e-9))
        for factor, (value, denominator) in zip(factors.values(), totals, strict=True)
    )


def _dev_batches(setup: TrainingSetup, teacher: TeacherSource) -> Iterator[tuple[MicroBatch, TokenBatch]]:
    """This worker's dev micro-batches, each with its token batch."""
    for micro_batch in dev_micro_batches(setup.plan.dev, setup.sharder):
        teacher.prepare(micro_batch)
        yield micro_batch, token_batch(micro_batch, teacher, setup.device)


@torch.no_grad()
def dev_metrics(setup: TrainingSetup) -> dict[str, float]:
    """The dev metrics of the student's predictions for the first dev rows, against their targets."""
    settings = setup.spec.training
    dev = setup.plan.dev._replace(targets=setup.plan.dev.targets[: settings.dev_prediction_rows])
    if setup.student.task == "generation":
        predictions, references = _generated(setup, dev)
    else:
        predictions, references = _predicted(setup, dev)
    scores = {}
    for name in metric_kinds(settings.dev_metrics):
        with suppress(DataError):  # nothing to score
            scores[name] = metrics.get(name)(predictions, [[reference] for reference in references])
    return scores


def _generated(setup: TrainingSetup, dev: DevRows) -> tuple[list[str], list[str]]:
    """Greedy predictions of a model that writes, and the references; each worker generates its share.

    Workers that hold the student in parts must generate equally often: one without rows repeats the first ones.
    """
    pieces = _by_length(setup, dev)
    own, by_place = pieces[rank() :: world_size()], {}
    for number in range(-(-len(pieces) // world_size())):
        piece = own[number] if number < len(own) else pieces[0]
        texts = _generate(setup, _sources(dev, piece))
        if number < len(own):
            by_place |= dict(zip(piece.tolist(), texts, strict=True))
    predictions = {place: text for part in from_all_workers(by_place) for place, text in part.items()}
    target_ids = [dev.dataset.target(number).tolist() for number in dev.targets]
    references = setup.tokenizer.batch_decode(target_ids, skip_special_tokens=True)
    return [predictions[i].strip() for i in range(len(dev.targets))], [text.strip() for text in references]


def _generate(setup: TrainingSetup, sources: list[np.ndarray]) -> list[str]:
    student, tokenizer = setup.student, setup.tokenizer
    pad = batches.pad_left if student.causal else batches.pad_right
    tensors = {name: tensor.to(setup.device) for name, tensor in pad(sources, tokenizer.pad_token_id).items()}
    ids = student.model.generate(
        **tensors,
        max_new_tokens=setup.spec.training.dev_prediction_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        synced_gpus=setup.sharder.equal and world_size() > 1,
    )
    ids = ids[:, tensors["input_ids"].shape[1] :] if student.causal else ids
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def _predicted(setup: TrainingSetup, dev: DevRows) -> tuple[list[str], list[str]]:
    """Predictions of an encoder's head, and the references; every worker predicts all."""
    task, tokenizer = setup.student.task, setup.tokenizer

    def text(source: Any, head_target: Any) -> str:
        return task_heads.decode(task, setup.spec.student.labels, tokenizer, source, head_target)

    predictions: dict[int, str] = {}
    for piece in _by_length(setup, dev):
        sources = _sources(dev, piece)
        predicted = task_heads.predict(setup.student.model, task, sources, tokenizer.pad_token_id)
        for place, source, prediction in zip(piece.tolist(), sources, predicted, strict=True):
            predictions[place] = text(source, prediction.head_target)
    numbers = np.arange(len(dev.targets))
    targets = [dev.dataset.target(int(number)) for number in dev.targets]
    references = [text(source, target) for source, target in zip(_sources(dev, numbers), targets, strict=True)]
    return [predictions[i] for i in range(len(dev.targets))], references


def _by_length(setup: TrainingSetup, dev: DevRows) -> list[np.ndarray]:
    """Places among the dev targets, in batches for prediction."""
    lengths = dev.dataset.source_lengths[dev.dataset.row_of[dev.targets]]
    return batches.by_length(lengths.tolist(), setup.spec.training.batch_tokens)


def _sources(dev: DevRows, places: np.ndarray) -> list[np.ndarray]:
    """The prompts' token ids at some places among the dev targets."""
    return [dev.dataset.source(int(dev.dataset.row_of[number])) for number in dev.targets[places]]
