"""The methods, and the settings of each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raykd.recipe.names import MetricName, PageName
from raykd.recipe.section import Section


class Distill(Section):
    """Sequence-level distillation (Kim and Rush 2016): the teacher writes pseudo-targets, the student learns them."""

    kind: Literal["distill"]
    overlap: bool = Field(
        default=False,
        description="train while the teacher still writes: in the first epoch, on what it has written so far",
    )


class ConsistencyFilter(Section):
    """Filter new pseudo-targets by their agreement with those of the previous round, which serve as references."""

    metric: MetricName = Field(
        description="a name in METRICS of a file of raykd.metrics, or module:NAME; higher must be better"
    )
    at_least: float | None = Field(default=None, description="pseudo-targets with a lower score are dropped")


class Mckd(Section):
    """Multistage collaborative distillation (Zhao et al., ACL 2024)."""

    kind: Literal["mckd"]
    partitions: int = Field(default=2, ge=2)
    stages: int = Field(default=2, ge=2, description="stages of students: stages - 1 rounds, then the final student")
    shares: list[float] | None = Field(
        default=None, description="the share of the inputs that each partition gets; default: equal shares"
    )
    relabel: Literal["next", "vote", "own"] = Field(
        default="next",
        description="which student labels a partition: next: the student of the next partition; vote: all students "
        "that did not learn it, by majority; own: the student that learned it, as an ablation",
    )
    warm_start: bool = Field(
        default=False,
        description="the students of a round start from those of the round before, not from student.model",
    )
    gold: bool = Field(default=False, description="every student learns the pairs of data.gold as well")
    exchange: Literal["text", "top_k"] = Field(
        default="text",
        description="what students learn from each other: texts, or also the 64 most likely tokens of each position",
    )
    consistency_filter: ConsistencyFilter | None = None
    weighting: Literal["confidence", "agreement"] | None = Field(
        default=None,
        description="the weight of a pseudo-target in the loss: confidence: its mean probability per token; agreement: "
        "its score in the consistency filter (where the teacher wrote it, its share of the vote); 1 if not known",
    )

    @model_validator(mode="after")
    def _fields_serve(self) -> Mckd:
        if self.warm_start and self.stages == 2:
            raise ValueError("warm_start does nothing with 2 stages: their one round has none before it")
        if self.shares is not None:
            if len(self.shares) != self.partitions or min(self.shares) <= 0:
                raise ValueError(f"shares: expected {self.partitions} numbers above 0, found {self.shares}")
        if self.relabel == "vote" and self.partitions == 2:
            raise ValueError("relabel: with 2 partitions one student alone never saw a partition: expected next")
        if self.exchange == "top_k":
            for name, is_set in (
                ("relabel: vote", self.relabel == "vote"),
                ("weighting", self.weighting),
                ("consistency_filter", self.consistency_filter),
                ("gold", self.gold),
            ):
                if is_set:
                    raise ValueError(f"{name} goes with exchange: text")
        if self.weighting == "agreement" and self.consistency_filter is None:
            raise ValueError("weighting: agreement needs consistency_filter.metric")
        if self.consistency_filter and self.consistency_filter.at_least is None and self.weighting != "agreement":
            raise ValueError("consistency_filter does nothing without at_least, or weighting: agreement")
        return self


class Own(Section):
    """A method of the user's: a page beside the recipe, or one in pipelines/ (docs/extending.md)."""

    kind: Literal["own"]
    page: PageName = Field(description="the module of its page")
    settings: dict[str, Any] = Field(default={}, description="what the page reads as session.recipe.method.settings")


Method = Annotated[Distill | Mckd | Own, Field(discriminator="kind")]
