"""The section `arms`: further students, with which the method is compared."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raykd.recipe.data import Rows
from raykd.recipe.section import Section


class GoldOnly(Section):
    """The control arm: the student learns gold pairs alone, without a teacher."""

    rows: Rows = Field(description="the gold pairs that it learns")
    learning_rates: list[float] = Field(
        default=[], description="each is tried, and the best on data.dev is evaluated; empty: the student's"
    )
    settings: dict[str, Any] = Field(
        default={}, description="changes to student.model.settings for this arm, for example another dropout"
    )


class Arms(Section):
    """Further students of the same run."""

    gold_only: GoldOnly | None = None
    distilled: bool = Field(default=False, description="with mckd: a student of plain distillation as well")
