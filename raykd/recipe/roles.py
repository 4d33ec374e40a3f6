"""TODO: docstring."""

from __future__ import annotations

from pydantic import Field, model_validator

from raykd.recipe.generation import AutoPayload, Engine, Payload, Sampling, TransformersEngine, VllmEngine
from raykd.recipe.losses import NUMBER_LOSSES
from raykd.recipe.models import Model, Push, Task, TeacherModel
from raykd.recipe.prompts import Prompt
from raykd.recipe.section import Section
from raykd.recipe.training import Training


def _labels_serve(task: Task, labels: list[str] | None) -> None:
    if task != "classification":
        if labels is not None:
            raise ValueError(f"labels do nothing: the task is {task}")
    elif labels is None:
        raise ValueError("a classification needs labels, the names of its classes in order")
    elif len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"labels: expected two names or more, all different, found {labels}")


def _task_serves(task: Task, engine: Engine, sampling: Sampling) -> None:
    if task == "generation":
        return
    if engine.kind == "vllm":
        raise ValueError(f"engine: expected kind transformers for a model whose task is {task}, found vllm")
    if sampling != Sampling():
        raise ValueError(f"sampling does nothing: a model whose task is {task} answers once")


def _losses_serve(task: Task, training: Training) -> None:
    for name in training.losses:
        if (name in NUMBER_LOSSES) != (task == "regression"):
            known = " and ".join(NUMBER_LOSSES) if task == "regression" else "those on logits"
            raise ValueError(f"losses of a {task} are {known}, found {name}")
    if task != "generation" and training.needs_teacher() and training.teacher.kind != "in_process":
        raise ValueError(f"training.teacher: expected kind in_process for a {task}, found {training.teacher.kind}")


class Teacher(Section):
    """The model that writes pseudo-targets."""

    model: TeacherModel
    task: Task = Field(default="generation", description="extractive_qa: extractive question answering")
    labels: list[str] | None = Field(
        default=None, description="of a classification: the names of its classes, in order"
    )
    fine_tune: Training | None = Field(default=None, description="train it on data.gold first")
    prompt: Prompt = Field(default="{input}", description="a template around each input, or a section")
    engine: Engine = VllmEngine(kind="vllm")
    sampling: Sampling = Sampling()
    payload: Payload = AutoPayload(kind="auto")
    store: str | None = Field(
        default=None, description="the store to use, which must fit; default: found by content below output/stores"
    )
    shard_rows: int = Field(default=1024, ge=1, description="inputs per shard of the store: what a kill can cost")
    licence: str = "not stated"

    @model_validator(mode="after")
    def _fields_serve(self) -> Teacher:
        _labels_serve(self.task, self.labels)
        _task_serves(self.task, self.engine, self.sampling)
        if self.fine_tune:
            _losses_serve(self.task, self.fine_tune)
        if (self.model.kind == "endpoint") != (self.engine.kind == "endpoint"):
            raise ValueError(
                f"model of kind endpoint and engine of kind endpoint go together, found {self.model.kind}"
                f" and {self.engine.kind}"
            )
        if self.model.kind == "endpoint" and self.fine_tune:
            raise ValueError("fine_tune: a model behind an endpoint cannot be trained here")
        if self.engine.kind == "endpoint" and self.payload.kind not in ("auto", "text"):
            raise ValueError(f"payload: an endpoint gives texts, found {self.payload.kind}")
        return self


class Student(Section):
    """The model that is trained, and deployed."""

    model: Model
    task: Task = Field(default="generation", description="extractive_qa: extractive question answering")
    labels: list[str] | None = Field(
        default=None, description="of a classification: the names of its classes, in order"
    )
    training: Training
    prompt: Prompt = Field(default="{input}", description="a template around each input, or a section")
    engine: Engine = TransformersEngine(kind="transformers")
    sampling: Sampling = Sampling()
    shard_rows: int = Field(default=4096, ge=1, description="inputs per shard of the store: what a kill can cost")
    push_to_hub: Push | None = Field(default=None, description="publish the student and its card")

    @model_validator(mode="after")
    def _fields_serve(self) -> Student:
        _labels_serve(self.task, self.labels)
        _task_serves(self.task, self.engine, self.sampling)
        _losses_serve(self.task, self.training)
        if self.engine.kind == "endpoint":
            raise ValueError("engine: a student answers here, found kind endpoint")
        return self
