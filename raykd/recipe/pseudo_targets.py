"""The section `pseudo_targets`: which pseudo-targets a student learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raykd.recipe.names import FormatName
from raykd.recipe.section import Section


class PseudoTargetRules(Section):
    """The format of pseudo-targets, and how those that a student learns are selected."""

    format: FormatName = Field(
        default="text",
        description="a name in FORMATS of a file of raykd.data.tasks, labels (student.labels), or module:NAME",
    )
    invalid: Literal["keep", "drop", "repair"] = Field(
        default="keep",
        description="what happens to a pseudo-target without the format; all such ones are counted",
    )
    retries: int = Field(
        default=0,
        ge=0,
        description="how often the teacher labels an input again if none of its samples has the format",
    )
    retry_temperature: float = Field(default=0.7, gt=0, description="sampling temperature of retries")
    vote: bool = Field(
        default=False,
        description="learn the most frequent of the teacher's samples (self-consistency, Wang et al. 2023)",
    )

    @model_validator(mode="after")
    def _fields_serve(self) -> PseudoTargetRules:
        if self.format == "text" and (self.invalid != "keep" or self.retries):
            raise ValueError("invalid and retries do nothing: every text is of the format text")
        if not self.is_default("retry_temperature") and not self.retries:
            raise ValueError("retry_temperature does nothing without retries")
        return self

    def selects(self) -> bool:
        """Whether these rules change or drop pseudo-targets before a student learns them."""
        return self.vote or self.retries > 0 or self.invalid != "keep"
