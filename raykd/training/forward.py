"""The student's losses of a micro-batch, and what they need to know of the whole global batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from raykd.losses.divergences import easy_tokens
from raykd.losses.kinds import TokenLoss
from raykd.losses.teachers import TeacherOutputs
from raykd.losses.tokens import IGNORE, Result, TokenBatch, teacher_uncertainty
from raykd.training.sharder import MicroBatch
from raykd.training.workers import from_all_workers, rank, sum_over_workers


def token_batch(micro_batch: MicroBatch, teacher: torch.Tensor | TeacherOutputs | None, device: Any) -> TokenBatch:
    """The labels (B, T) and weights of a micro-batch on the device, with the teacher's outputs for its K labels."""
    weights = None if micro_batch.weights_K is None else micro_batch.weights_K.to(device)
    return TokenBatch(micro_batch.labels_BT.to(device), teacher, weights)


def forward(
    student: Any, micro_batch: MicroBatch, losses: Sequence[TokenLoss], batch: TokenBatch, precision: str
) -> Result:
    """The losses of a micro-batch, whose `token_batch` this is; `student` may be one that is parallelised."""
    device = batch.labels.device
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in micro_batch.inputs.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return student(inputs, losses, batch)


def uncertainty(batch: TokenBatch, shared_vocab_size: int | None) -> torch.Tensor:
    """(K,) the teacher's uncertainty of a micro-batch's labels, on the CPU."""
    labels_K = batch.labels[batch.labels != IGNORE]
    if not len(labels_K):
        return torch.zeros(0)
    return teacher_uncertainty(batch.teacher, labels_K, shared_vocab_size).cpu()  # type: ignore[arg-type]


def easy_masks(uncertainties: Sequence[torch.Tensor], losses: Sequence[TokenLoss]) -> list[torch.Tensor]:
    """ATKD's easy tokens of each micro-batch, told from the hard ones over the micro-batches of all workers."""
    own = torch.cat([torch.zeros(0, dtype=torch.float64), *(values.double() for values in uncertainties)])
    by_worker = from_all_workers(own)
    hard_share = next(loss.hard_share for loss in losses if loss.kind == "atkd")
    easy = easy_tokens(torch.cat(by_worker), hard_share)
    start = sum(len(values) for values in by_worker[: rank()])
    sizes = [len(values) for values in uncertainties]
    return list(easy[start : start + len(own)].split(sizes)) if sizes else []


def with_denominators(
    batches: Sequence[TokenBatch], losses: Sequence[TokenLoss], weight: float, shared_vocab_size: int | None
) -> tuple[list[TokenBatch], dict[str, float]]:
    """A global batch's token batches with ATKD's groups and every term's denominator; and the denominators by term.

    A term is divided by what the positions of all workers count for in it: `weight`, and for ATKD each group's share.
    """
    denominators = {loss.name: weight for loss in losses if loss.kind != "atkd"}
    if len(denominators) == len(losses):
        return [batch._replace(denominators=denominators) for batch in batches], denominators
    masks = easy_masks([uncertainty(batch, shared_vocab_size) for batch in batches], losses)
    counts = torch.zeros(2, dtype=torch.float64)
    for batch, easy_K in zip(batches, masks, strict=True):
        weights_K = torch.ones(len(easy_K)) if batch.weights_N is None else batch.weights_N.cpu()
        counts += torch.stack([weights_K.double()[easy_K].sum(), weights_K.double()[~easy_K].sum()])
    device = batches[0].labels.device
    easy, hard = sum_over_workers(counts, device).tolist()
    denominators |= {"atkd_easy": easy, "atkd_hard": hard}
    return [
        batch._replace(easy_mask_N=mask.to(device), denominators=denominators)
        for batch, mask in zip(batches, masks, strict=True)
    ], denominators
