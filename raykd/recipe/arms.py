"""TODO: docstring."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raykd.recipe.data import Rows
from raykd.recipe.section import Section


class GoldOnly(Section):
    """The control arm: the student without a teacher."""

    rows: Rows = Field(description="the pairs it may learn from")
    learning_rates: list[float] = Field(default=[], description="best on data.dev is kept; empty: the student's")
    settings: dict[str, Any] = Field(
        default={}, description="of the student's configuration, where the control fares better with others: dropout"
    )


class Arms(Section):
    """What is trained beside the method, to compare with."""

    gold_only: GoldOnly | None = None
    distilled: bool = Field(default=False, description="plain distillation, beside mckd")
