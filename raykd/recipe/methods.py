"""TODO: docstring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raykd.recipe.section import Section


class Distill(Section):
    """Teacher, pseudo-targets, student (Kim and Rush 2016, sequence-level distillation)."""

    kind: Literal["distill"]
    overlap: bool = Field(default=False, description="train while the teacher still writes; the first epoch follows it")


class ConsistencyFilter(Section):
    """A new label is scored against the one before it, as if that were right."""

    metric: str = Field(description="a name in raykd.metrics.METRICS, or module:function; more must be better")
    at_least: float | None = Field(default=None, description="labels that score less are dropped")


class Mckd(Section):
    """Multistage collaborative distillation (Zhao et al., ACL 2024)."""

    kind: Literal["mckd"]
    partitions: int = Field(default=2, ge=2)
    stages: int = Field(default=2, ge=2, description="generations: stages - 1 rounds, then the final student")
    shares: list[float] | None = Field(default=None, description="of the inputs, by partition; default: equal ones")
    relabel: Literal["next", "vote", "own"] = Field(
        default="next",
        description="who labels a partition: the next one's student, a vote of all students that never saw it, or, as "
        "an ablation, its own",
    )
    warm_start: bool = Field(
        default=False, description="a round's students go on from those of the round before, instead of afresh"
    )
    gold: bool = Field(default=False, description="every student learns data.gold as well")
    exchange: Literal["text", "top_k"] = Field(
        default="text", description="what students tell each other: texts, or also their 64 most likely tokens"
    )
    consistency_filter: ConsistencyFilter | None = None
    weighting: Literal["confidence", "agreement"] | None = Field(
        default=None,
        description="what a label counts for: its mean probability per token, or its score in the consistency filter "
        "(of the teacher's labels their share of the vote); where neither is known, 1",
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
            given = {
                "relabel: vote": self.relabel == "vote",
                "weighting": self.weighting,
                "consistency_filter": self.consistency_filter,
            }
            given["gold"] = self.gold
            for name in (name for name, on in given.items() if on):
                raise ValueError(f"{name} goes with exchange: text")
        if self.weighting == "agreement" and self.consistency_filter is None:
            raise ValueError("weighting: agreement needs consistency_filter.metric")
        if self.consistency_filter and self.consistency_filter.at_least is None and self.weighting != "agreement":
            raise ValueError("consistency_filter does nothing without at_least, or weighting: agreement")
        return self


Method = Annotated[Distill | Mckd, Field(discriminator="kind")]
