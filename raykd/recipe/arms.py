"""The section `arms`: further students, with which the method is compared."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

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

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        others = [str(name) for name in value if name not in cls.model_fields] if isinstance(value, dict) else []
        if others:
            raise ValueError(
                f"arms of changed fields are not trained yet: expected {' or '.join(cls.model_fields)}, "
                f"found {', '.join(others):.80}"
            )
        return value
