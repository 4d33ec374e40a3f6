"""The student's losses of a micro-batch, and the sums over the global batch that these losses need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from raykd.losses.loss import Draw, FeatureBatch, Loss
from raykd.losses.tokens import IGNORE, Result, TokenBatch, statistics, term_weights
from raykd.training.sharder import MicroBatch
from raykd.training.teachers import Outputs
from raykd.training.workers import from_all_workers, sum_over_workers


class StepBatch(NamedTuple):
    """A micro-batch on the device, with the teacher's outputs. `features` is None where no loss compares features."""

    inputs: dict[str, torch.Tensor]
    tokens: TokenBatch
    features: FeatureBatch | None


def step_batch(micro_batch: MicroBatch, outputs: Outputs, device: torch.device) -> StepBatch:
    """The labels (B, T), weights and inputs of a micro-batch on the device, with the teacher's outputs for them."""
    weights = None if micro_batch.weights_K is None else micro_batch.weights_K.to(device)
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in micro_batch.inputs.items()}
    tokens = TokenBatch(micro_batch.labels_BT.to(device), outputs.distribution, weights)
    features = None
    if outputs.features:
        weights_BS = inputs["attention_mask"].double() * micro_batch.weights_B.to(device)[:, None]
        features = FeatureBatch(outputs.features, weights_BS)
    return StepBatch(inputs, tokens, features)


def forward(student: Any, batch: StepBatch, losses: Sequence[Loss], draw: Draw, precision: str) -> Result:
    """The losses of a micro-batch, without those on features, whose sums the result has.

    `student` may be wrapped by `parallelised`.
    """
    device = batch.tokens.labels.device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return student(batch.inputs, losses, batch.tokens, batch.features, draw)


def joined_weights(
    batches: Iterable[TokenBatch], losses: Sequence[Loss], shared_vocab_size: int | None
) -> list[dict[str, torch.Tensor]]:
    """For each micro-batch by term (K,): what its tokens count for, from statistics that all workers join.

    `batches` is iterated once, so each batch may be freed before the next one is made.
    """
    own: list[Mapping[str, torch.Tensor]] = []
    weights: list[torch.Tensor] = []
    for batch in batches:
        labels_K = batch.labels[batch.labels != IGNORE]
        of_batch = statistics(losses, batch.teacher, labels_K, shared_vocab_size)
        own.append({name: values.cpu().double() for name, values in of_batch.items()})
        weights.append(
            torch.ones(len(labels_K)).double() if batch.weights_N is None else batch.weights_N.cpu().double()
        )
    names = [loss.name for loss in losses if loss.loss.joins]
    empty = torch.zeros(0, dtype=torch.float64)
    by_worker = from_all_workers({name: torch.cat([empty, *(of_batch[name] for of_batch in own)]) for name in names})
    joined = {name: torch.cat([of_worker[name] for of_worker in by_worker]) for name in names}
    return [term_weights(losses, weights_K, of_batch, joined) for weights_K, of_batch in zip(weights, own, strict=True)]


def with_denominators(
    batches: Sequence[StepBatch], losses: Sequence[Loss], weight: float, shared_vocab_size: int | None
) -> tuple[list[StepBatch], dict[str, float]]:
    """A step's batches with what every token counts for and the denominators of all terms; and these by term.

    A term's denominator is the sum of its tokens' weights over all workers: `weight`, where no statistic divides them.
    """
    denominators = {term: weight for loss in losses if not _joins(loss) for term in loss.factors}
    joining = [loss for loss in losses if _joins(loss)]
    if joining:
        device = batches[0].tokens.labels.device
        weights = joined_weights((batch.tokens for batch in batches), losses, shared_vocab_size)
        terms = [term for loss in joining for term in loss.factors]
        own = torch.stack([torch.stack([of_batch[term].sum() for term in terms]) for of_batch in weights]).sum(0)
        denominators |= zip(terms, sum_over_workers(own.to(device)).tolist(), strict=True)
        batches = [
            batch._replace(tokens=batch.tokens._replace(term_weights={n: w.to(device) for n, w in of_batch.items()}))
            for batch, of_batch in zip(batches, weights, strict=True)
        ]
    return [batch._replace(tokens=batch.tokens._replace(denominators=denominators)) for batch in batches], denominators


def _joins(loss: Loss) -> bool:
    return loss.loss.joins
