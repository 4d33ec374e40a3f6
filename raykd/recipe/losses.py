"""The losses that a recipe may name, and the section of one of them. Nothing here needs torch.

A test holds that the names here and what is said about them are those of `raykd.losses.kinds.LOSSES`, which computes
them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field

from raykd.recipe.section import Section


class LossKind(NamedTuple):
    """What a recipe has to know about a loss."""

    teacher: bool = True  # compares the student with its teacher's outputs
    regression: bool = False  # is for predicted numbers; every other is for logits


LOSSES = {
    "cross_entropy": LossKind(teacher=False),
    "soft_cross_entropy": LossKind(),
    "forward_kl": LossKind(),
    "reverse_kl": LossKind(),
    "jsd": LossKind(),
    "skewed_forward_kl": LossKind(),
    "skewed_reverse_kl": LossKind(),
    "symmetric_kl": LossKind(),
    "weighted_kl": LossKind(),
    "total_variation": LossKind(),
    "adaptive_kl": LossKind(),
    "nucleus_kl": LossKind(),
    "dkd": LossKind(),
    "atkd": LossKind(),
    "mse": LossKind(teacher=False, regression=True),
    "teacher_mse": LossKind(regression=True),
}
USERS_OWN = LossKind(teacher=False)  # a function of a user's, module:function


class Loss(Section):
    """A term of the training loss: its weight, and what `raykd.losses.kinds.TokenLoss` lets one choose."""

    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0, description="divides the logits of student and teacher")
    squared: bool | None = Field(
        default=None, description="multiply by the temperature squared; default: as the loss's paper has it"
    )
    easy_weight: float | None = Field(
        default=None, ge=0, le=1, description="of atkd only: the easy group's share of the loss; default: 0.2"
    )
    hard_share: float | None = Field(
        default=None, gt=0, lt=1, description="of atkd only: the share of tokens that is hard; default: 0.5"
    )
    options: dict[str, Any] = Field(
        default={}, description="arguments of the loss's function in raykd.losses.divergences"
    )
