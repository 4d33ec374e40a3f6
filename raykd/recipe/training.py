"""How a model is trained: its losses, the targets that it learns, the source of its teacher's outputs."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raykd.recipe.losses import LOSSES, USERS_OWN, Loss
from raykd.recipe.models import Lora
from raykd.recipe.names import MetricName
from raykd.recipe.section import Section

USERS_LOSS = re.compile(r"[\w.]+:\w+")
WITHOUT_OPTIONS = ("constant", "constant_with_warmup")  # schedules to which transformers passes no options
ATKD_ONLY = ("easy_weight", "hard_share")
LOGITS_ONLY = ("temperature", "squared", "options")


class Gold(Section):
    """Train on the gold targets of the rows."""

    kind: Literal["gold"]


class PseudoTargets(Section):
    """Train on what the teacher wrote."""

    kind: Literal["pseudo_targets"]
    samples: Literal["rotate", "all"] = Field(
        default="rotate",
        description="for several samples of an input: rotate: each epoch the next one (KD4Gen); all: every epoch all",
    )


class Mixture(Section):
    """Gold targets and pseudo-targets of the same inputs: the teacher labels the inputs of data.gold as well."""

    kind: Literal["mixture"]
    gold: float = Field(
        gt=0, lt=1, description="share of the inputs of data.gold that learn their gold target, in each epoch"
    )
    by: Literal["request", "ratio"] = Field(
        default="request",
        description="request: each input is drawn with this probability; ratio: exactly this share of inputs is drawn",
    )


Sequences = Annotated[Gold | PseudoTargets | Mixture, Field(discriminator="kind")]


class StoredOutputs(Section):
    """The teacher's outputs are read from the store, where the teacher pass recorded them (teacher.payload)."""

    kind: Literal["store"]
    tail: Literal["bucket", "renormalise", "refuse"] = Field(
        default="bucket",
        description="the probability outside a stored top-k: bucket: one event for all other tokens; renormalise: "
        "spread over the top-k; refuse: an error",
    )


class InProcessOutputs(Section):
    """A frozen teacher in the process of each worker."""

    kind: Literal["in_process"]
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"


class RemoteOutputs(Section):
    """Teachers in actors of their own (cluster.teacher), which send their top-k while the student trains."""

    kind: Literal["remote"]
    k: int = Field(default=64, ge=1, description="most likely tokens per position")
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"
    tail: Literal["bucket", "renormalise", "refuse"] = Field(default="bucket", description="as in kind store")


OutputsSource = Annotated[StoredOutputs | InProcessOutputs | RemoteOutputs, Field(discriminator="kind")]


class Training(Section):
    """How one model is trained."""

    learning_rate: float = Field(gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="optimizer steps; give this or epochs")
    epochs: float | None = Field(default=None, gt=0, description="passes over the rows; give this or max_steps")
    batch_tokens: int = Field(
        default=2048, ge=1, description="padded tokens of a global batch at most, inputs and targets together"
    )
    micro_batch_tokens: int | None = Field(
        default=None, ge=1, description="padded tokens that a worker processes at once; default: its share of the batch"
    )
    losses: dict[str, Loss] = Field(
        default={"cross_entropy": Loss()},
        min_length=1,
        description="by name; or module:function, a function of log-probabilities: (student_NV, targets_N) -> values_N",
    )
    reduction: Literal["tokens", "sequences"] = Field(
        default="tokens",
        description="tokens: a term is a mean over tokens; sequences: over sequences, of their token means (KD4Gen)",
    )
    sequences: Sequences = PseudoTargets(kind="pseudo_targets")
    teacher: OutputsSource = StoredOutputs(kind="store")
    schedule: str = Field(default="linear", description="a name of `transformers.get_scheduler`")
    schedule_options: dict[str, Any] = Field(default={}, description="passed to `get_scheduler` as they are")
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="share of the steps in which the rate rises")
    weight_decay: float = Field(default=0.01, ge=0, description="weight decay of AdamW; vectors and norms have none")
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_input_tokens: int = Field(default=512, ge=1, description="an input that is longer is a bad row")
    max_target_tokens: int = Field(default=128, ge=1, description="a target that is longer: see long_targets")
    long_targets: Literal["refuse", "cut"] = Field(
        default="refuse",
        description="a target that is too long: refuse: a bad row; cut: shortened, without end token; both are counted",
    )
    empty_targets: Literal["refuse", "keep"] = Field(
        default="keep",
        description="an empty pseudo-target: refuse: a bad row; keep: the model learns to be silent; both are counted",
    )
    evaluate_every: float = Field(
        default=200, gt=0, description="steps or epochs (evaluate_unit) between two evaluations and checkpoints"
    )
    evaluate_unit: Literal["steps", "epochs"] = "steps"
    dev_metrics: list[MetricName] = Field(
        default=[], description="metrics of greedy predictions for the dev rows, named as in the recipe's metrics"
    )
    dev_prediction_rows: int = Field(
        default=256, ge=1, description="how many of the dev rows, from the first, dev_metrics use"
    )
    dev_prediction_tokens: int = Field(default=64, ge=1, description="maximum length of a prediction for a dev row")
    choose_by: str = Field(
        default="dev_loss", description="dev_loss, or one of dev_metrics, by which the best checkpoint is selected"
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after this many evaluations in a row that are not better than the best"
    )
    holdout: float = Field(
        default=0.05, gt=0, lt=0.5, description="share of the rows held out as dev rows if the training has no dev rows"
    )
    keep_checkpoints: int = Field(
        default=1, ge=1, description="number of last checkpoints to keep; the best model is always kept"
    )
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32", description="bfloat16: activations alone, weights stay in float32"
    )
    gradient_checkpointing: bool = Field(default=False, description="compute activations twice instead of keeping them")
    compile: bool = Field(default=False, description="torch.compile of each block")
    lora: Lora | None = None

    @model_validator(mode="after")
    def _fields_serve(self) -> Training:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of max_steps and epochs")
        for name, loss in self.losses.items():
            _require_loss(name, loss)
        if self.evaluate_unit == "steps" and self.evaluate_every != int(self.evaluate_every):
            raise ValueError(f"evaluate_every: expected whole steps, found {self.evaluate_every:g}")
        if self.choose_by != "dev_loss" and self.choose_by not in self.dev_metrics:
            raise ValueError(f"choose_by: expected dev_loss or one of dev_metrics, found {self.choose_by!r}")
        for name in ("dev_prediction_rows", "dev_prediction_tokens"):
            if not self.dev_metrics and not self.is_default(name):
                raise ValueError(f"{name} does nothing without dev_metrics")
        if self.schedule_options and self.schedule in WITHOUT_OPTIONS:
            raise ValueError(f"schedule_options do nothing: the schedule is {self.schedule}")
        if self.schedule == "constant" and self.warmup_ratio and not self.is_default("warmup_ratio"):
            raise ValueError("warmup_ratio does nothing: the schedule is constant")
        return self

    def teacher_losses(self) -> list[str]:
        """Names of the losses that compare the student with its teacher's outputs."""
        return [name for name in self.losses if LOSSES.get(name, USERS_OWN).teacher]

    def needs_teacher(self) -> bool:
        """Whether a loss compares the student with its teacher's outputs."""
        return bool(self.teacher_losses())


def _require_loss(name: str, loss: Loss) -> None:
    """Raise ValueError for a loss that does not exist, and for options that do nothing for it."""
    if name not in LOSSES and not USERS_LOSS.fullmatch(name):
        near = difflib.get_close_matches(name, LOSSES, n=1, cutoff=0.5)
        raise ValueError(
            f"losses.{name}: no such loss; " + (f"did you mean {near[0]}?" if near else "see docs/losses.md")
        )
    for option in ATKD_ONLY:
        if name != "atkd" and not loss.is_default(option):
            raise ValueError(f"losses.{name}.{option} does nothing: it is atkd's")
    for option in LOGITS_ONLY:
        if LOSSES.get(name, USERS_OWN).regression and not loss.is_default(option):
            raise ValueError(f"losses.{name}.{option} does nothing: it is for losses on logits")
