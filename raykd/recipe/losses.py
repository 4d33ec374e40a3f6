"""TODO: docstring."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raykd.recipe.section import Section

LOSSES = (
    *("cross_entropy", "soft_cross_entropy", "forward_kl", "reverse_kl", "jsd", "skewed_forward_kl"),
    *(
        "skewed_reverse_kl",
        "symmetric_kl",
        "weighted_kl",
        "total_variation",
        "adaptive_kl",
        "nucleus_kl",
        "dkd",
        "atkd",
    ),
)
NUMBER_LOSSES = ("mse", "teacher_mse")  # of a regression
WITHOUT_TEACHER = ("cross_entropy", "mse")


class Loss(Section):
    """A term of the training loss: its weight, and what `raykd.losses.tokens.TokenLoss` lets one choose."""

    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    squared: bool | None = Field(default=None, description="times temperature squared; default: as its paper has it")
    easy_weight: float | None = Field(
        default=None, ge=0, le=1, description="atkd alone: the easy group's share of the loss, 0.2 unless given"
    )
    hard_share: float | None = Field(
        default=None, gt=0, lt=1, description="atkd alone: the share of tokens that is hard, 0.5 unless given"
    )
    options: dict[str, Any] = Field(default={}, description="those of its function in raykd.losses.divergences")
