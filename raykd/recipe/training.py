"""How a model is trained: its losses, the targets that it learns, the source of its teacher's outputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from raykd.recipe.losses import AnyLoss, CrossEntropy, default_kinds
from raykd.recipe.metrics import Metrics, metric_kinds
from raykd.recipe.models import Lora
from raykd.recipe.names import SourceName
from raykd.recipe.schedules import require_schedule
from raykd.recipe.section import Section

LOG_NAMES = ("loss", "dev_loss", "learning_rate", "gradient_norm", "epoch", "examples", "tokens", "seconds", "step")


class PassTargets(Section):
    """A pass of the teacher, as a source of sequences."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str = Field(alias="pass", description="the pass, a name in the teacher's passes, or pseudo_targets")
    samples: Literal["rotate", "all"] = Field(
        default="rotate",
        description="for several samples of an input: rotate: each epoch the next one (KD4Gen); all: every epoch all",
    )


class StudentSampling(Section):
    """How the student's own samples are decoded, in evaluation mode."""

    temperature: float = Field(default=1.0, ge=0, description="0: the most likely token at every position (greedy)")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the likeliest tokens of this probability")
    top_k: int = Field(default=0, ge=0, description="sample from the k likeliest tokens; 0: from all")
    max_tokens: int = Field(default=128, ge=1, description="maximum length of a sample")

    @model_validator(mode="after")
    def _fields_serve(self) -> StudentSampling:
        if self.temperature == 0 and (self.top_p != 1 or self.top_k):
            raise ValueError("top_p and top_k do nothing at temperature 0")
        return self


class Sequences(Section):
    """Where the sequences come from that a training learns: a union of sources, or shares of them.

    Sources: gold, the targets of data.gold; pseudo_targets, what the teacher wrote (or a pass by its name); student,
    the student's own samples for the same inputs, written anew in each step; module:NAME, a user's own sampler.
    """

    union: list[SourceName | PassTargets] | None = Field(
        default=None, min_length=1, description="each input learns, in every epoch, a target of each source"
    )
    shares: dict[SourceName, float] | None = Field(
        default=None, description="the share of each source, above 0; they sum to 1; by says of what"
    )
    by: Literal["step", "batch", "row", "ratio", "token"] | None = Field(
        default=None,
        description="for shares: step: steps take turns (KD4Gen); batch: each step is drawn (ATKD); row: each input is "
        "drawn in each epoch; ratio: exactly these shares of the inputs are drawn in each epoch",
    )
    student: StudentSampling | None = Field(
        default=None, description="decoding of the source that writes in each step; default: temperature 1"
    )

    @model_validator(mode="after")
    def _fields_serve(self) -> Sequences:
        if (self.union is None) == (self.shares is None):
            raise ValueError("give exactly one of union and shares")
        if self.shares is None:
            self._check_union()
        else:
            self._check_shares()
        if self.student is not None and not self.samplers():
            raise ValueError("student does nothing: no source writes in each step")
        if self.by == "token":
            raise ValueError("by: token is not built yet: expected step, batch, row or ratio")
        if "teacher" in self.sources():
            raise ValueError("the source teacher is not built yet: pseudo_targets are what the teacher wrote before")
        return self

    def _check_union(self) -> None:
        if self.by is not None:
            raise ValueError("by does nothing without shares")
        names = self.sources()
        if len(set(names)) < len(names):
            raise ValueError(f"union: {max(names, key=names.count)} is given twice")
        if self.samplers():
            raise ValueError(f"union: {self.samplers()[0]} writes anew in each step: it goes with shares")

    def _check_shares(self) -> None:
        assert self.shares is not None
        if self.by is None:
            raise ValueError("shares need by: step, batch, row or ratio")
        if any(share <= 0 for share in self.shares.values()) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares: expected numbers above 0 that sum to 1, found {self.shares}")
        if len(self.samplers()) > 1:
            raise ValueError(f"shares: one source writes in each step so far, found {' and '.join(self.samplers())}")
        if not self.stored():
            raise ValueError(f"shares: {', '.join(self.shares)} alone is not built yet: add gold or pseudo_targets")

    def sources(self) -> list[str]:
        """The names of the sources."""
        if self.shares is not None:
            return list(self.shares)
        return [source if isinstance(source, str) else source.name for source in self.union or ()]

    def samplers(self) -> list[str]:
        """The sources that write new sequences in each step: student, or a user's own, module:NAME."""
        return [name for name in self.sources() if name == "student" or ":" in name]

    def stored(self) -> list[str]:
        """The sources whose targets are known before training: gold and passes."""
        return [name for name in self.sources() if name not in self.samplers()]

    def passes(self) -> list[str]:
        """The sources that are passes of the teacher."""
        return [name for name in self.stored() if name != "gold"]

    def learns_all_samples(self) -> bool:
        """Whether every sample of an input is a target in every epoch."""
        return any(isinstance(source, PassTargets) and source.samples == "all" for source in self.union or ())


class StoredOutputs(Section):
    """The teacher's outputs are read from the store, where the teacher pass recorded them (the teacher's payload)."""

    kind: Literal["store"]
    tail: Literal["bucket", "renormalise", "refuse"] = Field(
        default="bucket",
        description="the probability outside a stored top-k: bucket: one event for all other tokens; renormalise: "
        "spread over the top-k; refuse: an error",
    )


class InProcessOutputs(Section):
    """A frozen teacher in the process of each worker; it serves every loss and every source of sequences."""

    kind: Literal["in_process"]
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"


class RemoteOutputs(Section):
    """Teachers in actors of their own (cluster.teacher), which send their top-k while the student trains."""

    kind: Literal["remote"]
    k: int = Field(default=64, ge=1, description="most likely tokens per position")
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"
    tail: Literal["bucket", "renormalise", "refuse"] = Field(default="bucket", description="as in kind store")


OutputsSource = Annotated[StoredOutputs | InProcessOutputs | RemoteOutputs, Field(discriminator="kind")]


class OutputsByOrigin(Section):
    """One source of the teacher's outputs for targets that are known before training, another for new samples."""

    stored: OutputsSource
    sampled: OutputsSource


def _outputs_tag(value: Any) -> str:
    by_origin = isinstance(value, OutputsByOrigin) or (isinstance(value, dict) and "kind" not in value)
    return "by_origin" if by_origin else "for_all"


TeacherOutputs = Annotated[
    Annotated[OutputsByOrigin, Tag("by_origin")] | Annotated[OutputsSource, Tag("for_all")],
    Discriminator(_outputs_tag),
]


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
    losses: dict[str, AnyLoss] = Field(
        default={"cross_entropy": CrossEntropy(kind="cross_entropy")},
        min_length=1,
        description="by a name of your choice; its kind, one of docs/losses.md, is the name unless given",
    )
    reduction: Literal["tokens", "sequences"] = Field(
        default="tokens",
        description="tokens: a term is a mean over tokens; sequences: over sequences, of their token means (KD4Gen)",
    )
    sequences: Sequences = Sequences(union=["pseudo_targets"])
    teacher: TeacherOutputs = StoredOutputs(kind="store")
    phases: list[dict[str, Any]] | None = Field(default=None, description="not built yet: one phase is trained")
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
    dev_metrics: Metrics = Field(
        default=[], description="metrics of greedy predictions for the dev rows, as in the recipe's metrics"
    )
    dev_prediction_rows: int = Field(
        default=256, ge=1, description="how many of the dev rows, from the first, dev_metrics use"
    )
    dev_prediction_tokens: int = Field(default=64, ge=1, description="maximum length of a prediction for a dev row")
    choose_by: str = Field(
        default="dev_loss", description="dev_loss, or a kind of dev_metrics, by which the best checkpoint is selected"
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

    @field_validator("losses", mode="before")
    @classmethod
    def _kinds_of_losses(cls, losses: Any) -> Any:
        return default_kinds(losses)

    @model_validator(mode="after")
    def _fields_serve(self) -> Training:
        if self.phases is not None:
            raise ValueError("phases are not built yet: a training has one phase")
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of max_steps and epochs")
        for name in self.losses:
            if name in LOG_NAMES:
                raise ValueError(f"losses.{name}: the log has another number of this name: choose another")
        if self.evaluate_unit == "steps" and self.evaluate_every != int(self.evaluate_every):
            raise ValueError(f"evaluate_every: expected whole steps, found {self.evaluate_every:g}")
        if self.choose_by not in ("dev_loss", *metric_kinds(self.dev_metrics)):
            raise ValueError(f"choose_by: expected dev_loss or a kind of dev_metrics, found {self.choose_by!r}")
        for name in ("dev_prediction_rows", "dev_prediction_tokens"):
            if not self.dev_metrics and not self.is_default(name):
                raise ValueError(f"{name} does nothing without dev_metrics")
        require_schedule(self.schedule, self.schedule_options)
        if self.schedule == "constant" and self.warmup_ratio and not self.is_default("warmup_ratio"):
            raise ValueError("warmup_ratio does nothing: the schedule is constant")
        return self

    def teacher_losses(self) -> list[str]:
        """Names of the losses that compare the student with its teacher's outputs."""
        return [name for name, loss in self.losses.items() if loss.reads_teacher()]

    def needs_teacher(self) -> bool:
        """Whether a loss compares the student with its teacher's outputs."""
        return bool(self.teacher_losses())

    def outputs_for(self, sampled: bool) -> StoredOutputs | InProcessOutputs | RemoteOutputs:
        """Where the teacher's outputs come from: for new samples, or for targets that are known before training."""
        if isinstance(self.teacher, OutputsByOrigin):
            return self.teacher.sampled if sampled else self.teacher.stored
        return self.teacher

    def live_outputs(self) -> InProcessOutputs | RemoteOutputs | None:
        """The source of the teacher's outputs that computes them in the training; None if they are only read."""
        if not self.needs_teacher():
            return None
        sources = [self.outputs_for(sampled) for sampled in ((False, True) if self.sequences.samplers() else (False,))]
        return next((source for source in sources if not isinstance(source, StoredOutputs)), None)

    def reads_store(self) -> bool:
        """Whether a loss reads the teacher's outputs from the store."""
        return self.needs_teacher() and isinstance(self.outputs_for(sampled=False), StoredOutputs)
