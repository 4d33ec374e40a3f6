"""Losses on predicted numbers: a regression, with targets, a teacher's predictions, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from raykd.losses.logits import wide
from raykd.losses.tokens import Result, Term, TokenLoss

LOSSES = ("mse", "teacher_mse")  # against the target, against the teacher's prediction


def number_losses(
    losses: Sequence[TokenLoss],
    student_N: torch.Tensor,
    targets_N: torch.Tensor,
    teacher: torch.Tensor | None = None,
    *,
    weights_N: torch.Tensor | None = None,
    denominators: Mapping[str, float | torch.Tensor] | None = None,
) -> Result:
    """Squared errors of N predictions, put together as `token_losses` does it: weights, denominators and terms alike.

    teacher holds N predictions. Arithmetic is in float32, or in float64 where the predictions are. Raises ValueError
    for a loss that is not one of LOSSES or has a temperature, and for sides of different sizes.
    """
    names = [loss.name for loss in losses]
    if not names or len(set(names)) < len(names) or not set(names) <= set(LOSSES):
        raise ValueError(f"losses of a regression are {' and '.join(LOSSES)}, not {', '.join(names) or 'none'}")
    if any(loss.temperature != 1 for loss in losses):
        raise ValueError("the losses of a regression have no temperature")
    if "teacher_mse" in names and teacher is None:
        raise ValueError("teacher_mse needs the teacher's side")
    student_N = wide(student_N)
    weights = torch.ones_like(student_N) if weights_N is None else weights_N.to(student_N.dtype)
    total, terms, values = student_N.new_zeros(()), {}, {}
    for loss in losses:
        against = targets_N if loss.name == "mse" else teacher
        assert against is not None
        if against.numel() != len(student_N):
            raise ValueError(f"{loss.name}: {len(student_N)} predictions against {against.numel()} numbers")
        error_N = (student_N - against.flatten().detach().to(student_N.dtype)).square()
        value = (error_N * weights).sum()
        over = (denominators or {loss.name: weights.sum()})[loss.name]
        over = torch.as_tensor(over, dtype=student_N.dtype, device=student_N.device)
        total = total + value * torch.where(over > 0, loss.weight / over, 0.0)
        terms[loss.name] = Term(value.detach(), weights.sum())
        values[loss.name] = error_N.detach().masked_fill(weights == 0, 0.0)
    return Result(total, terms, values)
