"""The losses of a training, built from its recipe section."""

from __future__ import annotations

import importlib
from typing import Any

from raykd.errors import RecipeError
from raykd.losses.loss import Loss, make_loss
from raykd.recipe.losses import LogitsLoss
from raykd.recipe.losses import Loss as LossSection
from raykd.recipe.training import Training


def build_losses(settings: Training) -> list[Loss]:
    """The training's losses. Raises RecipeError, in one line, for a user's own that is missing or is no loss."""
    return [build_loss(name, section) for name, section in settings.losses.items()]


def build_loss(name: str, section: LossSection) -> Loss:
    """The loss of a section, by its name. Raises RecipeError for a user's own that is missing or is no loss."""
    common: dict[str, Any] = {"weight": section.weight}
    if isinstance(section, LogitsLoss):
        common |= {"temperature": section.temperature, "squared": section.squared}
    module, _, attribute = section.implementation().partition(":")
    try:
        loss = make_loss(getattr(importlib.import_module(module), attribute), name, **common, **section.arguments())
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise RecipeError(f"losses.{name}: {section.implementation()}: {str(error).splitlines()[0]}") from None
    if bool(loss.needs & {"teacher", "features"}) != section.reads_teacher():
        reads = "compares" if loss.needs & {"teacher", "features"} else "does not compare"
        raise RecipeError(
            f"losses.{name}: {section.implementation()} {reads} with the teacher's outputs: set teacher_outputs: "
            f"{str(not section.reads_teacher()).lower()}"
        )
    return loss
