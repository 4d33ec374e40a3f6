"""Losses on predicted numbers: a regression, with labels, a teacher's predictions, or both."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raykd.losses.logits import wide
from raykd.losses.loss import FunctionLoss, Loss
from raykd.losses.tokens import Result, Term, TokenBatch, over_denominator


def number_losses(losses: Sequence[Loss], student_N: torch.Tensor, batch: TokenBatch) -> Result:
    """Squared errors of N predictions, put together as `token_losses` does it: weights, denominators and terms alike.

    The batch's labels are N numbers, and its teacher is N predictions. Arithmetic is in float32, or in float64 where
    the predictions are. Raises ValueError for a loss that is not one of a regression or has a temperature, and for a
    teacher that is missing or has another number of predictions.
    """
    _check(losses, batch)
    student_N = wide(student_N)
    weights_N = torch.ones_like(student_N) if batch.weights_N is None else batch.weights_N.to(student_N.dtype)
    total, terms, values = student_N.new_zeros(()), {}, {}
    for loss in losses:
        assert isinstance(loss.loss, FunctionLoss)
        targets = {
            "target": batch.labels,
            **({"teacher": batch.teacher} if isinstance(batch.teacher, torch.Tensor) else {}),
        }
        numbers = {need: targets[need].flatten().detach().to(student_N.dtype) for need in loss.needs}
        for of_need in numbers.values():
            if len(of_need) != len(student_N):
                raise ValueError(f"{loss.name}: {len(student_N)} predictions against {len(of_need)} numbers")
        error_N = loss.loss.number_values(student_N, numbers)
        value, count = (error_N * weights_N).sum(), weights_N.sum()
        denominator = (batch.denominators or {loss.name: count})[loss.name]
        total = total + value * over_denominator(loss.weight, denominator, student_N)
        terms[loss.name] = Term(value.detach(), count)
        values[loss.name] = error_N.detach().masked_fill(weights_N == 0, 0.0)
    return Result(total, terms, values)


def _check(losses: Sequence[Loss], batch: TokenBatch) -> None:
    """Raises ValueError, in one line, for losses that a regression cannot have."""
    names = [loss.name for loss in losses]
    if not names or len(set(names)) < len(names) or not all(loss.of_numbers for loss in losses):
        raise ValueError(f"losses of a regression are mse and teacher_mse, not {', '.join(names) or 'none'}")
    if any(loss.temperature != 1 for loss in losses):
        raise ValueError("the losses of a regression have no temperature")
    for loss in losses:
        if "teacher" in loss.needs and batch.teacher is None:
            raise ValueError(f"{loss.name} needs the teacher's side")
