"""A recipe: the whole description of a run, as frozen pydantic models, a file per section.

Every default is written once, in its section, with its unit. Loading a recipe imports neither torch nor Ray.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from raykd.recipe.arms import Arms
from raykd.recipe.cluster import Cluster
from raykd.recipe.data import Data
from raykd.recipe.methods import Method
from raykd.recipe.models import Tokenizer
from raykd.recipe.names import MetricName
from raykd.recipe.pseudo_targets import PseudoTargetRules
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.rules import RULES
from raykd.recipe.section import Section
from raykd.recipe.trackers import Tracker


class Recipe(Section):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the name of the run folder, in output")
    description: str = ""
    output: str = Field(default="runs", description="the folder of run folders and stores, or its URL")
    seed: int = 0
    modules: str | None = Field(
        default=None,
        description="the folder of the recipe's own modules; default: the recipe's folder, if it names a module there",
    )
    method: Method
    data: Data
    tokenizer: Tokenizer | None = Field(default=None, description="the tokenizer of models with random weights")
    teacher: Teacher
    student: Student
    pseudo_targets: PseudoTargetRules = PseudoTargetRules()
    arms: Arms = Arms()
    metrics: list[MetricName] = Field(
        default=[],
        description="metrics that score every arm: names in METRICS of a file of raykd.metrics, or module:NAME",
    )
    cluster: Cluster = Cluster()
    trackers: list[Tracker] = Field(
        default=[],
        description="trackers beside log.jsonl and TensorBoard that trainings log to; changes no result",
    )

    @model_validator(mode="after")
    def _follows_rules(self) -> Recipe:
        for rule in RULES:
            rule(self)
        return self
