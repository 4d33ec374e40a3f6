"""Losses by the names that recipes have for them, for tests."""

from typing import Any

from raykd.losses.loss import Loss
from raykd.recipe.losses import LOSSES
from raykd.training.losses import build_loss


def token_loss(kind: str, **fields: Any) -> Loss:
    """The loss of a kind with these fields of its section; those that are None have their default."""
    fields = {name: value for name, value in fields.items() if value is not None}
    return build_loss(kind, LOSSES[kind].model_validate({"kind": kind, **fields}))
