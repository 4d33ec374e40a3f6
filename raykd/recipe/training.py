"""TODO: docstring."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raykd.recipe.losses import LOSSES, NUMBER_LOSSES, WITHOUT_TEACHER, Loss
from raykd.recipe.models import Lora
from raykd.recipe.section import Section


class Gold(Section):
    """Train on the gold targets of the rows."""

    kind: Literal["gold"]


class PseudoTargets(Section):
    """Train on what the teacher wrote."""

    kind: Literal["pseudo_targets"]
    samples: Literal["rotate", "all"] = Field(
        default="rotate", description="of several: another one in each epoch (KD4Gen), or each as an example of its own"
    )


class Mixture(Section):
    """Gold and pseudo-targets of the same inputs: data.gold is labelled by the teacher as well."""

    kind: Literal["mixture"]
    gold: float = Field(gt=0, lt=1, description="share of the inputs with gold that are taught it, in each epoch")
    by: Literal["request", "ratio"] = Field(
        default="request", description="each input draws by itself, or so many of them exactly"
    )


Sequences = Annotated[Gold | PseudoTargets | Mixture, Field(discriminator="kind")]


class StoredOutputs(Section):
    """The teacher's side from the store: what the teacher pass kept (teacher.payload)."""

    kind: Literal["store"]
    tail: Literal["bucket", "renormalise", "refuse"] = Field(
        default="bucket", description="what becomes of the probability outside a stored top-k"
    )


class InProcessOutputs(Section):
    """A frozen teacher in each worker's process."""

    kind: Literal["in_process"]
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"


class RemoteOutputs(Section):
    """Teachers in actors of their own (cluster.teacher), asked for their top-k while students work on other batches."""

    kind: Literal["remote"]
    k: int = Field(default=64, ge=1, description="most likely tokens per position")
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"
    tail: Literal["bucket", "renormalise", "refuse"] = "bucket"


OutputsSource = Annotated[StoredOutputs | InProcessOutputs | RemoteOutputs, Field(discriminator="kind")]


class Training(Section):
    """How one model is trained."""

    learning_rate: float = Field(gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="optimizer steps; give this or epochs")
    epochs: float | None = Field(default=None, gt=0, description="passes over the rows; give this or max_steps")
    batch_tokens: int = Field(default=2048, ge=1, description="padded tokens of a global batch, both sides, at most")
    micro_batch_tokens: int | None = Field(
        default=None, ge=1, description="padded tokens that a worker holds at once; default: its share of the batch"
    )
    losses: dict[str, Loss] = Field(
        default={"cross_entropy": Loss()},
        min_length=1,
        description="by name, or module:function (student_NV, targets_N) -> values_N on log-probabilities",
    )
    reduction: Literal["tokens", "sequences"] = Field(
        default="tokens", description="a term is a mean over tokens, or over sequences of means over tokens (KD4Gen)"
    )
    sequences: Sequences = PseudoTargets(kind="pseudo_targets")
    teacher: OutputsSource = StoredOutputs(kind="store")
    schedule: str = Field(default="linear", description="as `transformers.get_scheduler` knows it")
    schedule_options: dict[str, Any] = Field(default={}, description="passed to it as they are")
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(default=0.01, ge=0, description="of matrices that are no norm's")
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_input_tokens: int = Field(default=512, ge=1, description="an input that is longer is a bad row")
    max_target_tokens: int = Field(default=128, ge=1, description="a target that is longer: see long_targets")
    long_targets: Literal["refuse", "cut"] = Field(
        default="refuse",
        description="a target that is too long is a bad row, or is cut and has no end; both are counted",
    )
    empty_targets: Literal["refuse", "keep"] = Field(
        default="keep", description="an empty pseudo-target is a bad row, or teaches to say nothing; both are counted"
    )
    evaluate_every: float = Field(default=200, gt=0, description="evaluate_unit between evaluations and checkpoints")
    evaluate_unit: Literal["steps", "epochs"] = "steps"
    dev_metrics: list[str] = Field(default=[], description="of answers to the dev rows, written greedily, as metrics")
    dev_answer_rows: int = Field(default=256, ge=1, description="dev rows that are answered, the first ones")
    dev_answer_tokens: int = Field(default=64, ge=1, description="at most, of such an answer")
    choose_by: str = Field(default="dev_loss", description="dev_loss, or one of dev_metrics")
    patience: int | None = Field(
        default=None, ge=1, description="evaluations that are no better than the best, then stop"
    )
    holdout: float = Field(default=0.05, gt=0, lt=0.5, description="share of the rows held out where no dev is given")
    keep_checkpoints: int = Field(default=1, ge=1, description="the last ones; the best model is kept in any case")
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32", description="bfloat16: of activations, weights stay in float32"
    )
    gradient_checkpointing: bool = Field(default=False, description="compute activations twice instead of keeping them")
    compile: bool = Field(default=False, description="torch.compile of each block")
    lora: Lora | None = None

    @model_validator(mode="after")
    def _fields_serve(self) -> Training:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of max_steps and epochs")
        for name, loss in self.losses.items():
            if name not in (*LOSSES, *NUMBER_LOSSES) and not re.fullmatch(r"[\w.]+:\w+", name):
                near = difflib.get_close_matches(name, LOSSES, n=1, cutoff=0.5)
                raise ValueError(
                    f"losses.{name}: no such loss; " + (f"did you mean {near[0]}?" if near else "see docs/losses.md")
                )
            groups = [n for n in ("easy_weight", "hard_share") if getattr(loss, n) is not None]
            if name != "atkd" and groups:
                raise ValueError(f"losses.{name}.{groups[0]} does nothing: it is atkd's")
        if self.evaluate_unit == "steps" and self.evaluate_every != int(self.evaluate_every):
            raise ValueError(f"evaluate_every: expected whole steps, found {self.evaluate_every:g}")
        if self.choose_by != "dev_loss" and self.choose_by not in self.dev_metrics:
            raise ValueError(f"choose_by: expected dev_loss or one of dev_metrics, found {self.choose_by!r}")
        return self

    def needs_teacher(self) -> bool:
        """Whether a loss asks for the teacher's probabilities."""
        return any(name in (*LOSSES, *NUMBER_LOSSES) and name not in WITHOUT_TEACHER for name in self.losses)
