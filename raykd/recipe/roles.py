"""The two roles of a run: the teacher and the student. What a role may not combine is in `rules`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from raykd.recipe.generation import AutoPayload, Engine, Payload, Sampling, TransformersEngine, VllmEngine
from raykd.recipe.models import Model, Push, Task, TeacherModel
from raykd.recipe.named import check_one_named
from raykd.recipe.prompts import Prompt
from raykd.recipe.section import Section
from raykd.recipe.training import Training

OTHER_SEQUENCES = ("gold", "student", "teacher")  # sequences of a training that no pass writes


class Teacher(Section):
    """The model that writes pseudo-targets, and whose outputs losses may read."""

    model: TeacherModel
    task: Task = Field(
        default="generation",
        description="extractive_qa: extractive question answering, whose target is a span of the input",
    )
    labels: list[str] | None = Field(
        default=None, description="for a classification: the names of its classes, in order"
    )
    fine_tune: Training | None = Field(default=None, description="train the teacher on data.gold first")
    prompt: Prompt = Field(
        default="{input}", description="a template around each input, or a section of kind completion or chat"
    )
    engine: Engine = VllmEngine(kind="vllm")
    passes: dict[str, Sampling] = Field(
        default={"pseudo_targets": Sampling()}, description="how it writes pseudo-targets, by a name; one pass so far"
    )
    answering: Sampling | None = Field(
        default=None,
        description="how it answers the test rows; default: as in its pass, but one answer at temperature 0",
    )
    payload: Payload = AutoPayload(kind="auto")
    store: str | None = Field(
        default=None,
        description="the store of its pseudo-targets, which must fit the recipe; default: by content, in output/stores",
    )
    shard_rows: int = Field(
        default=1024,
        ge=1,
        description="inputs per shard of the store; a run that is killed loses the shards that are not complete",
    )
    licence: str = "not stated"

    @field_validator("passes", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        check_one_named(value, "pass", "pseudo_targets: {n: 4, temperature: 1.0}")
        for name in value if isinstance(value, dict) else ():
            if name in OTHER_SEQUENCES:
                raise ValueError(f"{name} names other sequences of a training: expected another name for the pass")
        return value

    @field_validator("answering")
    @classmethod
    def _one_answer(cls, value: Sampling | None) -> Sampling | None:
        if value is not None and value.n != 1:
            raise ValueError(f"expected n: 1, a test row is answered once, found n: {value.n}")
        return value

    @property
    def pass_name(self) -> str:
        """The name of its one pass."""
        return next(iter(self.passes))

    @property
    def sampling(self) -> Sampling:
        """How it writes pseudo-targets: the sampling of its one pass."""
        return self.passes[self.pass_name]

    def with_sampling(self, sampling: Sampling) -> Teacher:
        """This teacher with another sampling.

        A store that the recipe names is kept only where at most the number of samples differs.
        """
        same_store = sampling.model_copy(update={"n": self.sampling.n}) == self.sampling
        changes = {"passes": {self.pass_name: sampling}, "store": self.store if same_store else None}
        return self.model_copy(update=changes)

    def answering_sampling(self) -> Sampling:
        """How it answers the test rows, by which it is scored."""
        if self.answering is not None:
            return self.answering
        greedy = {"n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seeded": False}
        return self.sampling.model_copy(update=greedy)

    def answers_as_it_labels(self) -> bool:
        """Whether its pass answers test rows as well, because both are decoded alike."""
        return self.answering_sampling() == self.sampling


class Student(Section):
    """The model that is trained, and then deployed."""

    model: Model
    task: Task = Field(
        default="generation",
        description="extractive_qa: extractive question answering, whose target is a span of the input",
    )
    labels: list[str] | None = Field(
        default=None, description="for a classification: the names of its classes, in order"
    )
    training: Training
    prompt: Prompt = Field(
        default="{input}", description="a template around each input, or a section of kind completion or chat"
    )
    engine: Engine = TransformersEngine(kind="transformers")
    sampling: Sampling = Sampling()
    shard_rows: int = Field(
        default=4096,
        ge=1,
        description="inputs per shard of the store; a run that is killed loses the shards that are not complete",
    )
    push_to_hub: Push | None = Field(default=None, description="publish the student and its card")
