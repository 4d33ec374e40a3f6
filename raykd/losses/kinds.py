"""Which losses there are, and the settings of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from raykd.losses import divergences


class Kind(NamedTuple):
    """How a loss is computed: `values(student_NE[, teacher_NE][, at_N], **options)`, see `divergences`.

    Of a regression: `values(student_N, targets_N)`, where the targets are the labels, or the teacher's predictions.
    """

    values: Callable[..., Any]
    teacher: bool = True  # needs the teacher's outputs
    target: bool = False  # needs the target token
    squared: bool = False  # its paper multiplies by the temperature squared
    regression: bool = False  # is for predicted numbers; every other is for distributions


LOSSES = {
    "cross_entropy": Kind(divergences.cross_entropy, teacher=False, target=True),
    "soft_cross_entropy": Kind(divergences.soft_cross_entropy, squared=True),
    "forward_kl": Kind(divergences.forward_kl, squared=True),
    "reverse_kl": Kind(divergences.reverse_kl),
    "jsd": Kind(divergences.jsd),
    "skewed_forward_kl": Kind(divergences.skewed_forward_kl),
    "skewed_reverse_kl": Kind(divergences.skewed_reverse_kl),
    "symmetric_kl": Kind(divergences.symmetric_kl),
    "weighted_kl": Kind(divergences.weighted_kl),
    "total_variation": Kind(divergences.total_variation),
    "adaptive_kl": Kind(divergences.adaptive_kl),
    "nucleus_kl": Kind(divergences.nucleus_kl, squared=True),
    "dkd": Kind(divergences.dkd, target=True, squared=True),
    "atkd": Kind(divergences.atkd, target=True),
    "mse": Kind(divergences.squared_error, teacher=False, target=True, regression=True),
    "teacher_mse": Kind(divergences.squared_error, regression=True),
}


@dataclass(frozen=True)
class TokenLoss:
    """One loss of a training.

    kind         a name in LOSSES, or a user's own Kind, whose term is named by its function
    weight       what its term is multiplied by in the total
    temperature  divides student's and teacher's logits
    squared      whether values are multiplied by the temperature squared; None: as its paper has it (Kind.squared)
    easy_weight  atkd alone: the easy group's share of the loss, lambda
    hard_share   atkd alone: the share of tokens that is hard, k
    options      those of its function in `divergences`
    """

    kind: str | Kind = "forward_kl"
    weight: float = 1.0
    temperature: float = 1.0
    squared: bool | None = None
    easy_weight: float = 0.2
    hard_share: float = 0.5
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind if isinstance(self.kind, str) else self.kind.values.__name__

    @property
    def definition(self) -> Kind:
        return LOSSES[self.kind] if isinstance(self.kind, str) else self.kind

    @property
    def factors(self) -> dict[str, float]:
        """Its terms by name: what the mean of each is multiplied by in the total."""
        if self.kind != "atkd":
            return {self.name: self.weight}
        easy = self.easy_weight
        return {"atkd_easy": self.weight * easy, "atkd_hard": self.weight * (1 - easy)}

    def position_weights(self, weights_N: torch.Tensor, easy_mask_N: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Its terms by name: what each position counts for in them, (N,), of what it counts for in the batch."""
        if self.kind != "atkd":
            return {self.name: weights_N}
        assert easy_mask_N is not None
        return {"atkd_easy": weights_N * easy_mask_N, "atkd_hard": weights_N * ~easy_mask_N}
