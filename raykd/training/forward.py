"""The student's losses of a micro-batch, and the sums over the global batch that these losses need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from raykd.losses.divergences import easy_tokens
from raykd.losses.kinds import TokenLoss
from raykd.losses.tokens import IGNORE, Result, TokenBatch, teacher_uncertainty
from raykd.training.sharder import MicroBatch
from raykd.training.teachers import TeacherSource
from raykd.training.workers import from_all_workers, rank, sum_over_workers


def token_batch(micro_batch: MicroBatch, teacher: TeacherSource, device: torch.device) -> TokenBatch:
    """The labels (B, T) and weights of a micro-batch on the device, with the teacher's outputs for its K labels."""
    weights = None if micro_batch.weights_K is None else micro_batch.weights_K.to(device)
    return TokenBatch(micro_batch.labels_BT.to(device), teacher.outputs(micro_batch), weights)


def forward(
    student: Any, micro_batch: MicroBatch, losses: Sequence[TokenLoss], batch: TokenBatch, precision: str
) -> Result:
    """The losses of a micro-batch; `batch` is its `token_batch`, and `student` may be wrapped by `parallelised`."""
    device = batch.labels.device
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in micro_batch.inputs.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return student(inputs, losses, batch)


def easy_masks(
    batches: Iterable[TokenBatch], losses: Sequence[TokenLoss], shared_vocab_size: int | None
) -> list[torch.Tensor]:
    """For each micro-batch a mask (K,) of ATKD's easy tokens, on the CPU.

    Easy and hard tokens are separated over the micro-batches of all workers. `batches` is iterated once, so each batch
    may be freed before the next one is made.
    """
    uncertainties = [
        teacher_uncertainty(batch.teacher, batch.labels[batch.labels != IGNORE], shared_vocab_size).cpu().double()
        for batch in batches
    ]
    own = torch.cat([torch.zeros(0, dtype=torch.float64), *uncertainties])
    by_worker = from_all_workers(own)
    easy = easy_tokens(torch.cat(by_worker), next(loss.hard_share for loss in losses if loss.kind == "atkd"))
    start = sum(map(len, by_worker[: rank()]))
    return list(easy[start : start + len(own)].split([len(values) for values in uncertainties]))


def with_denominators(
    batches: Sequence[TokenBatch], losses: Sequence[TokenLoss], weight: float, shared_vocab_size: int | None
) -> tuple[list[TokenBatch], dict[str, float]]:
    """A step's token batches with ATKD's masks and the denominators of all terms; and the denominators by term.

    A term's denominator is the sum of its positions' weights over all workers: `weight`, for ATKD that of each group.
    """
    denominators = {loss.name: weight for loss in losses if loss.kind != "atkd"}
    if any(loss.kind == "atkd" for loss in losses):
        device, counts = batches[0].labels.device, torch.zeros(2, dtype=torch.float64)
        masks = easy_masks(batches, losses, shared_vocab_size)
        batches = [batch._replace(easy_mask_N=mask.to(device)) for batch, mask in zip(batches, masks, strict=True)]
        for batch, easy_K in zip(batches, masks, strict=True):
            weights_K = torch.ones(len(easy_K)) if batch.weights_N is None else batch.weights_N.cpu()
            counts += torch.stack([weights_K.double()[easy_K].sum(), weights_K.double()[~easy_K].sum()])
        denominators |= zip(("atkd_easy", "atkd_hard"), sum_over_workers(counts.to(device)).tolist(), strict=True)
    return [batch._replace(denominators=denominators) for batch in batches], denominators
