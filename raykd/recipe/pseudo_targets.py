"""TODO: docstring."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raykd.recipe.section import Section

RETRY_TEMPERATURE = 0.7


class PseudoTargetRules(Section):
    """What a right answer looks like, and what becomes of answers before a student learns them."""

    format: str = Field(
        default="text",
        description="a name in raykd.data.tasks.formats.FORMATS, labels (those of the student), or module:name",
    )
    invalid: Literal["keep", "drop", "repair"] = Field(
        default="keep", description="what becomes of an answer that is not of the format; all are counted"
    )
    retries: int = Field(default=0, ge=0, description="times that the teacher is asked again after an invalid answer")
    retry_temperature: float = Field(default=RETRY_TEMPERATURE, gt=0)
    vote: bool = Field(
        default=False, description="of the teacher's samples the most frequent one (self-consistency, Wang et al. 2023)"
    )

    @model_validator(mode="after")
    def _fields_serve(self) -> PseudoTargetRules:
        if self.format == "text" and (self.invalid != "keep" or self.retries):
            raise ValueError("invalid and retries do nothing: every text is of the format text")
        if self.retry_temperature != RETRY_TEMPERATURE and not self.retries:
            raise ValueError("retry_temperature does nothing without retries")
        return self

    def chosen(self) -> bool:
        """Whether answers are learnt otherwise than as they come."""
        return self.vote or self.retries > 0 or self.invalid != "keep"
