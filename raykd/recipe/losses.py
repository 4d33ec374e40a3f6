"""The losses that a recipe may name, and the section of a loss. Nothing here needs torch.

`raykd.losses.kinds.LOSSES` computes the losses; a test compares its names and properties with those here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field

from raykd.recipe.section import Section


class LossKind(NamedTuple):
    """The properties of a loss that recipes are checked against."""

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
USERS_OWN = LossKind(teacher=False)  # a user's own function, module:function


class Loss(Section):
    """A term of the training loss: its weight, and the settings of `raykd.losses.kinds.TokenLoss`."""

    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0, description="divides the logits of student and teacher")
    squared: bool | None = Field(
        default=None, description="multiply by the temperature squared; default: as the loss's paper has it"
    )
    easy_weight: float | None = Field(
        default=None, ge=0, le=1, description="for atkd only: the easy tokens' share of the loss; default: 0.2"
    )
    hard_share: float | None = Field(
        default=None, gt=0, lt=1, description="for atkd only: the share of tokens that are hard; default: 0.5"
    )
    options: dict[str, Any] = Field(
        default={}, description="arguments of the loss's function in raykd.losses.divergences"
    )
