"""A recipe: the whole description of a run, as frozen pydantic models, a file per section.

Every default is written once, in its section, with its unit. Loading a recipe imports neither torch nor Ray.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from raykd.recipe.arms import Arms
from raykd.recipe.cluster import Cluster
from raykd.recipe.data import Data
from raykd.recipe.methods import Method
from raykd.recipe.metrics import Metrics
from raykd.recipe.models import Tokenizer
from raykd.recipe.named import check_one_named
from raykd.recipe.pseudo_targets import PseudoTargetRules
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.rules import RULES
from raykd.recipe.rules_early import EARLY_RULES
from raykd.recipe.rules_training import TRAINING_RULES
from raykd.recipe.section import Section
from raykd.recipe.trackers import Tracker


class Recipe(Section):
    """One run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="the name of the run folder, in output"
    )
    description: str = ""
    output: str = Field(default="runs", description="the folder of run folders and stores, or its URL")
    seed: int = Field(default=0, ge=0, lt=2**32)
    modules: str | None = Field(
        default=None,
        description="the folder of the recipe's own modules; default: the recipe's folder, if it names a module there",
    )
    method: Method
    data: Data
    tokenizer: Tokenizer | None = Field(default=None, description="the tokenizer of models with random weights")
    teachers: dict[str, Teacher] = Field(description="the teacher, by a name; one so far")
    student: Student
    pseudo_targets: PseudoTargetRules = PseudoTargetRules()
    arms: Arms = Arms()
    metrics: Metrics = Field(default=[], description="metrics that score every arm on the test rows")
    cluster: Cluster = Cluster()
    trackers: list[Tracker] = Field(
        default=[],
        description="trackers beside log.jsonl and TensorBoard that trainings log to; changes no result",
    )

    @field_validator("teachers", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        check_one_named(value, "teacher", "main: {model: {kind: checkpoint, path: big}}")
        return value

    @model_validator(mode="after")
    def _follows_rules(self) -> Recipe:
        for rule in (*EARLY_RULES, *TRAINING_RULES, *RULES):
            rule(self)
        return self

    @property
    def teacher_name(self) -> str:
        """The name of the one teacher."""
        return next(iter(self.teachers))

    @property
    def teacher(self) -> Teacher:
        """The one teacher."""
        return self.teachers[self.teacher_name]
