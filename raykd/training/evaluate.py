"""Evaluating a student on its dev rows: their loss, and metrics of its predictions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from raykd import metrics
from raykd.errors import DataError
from raykd.losses import divergences
from raykd.losses.loss import FeatureBatch, make_loss
from raykd.models import task_heads
from raykd.training import batches
from raykd.training.features import added, draw_of, features_over
from raykd.training.forward import StepBatch, forward, joined_weights, step_batch
from raykd.training.planner import DevRows
from raykd.training.setup import TrainingSetup
from raykd.training.sharder import dev_micro_batches
from raykd.training.teachers import Needs, NoTeacher, TeacherSource
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
    teacher, losses, feature_losses, needs = setup.teacher, setup.losses, setup.feature_losses, setup.needs
    if setup.spec.dev and setup.spec.training.reads_store():
        teacher, needs, feature_losses = NoTeacher(), Needs(), []
        mse = setup.student.task == "regression"
        losses = [make_loss(divergences.mse if mse else divergences.cross_entropy)]
    batches_once = functools.partial(_dev_batches, setup, teacher, needs)
    weights = None
    if any(loss.loss.joins for loss in losses):  # by a pass of its own: the teacher's outputs may be too many to keep
        tokens = (batch.tokens for batch in batches_once())
        weights = joined_weights(tokens, losses, setup.student.shared_vocab_size)
    factors = {name: factor for loss in losses for name, factor in loss.factors.items()}
    zero = torch.zeros(2, dtype=torch.float64, device=setup.device)
    sums = dict.fromkeys(factors, zero)  # of the values, and of the denominators
    feature_sums, feature_batches, draw = {}, [], draw_of(setup.spec.seed, 0)
    for number, batch in enumerate(batches_once()):
        if weights:
            term_weights = {name: w.to(setup.device) for name, w in weights[number].items()}
            batch = batch._replace(tokens=batch.tokens._replace(term_weights=term_weights))
        result = forward(unwrapped(setup.parallel), batch, losses, draw, setup.spec.training.precision)
        for name in factors:
            sums[name] = sums[name] + torch.stack([part.double() for part in result.terms[name]])
        if batch.features:
            feature_sums = added([feature_sums, result.sums])
            feature_batches.append(FeatureBatch({}, batch.features.weights_BS))
    totals = sum_over_workers(torch.stack(list(sums.values()))).tolist()
    loss = sum(
        factor * (value / max(denominator, 1e-9))
        for factor, (value, denominator) in zip(factors.values(), totals, strict=True)
    )
    return loss + features_over(feature_losses, feature_batches, feature_sums, draw)


def _dev_batches(setup: TrainingSetup, teacher: TeacherSource, needs: Needs) -> Iterator[StepBatch]:
    """This worker's dev micro-batches, with the teacher's outputs."""
    for micro_batch in dev_micro_batches(setup.plan.dev, setup.sharder):
        yield step_batch(micro_batch, teacher.outputs(teacher.ask(micro_batch, needs)), setup.device)


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
    for name in settings.dev_metrics:
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
