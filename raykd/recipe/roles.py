"""The two roles of a run: the teacher and the student. What a role may not combine is in `rules`."""

from __future__ import annotations

from pydantic import Field

from raykd.recipe.generation import AutoPayload, Engine, Payload, Sampling, TransformersEngine, VllmEngine
from raykd.recipe.models import Model, Push, Task, TeacherModel
from raykd.recipe.prompts import Prompt
from raykd.recipe.section import Section
from raykd.recipe.training import Training


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
    sampling: Sampling = Sampling()
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
