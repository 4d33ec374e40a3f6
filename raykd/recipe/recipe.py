"""TODO: docstring."""

from __future__ import annotations

from pydantic import Field, model_validator

from raykd.recipe.arms import Arms
from raykd.recipe.cluster import Cluster
from raykd.recipe.data import Data
from raykd.recipe.methods import Distill, Mckd, Method
from raykd.recipe.models import Tokenizer
from raykd.recipe.pseudo_targets import PseudoTargetRules
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.section import Section
from raykd.recipe.trackers import Tracker


class Recipe(Section):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the run folder, below output")
    description: str = ""
    output: str = Field(default="runs", description="folder of run folders and stores, or a URL of one")
    seed: int = 0
    method: Method
    data: Data
    tokenizer: Tokenizer | None = Field(default=None, description="of models with random weights")
    teacher: Teacher
    student: Student
    pseudo_targets: PseudoTargetRules = PseudoTargetRules()
    arms: Arms = Arms()
    metrics: list[str] = Field(default=[], description="names in raykd.metrics.METRICS, or module:function")
    cluster: Cluster = Cluster()
    trackers: list[Tracker] = Field(
        default=[], description="where trainings log to, beside log.jsonl and TensorBoard; does not change the run"
    )

    @model_validator(mode="after")
    def _fields_serve(self) -> Recipe:
        from_config = [m for m in (self.teacher.model, self.student.model) if m.kind == "config"]
        if from_config and self.tokenizer is None:
            raise ValueError("a model of kind config needs the section tokenizer")
        if self.tokenizer is not None and not from_config:
            raise ValueError("tokenizer does nothing: both models are pretrained and bring their own")
        if self.teacher.fine_tune and self.data.gold is None:
            raise ValueError("teacher.fine_tune needs data.gold")
        sequences = self.student.training.sequences.kind
        if self.data.gold is None and sequences in ("gold", "mixture"):
            raise ValueError(f"student.training.sequences: kind {sequences} needs data.gold")
        mixed = isinstance(self.method, Mckd) and self.method.gold
        if mixed and self.data.gold is None:
            raise ValueError("method.gold needs data.gold")
        if self.data.gold is not None and not self.teacher.fine_tune and sequences == "pseudo_targets" and not mixed:
            raise ValueError("data.gold does nothing without teacher.fine_tune")
        if self.pseudo_targets.vote and self.teacher.sampling.n < 2:
            raise ValueError("pseudo_targets.vote: a vote needs teacher.sampling.n of 2 or more")
        if self.pseudo_targets.chosen() and self.student.training.needs_teacher():
            if self.student.training.teacher.kind == "store":
                raise ValueError(
                    "pseudo_targets: what is chosen are texts: student.training.teacher in_process or remote"
                )
        if self.pseudo_targets.chosen() and sequences != "pseudo_targets":
            raise ValueError(f"pseudo_targets: chosen ones are learnt as pseudo_targets, found sequences: {sequences}")
        if self.pseudo_targets.chosen() and isinstance(self.method, Distill) and self.method.overlap:
            raise ValueError(
                "method.overlap: pseudo-targets are chosen when all are there: no pseudo_targets.vote, retries, invalid"
            )
        if self.student.training.needs_teacher() and self.teacher.model.kind == "endpoint":
            raise ValueError("student.training.losses: a teacher behind an endpoint gives texts alone")
        if self.teacher.fine_tune and self.teacher.fine_tune.needs_teacher():
            raise ValueError("teacher.fine_tune.losses: a teacher that is fine-tuned has no teacher")
        if self.method.kind == "mckd" and sequences != "pseudo_targets":
            raise ValueError(f"student.training.sequences: mckd learns pseudo_targets, found {sequences}")
        if isinstance(self.method, Mckd):
            soft = self.method.exchange == "top_k"
            stored = self.student.training.needs_teacher() and self.student.training.teacher.kind == "store"
            if stored and not soft:
                raise ValueError(
                    "student.training.teacher: mckd's rows are texts: kind in_process or remote, found store, "
                    "which goes with method.exchange: top_k"
                )
            if self.method.weighting == "confidence" and self.student.task == "regression":
                raise ValueError("method.weighting: confidence is a probability, and a regression has none")
            if soft and not stored:
                raise ValueError(
                    "method.exchange: top_k needs student.training.losses on probabilities, from teacher: {kind: store}"
                )
        if self.student.training.needs_teacher() and self.student.task != self.teacher.task:
            raise ValueError(f"teacher.task: expected {self.student.task}, the student's, found {self.teacher.task}")
        if sequences == "mixture" and self.student.training.needs_teacher():
            if self.student.training.teacher.kind == "store":
                raise ValueError("student.training.teacher: gold targets are not in the store: in_process or remote")
        if self.teacher.model.kind == "config" and not self.teacher.fine_tune:
            raise ValueError("a teacher of kind config has random weights: it needs teacher.fine_tune")
        if self.teacher.model.kind == "pruned" and not self.teacher.fine_tune:
            raise ValueError("a teacher of kind pruned lacks layers it was trained with: it needs teacher.fine_tune")
        if self.teacher.labels and self.student.labels and self.teacher.labels != self.student.labels:
            raise ValueError(
                f"teacher.labels {self.teacher.labels} and student.labels {self.student.labels} must be the same"
            )
        if self.arms.distilled and self.method.kind == "distill":
            raise ValueError("arms.distilled does nothing: the method is distill already")
        if self.arms.gold_only and self.data.dev is None:
            raise ValueError("arms.gold_only needs data.dev to choose its checkpoint")
        if self.arms.gold_only and self.arms.gold_only.settings and self.student.model.kind != "config":
            raise ValueError("arms.gold_only.settings do nothing: student.model is pretrained")
        if self.data.test is not None and not self.metrics:
            raise ValueError("data.test does nothing without metrics")
        if self.metrics and self.data.test is None:
            raise ValueError("metrics do nothing without data.test")
        parallel = getattr(self.teacher.engine, "arguments", {}).get("tensor_parallel_size", 1)
        if parallel > 1 and self.cluster.teacher.resources.get("GPU", 0) not in (0, parallel):
            raise ValueError(
                f"cluster.teacher.resources.GPU: expected {parallel}, the engine's tensor_parallel_size, "
                f"found {self.cluster.teacher.resources['GPU']:g}"
            )
        if self.teacher.sampling.seeded and self.teacher.engine.kind == "transformers":
            raise ValueError("teacher.sampling.seeded: only vllm seeds each sample, the engine is transformers")
        if self.student.sampling.n > 1:
            raise ValueError("student.sampling.n does nothing above 1: a student answers once")
        kinds = [tracker.kind for tracker in self.trackers]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"trackers: {max(kinds, key=kinds.count)} is given twice")
        return self
