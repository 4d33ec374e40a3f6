"""A recipe: the whole description of a run, as frozen pydantic models.

Every default is written here and nowhere else, with its unit. Loading a recipe imports neither torch nor Ray.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from raykd.errors import RecipeError


class Section(BaseModel):
    """A part of a recipe: frozen, and refusing what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# ------------------------------------------------------------------------------------------------- rows


class Columns(Section):
    """Which columns of a file hold what."""

    input: str = "input"
    target: str | None = Field(default=None, description="gold target; leave out where there is none")
    references: str | None = Field(default=None, description="a list of further right targets, for scoring only")
    id: str | None = Field(default=None, description="a name of the row; default: its place in the file")


class FileRows(Section):
    """Rows of a JSONL, CSV or parquet file."""

    kind: Literal["jsonl", "csv", "parquet"]
    path: str
    columns: Columns = Columns()
    limit: int | None = Field(default=None, ge=1, description="rows; the first ones")


class DatasetRows(Section):
    """Rows of a `datasets` data set: a name on the hub, or a folder that `save_to_disk` wrote."""

    kind: Literal["dataset"]
    name: str
    config: str | None = None
    split: str = "train"
    columns: Columns = Columns()
    limit: int | None = Field(default=None, ge=1, description="rows; the first ones")


class FunctionRows(Section):
    """Rows yielded by `module:function(**arguments)`: dicts with `input` and perhaps `target`, `references`, `id`."""

    kind: Literal["function"]
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    arguments: dict[str, Any] = {}
    limit: int | None = Field(default=None, ge=1, description="rows; the first ones")


Rows = Annotated[FileRows | DatasetRows | FunctionRows, Field(discriminator="kind")]


class Data(Section):
    """Where rows come from, and how many may be bad."""

    unlabelled: Rows = Field(description="inputs the teacher labels; a target column serves the report only")
    gold: Rows | None = Field(default=None, description="pairs to fine-tune the teacher on")
    dev: Rows | None = Field(default=None, description="pairs that choose the teacher's and control arm's checkpoint")
    test: Rows | None = Field(default=None, description="pairs every arm is scored on")
    max_bad_rows: int = Field(default=0, ge=0, description="rows left out (and reported) before the run is refused")
    licence: str = "not stated"


# ----------------------------------------------------------------------------------------------- models


class WordsTokenizer(Section):
    """One token per blank-separated word of gold pairs and unlabelled inputs."""

    kind: Literal["words"]
    extra: list[str] = Field(default=[], description="further words, such as a prompt's separator")


class PretrainedTokenizer(Section):
    """The tokenizer of a Hugging Face folder or hub name."""

    kind: Literal["pretrained"]
    path: str


Tokenizer = Annotated[WordsTokenizer | PretrainedTokenizer, Field(discriminator="kind")]


class Checkpoint(Section):
    """A pretrained model: a Hugging Face folder or hub name, with its own tokenizer."""

    kind: Literal["checkpoint"]
    path: str


class FromConfig(Section):
    """A model with random weights: a `transformers` model type and its configuration's settings."""

    kind: Literal["config"]
    model_type: str = Field(description="as `transformers.AutoConfig.for_model` knows it: llama, t5, ...")
    settings: dict[str, Any] = {}


class Cut(Section):
    """Some layers of a pretrained model, with its embeddings, norms, head and tokenizer; layers are counted from 0."""

    kind: Literal["cut"]
    path: str = Field(description="the larger model: a Hugging Face folder or hub name")
    layers: list[int] | None = Field(default=None, description="to keep, of a decoder-only or encoder-only model")
    encoder_layers: list[int] | None = Field(default=None, description="to keep, of an encoder-decoder; default: all")
    decoder_layers: list[int] | None = Field(default=None, description="to keep, of an encoder-decoder; default: all")

    @model_validator(mode="after")
    def _layers_serve(self) -> Cut:
        sides = {"encoder_layers": self.encoder_layers, "decoder_layers": self.decoder_layers}
        given = {name: kept for name, kept in {"layers": self.layers, **sides}.items() if kept is not None}
        if not given:
            raise ValueError("give layers, or for an encoder-decoder model encoder_layers, decoder_layers or both")
        if self.layers is not None and len(given) > 1:
            raise ValueError("layers is for models of one side: it does not go with encoder_layers or decoder_layers")
        for name, kept in given.items():
            if not kept or kept[0] < 0 or any(later <= layer for layer, later in zip(kept, kept[1:], strict=False)):
                raise ValueError(f"{name}: expected one layer or more, from 0 and rising, found {kept}")
        return self


Model = Annotated[Checkpoint | FromConfig | Cut, Field(discriminator="kind")]


class Served(Section):
    """A model behind an endpoint (engine: kind endpoint), by the name it has there."""

    kind: Literal["served"]
    name: str = Field(min_length=1)


TeacherModel = Annotated[Checkpoint | FromConfig | Cut | Served, Field(discriminator="kind")]

Task = Literal["generation", "classification", "regression", "span"]  # span: extractive question answering


def _labels_serve(task: Task, labels: list[str] | None) -> None:
    if task != "classification":
        if labels is not None:
            raise ValueError(f"labels do nothing: the task is {task}")
    elif labels is None:
        raise ValueError("a classification needs labels, the names of its classes in order")
    elif len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"labels: expected two names or more, all different, found {labels}")


LOSSES = (
    *("cross_entropy", "soft_cross_entropy", "forward_kl", "reverse_kl", "jsd", "skewed_forward_kl"),
    *(
        "skewed_reverse_kl",
        "symmetric_kl",
        "weighted_kl",
        "total_variation",
        "adaptive_kl",
        "nucleus_kl",
        "dkd",
        "atkd",
    ),
)
NUMBER_LOSSES = ("mse", "teacher_mse")  # of a regression
WITHOUT_TEACHER = ("cross_entropy", "mse")


class Loss(Section):
    """A term of the training loss: its weight, and what `raykd.losses.tokens.TokenLoss` lets one choose."""

    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    squared: bool | None = Field(default=None, description="times temperature squared; default: as its paper has it")
    easy_weight: float | None = Field(
        default=None, ge=0, le=1, description="atkd alone: the easy group's share of the loss, 0.2 unless given"
    )
    hard_share: float | None = Field(
        default=None, gt=0, lt=1, description="atkd alone: the share of tokens that is hard, 0.5 unless given"
    )
    options: dict[str, Any] = Field(default={}, description="those of its function in raykd.losses.divergences")


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


class FromStore(Section):
    """The teacher's side from the store: what the teacher pass kept (teacher.payload)."""

    kind: Literal["store"]
    tail: Literal["bucket", "renormalise", "refuse"] = Field(
        default="bucket", description="what becomes of the probability outside a stored top-k"
    )


class InProcess(Section):
    """A frozen teacher in each worker's process."""

    kind: Literal["in_process"]
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"


class Scorers(Section):
    """Teachers in actors of their own (cluster.teacher), asked for their top-k while students work on other batches."""

    kind: Literal["actors"]
    k: int = Field(default=64, ge=1, description="most likely tokens per position")
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"
    tail: Literal["bucket", "renormalise", "refuse"] = "bucket"


TeacherSide = Annotated[FromStore | InProcess | Scorers, Field(discriminator="kind")]


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021) through `peft`; what is left at the end is the merged model."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    modules: list[str] | Literal["all-linear"] = Field(
        default="all-linear", description="names of layers, by their end"
    )


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
    teacher: TeacherSide = FromStore(kind="store")
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


# ---------------------------------------------------------------------------------------------- engines


class VllmEngine(Section):
    """vLLM: decoder-only models."""

    kind: Literal["vllm"]
    arguments: dict[str, Any] = Field(default={}, description="passed to vllm.EngineArgs as they are")


class TransformersEngine(Section):
    """`transformers` generate: encoder-decoder models, and decoder-only ones where vLLM has no build."""

    kind: Literal["transformers"]
    batch_tokens: int | None = Field(
        default=None, ge=1, description="padded tokens, prompt and answer, worked on at once; default: found by itself"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"


class ScriptedEngine(Section):
    """A double for tests: answers each prompt by `module:function(prompt, sample) -> text`."""

    kind: Literal["scripted"]
    function: str = Field(default="raykd.engines.scripted:echo", pattern=r"^[\w.]+:\w+$")


class Price(Section):
    """What an endpoint asks for a million tokens, in any one currency: for the report."""

    prompt: float = Field(ge=0)
    output: float = Field(ge=0)


class EndpointEngine(Section):
    """Any OpenAI-compatible endpoint. Rows leave the cluster for it; the report says how many."""

    kind: Literal["endpoint"]
    url: str = Field(pattern=r"^https?://[^@]+$", description="up to and with /v1")
    api_key_env: str | None = Field(
        default=None, pattern=r"^[A-Za-z_]\w*$", description="the environment variable that holds the key"
    )
    concurrency: int = Field(default=16, ge=1, le=1000, description="requests under way, of each replica")
    requests_per_minute: float | None = Field(default=None, gt=0, description="begun at most, by each replica")
    retries: int = Field(
        default=12, ge=0, description="of a request before the pass stops, with growing pauses: 12 take a minute"
    )
    timeout_seconds: float = Field(default=120, gt=0, description="for an answer")
    price: Price | None = None


Engine = Annotated[VllmEngine | TransformersEngine | ScriptedEngine | EndpointEngine, Field(discriminator="kind")]


class Sampling(Section):
    """How a model decodes; the names are vLLM's."""

    n: int = Field(default=1, ge=1, description="samples per input")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0 is all")
    max_tokens: int = Field(default=128, ge=1)
    seeded: bool = Field(
        default=False, description="each sample's seed from the run's seed and its key, whatever else is in its batch"
    )
    options: dict[str, Any] = Field(
        default={}, description="further ones of vllm.SamplingParams or transformers.GenerationConfig, as they are"
    )

    @model_validator(mode="after")
    def _fields_serve(self) -> Sampling:
        beams = self.options.get("num_beams", 1)
        if self.temperature == 0 and self.n > max(1, beams):
            raise ValueError(f"n is {self.n} at temperature 0: every sample would be the same; set temperature")
        if self.temperature == 0 and (self.top_p != 1 or self.top_k):
            raise ValueError("top_p and top_k do nothing at temperature 0; set temperature")
        if self.temperature == 0 and self.seeded:
            raise ValueError("seeded does nothing at temperature 0")
        twice = [name for name in self.options if name in type(self).model_fields]
        if twice:
            raise ValueError(f"options.{twice[0]}: give sampling.{twice[0]} instead")
        return self


class TextPayload(Section):
    """Texts and their tokens."""

    kind: Literal["text"]
    logprobs: bool = Field(default=True, description="of each token; the transformers engine reads its answers again")


class TopKPayload(Section):
    """Texts, log-probabilities, and the k most likely tokens at each position with theirs over the vocabulary."""

    kind: Literal["top_k"]
    k: int = Field(default=64, ge=1)


class SampledPayload(Section):
    """Texts, log-probabilities, and tokens drawn at each position (random-sampling KD, arXiv 2503.16870)."""

    kind: Literal["sampled"]
    draws: int = Field(default=50, ge=1, le=255, description="per position; about a dozen different tokens stay")


class HiddenPayload(Section):
    """Texts, log-probabilities, and what the teacher's head reads at each position: exact, and large."""

    kind: Literal["hidden"]


class AutoPayload(Section):
    """Left to raykd: what the loss needs, in the form that costs least; the report says which and why."""

    kind: Literal["auto"]


Payload = Annotated[
    TextPayload | TopKPayload | SampledPayload | HiddenPayload | AutoPayload, Field(discriminator="kind")
]


class Shots(Section):
    """Examples shown before the input; an input is never shown as its own example."""

    rows: Rows = Field(description="with targets")
    count: int = Field(ge=1, description="shown to each input")
    choose: Literal["first", "random", "bm25", "embedding"] = Field(
        default="first", description="the first of the rows, or for each input others: drawn, or the most similar"
    )
    nearest: Literal["last", "first"] | None = Field(
        default=None, description="where the most similar stands; default: last, beside the input"
    )
    encoder: str | None = Field(default=None, description="of embedding: a Hugging Face folder or hub name")

    @model_validator(mode="after")
    def _fields_serve(self) -> Shots:
        if (self.encoder is None) == (self.choose == "embedding"):
            raise ValueError("encoder goes with choose: embedding")
        if self.nearest and self.choose in ("first", "random"):
            raise ValueError(f"nearest does nothing: choose is {self.choose}")
        return self


Template = Annotated[str, Field(pattern=r"\{input\}")]


class Completion(Section):
    """A text that the model goes on with."""

    kind: Literal["completion"]
    template: Template = "{input}"
    shots: Shots | None = None
    shot: str = Field(
        default="{prompt} {target}\n\n", pattern=r"\{prompt\}[^{}]*\{target\}", description="{prompt}: the template"
    )


class Chat(Section):
    """Turns, written by the tokenizer's chat template; examples are earlier turns."""

    kind: Literal["chat"]
    system: str | None = None
    template: Template = Field(default="{input}", description="the user's turn")
    shots: Shots | None = None


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "template"
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


# a bare text is the template of a completion
Prompt = Annotated[
    Annotated[Template, Tag("template")] | Annotated[Completion, Tag("completion")] | Annotated[Chat, Tag("chat")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_kind",
        custom_error_message="expected a template, or a section of kind completion or chat",
    ),
]


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
    task: Task = Field(default="generation", description="span is extractive question answering")
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
        if (self.model.kind == "served") != (self.engine.kind == "endpoint"):
            raise ValueError(
                f"model of kind served and engine of kind endpoint go together, found {self.model.kind}"
                f" and {self.engine.kind}"
            )
        if self.model.kind == "served" and self.fine_tune:
            raise ValueError("fine_tune: a model behind an endpoint cannot be trained here")
        if self.engine.kind == "endpoint" and self.payload.kind not in ("auto", "text"):
            raise ValueError(f"payload: an endpoint gives texts, found {self.payload.kind}")
        return self


class Push(Section):
    """Where to publish on the Hugging Face hub; the token is the hub's own: HF_TOKEN, or `hf auth login`."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name; made where there is none")
    private: bool = True


class Student(Section):
    """The model that is trained, and deployed."""

    model: Model
    task: Task = Field(default="generation", description="span is extractive question answering")
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


# --------------------------------------------------------------------------------------- methods and arms


class Distill(Section):
    """Teacher, pseudo-targets, student (Kim and Rush 2016, sequence-level distillation)."""

    kind: Literal["distill"]
    overlap: bool = Field(default=False, description="train while the teacher still writes; the first epoch follows it")


class BackCheck(Section):
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
    back_check: BackCheck | None = None
    weigh: Literal["confidence", "agreement"] | None = Field(
        default=None,
        description="what a label counts for: its mean probability per token, or its score in the back check (of the "
        "teacher's labels their share of the vote); where neither is known, 1",
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
            given = {"relabel: vote": self.relabel == "vote", "weigh": self.weigh, "back_check": self.back_check}
            given["gold"] = self.gold
            for name in (name for name, on in given.items() if on):
                raise ValueError(f"{name} goes with exchange: text")
        if self.weigh == "agreement" and self.back_check is None:
            raise ValueError("weigh: agreement needs back_check.metric")
        if self.back_check and self.back_check.at_least is None and self.weigh != "agreement":
            raise ValueError("back_check does nothing without at_least, or weigh: agreement")
        return self


Method = Annotated[Distill | Mckd, Field(discriminator="kind")]


class GoldOnly(Section):
    """The control arm: the student without a teacher."""

    rows: Rows = Field(description="the pairs it may learn from")
    learning_rates: list[float] = Field(default=[], description="best on data.dev is kept; empty: the student's")
    settings: dict[str, Any] = Field(
        default={}, description="of the student's configuration, where the control fares better with others: dropout"
    )


RETRY_TEMPERATURE = 0.7


class Answers(Section):
    """What a right answer looks like, and what becomes of answers before a student learns them."""

    format: str = Field(
        default="text", description="a name in raykd.tasks.FORMATS, labels (those of the student), or module:name"
    )
    invalid: Literal["keep", "drop", "repair"] = Field(
        default="keep", description="what becomes of an answer that is not of the format; all are counted"
    )
    retries: int = Field(default=0, ge=0, description="times that the teacher is asked again after an invalid answer")
    retry_temperature: float = Field(default=RETRY_TEMPERATURE, gt=0)
    vote: bool = Field(
        default=False, description="of the teacher's samples the most frequent one (self-consistency, Wang et al. 2023)"
    )

    @model_validator(mode="after")
    def _fields_serve(self) -> Answers:
        if self.format == "text" and (self.invalid != "keep" or self.retries):
            raise ValueError("invalid and retries do nothing: every text is of the format text")
        if self.retry_temperature != RETRY_TEMPERATURE and not self.retries:
            raise ValueError("retry_temperature does nothing without retries")
        return self

    def chosen(self) -> bool:
        """Whether answers are learnt otherwise than as they come."""
        return self.vote or self.retries > 0 or self.invalid != "keep"


class Arms(Section):
    """What is trained beside the method, to compare with."""

    gold_only: GoldOnly | None = None
    distilled: bool = Field(default=False, description="plain distillation, beside mckd")


# ---------------------------------------------------------------------------------------------- cluster


class Actors(Section):
    """The engines of a labelling pass. Each is held by one actor on one node."""

    replicas: int | tuple[int, int] = Field(
        default=1, description="or [min, max]: begun with min, one where it is 0, and grown while inputs wait"
    )
    resources: dict[str, float] = Field(default={"CPU": 1}, description="of Ray, per replica: CPU, GPU, custom ones")
    threads: int | None = Field(default=None, ge=1, description="CPU threads per replica; default: the machine's share")
    max_failures: int = Field(
        default=3, ge=0, description="deaths of a replica's engine, or actor, before the run fails"
    )
    hang_minutes: float = Field(default=10, gt=0, description="a vLLM that says nothing for so long is restarted")

    @model_validator(mode="after")
    def _bounds(self) -> Actors:
        least, most = self.bounds()
        if not 1 <= most or not 0 <= least <= most:
            raise ValueError(f"replicas: expected a number above 0, or [min, max], found {self.replicas}")
        return self

    def bounds(self) -> tuple[int, int]:
        """The least and the most replicas."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas


class Workers(Section):
    """What each student takes."""

    workers: int | tuple[int, int] = Field(
        default=1, description="per student; or [min, max]: as many as the cluster has, at every start and restart"
    )
    parallel: Literal["data", "fsdp"] = Field(
        default="data", description="each worker holds the whole student, or a part of it (FSDP2)"
    )
    resources: dict[str, float] = Field(default={"CPU": 1}, description="of Ray, per worker: CPU, GPU, custom ones")
    threads: int | None = Field(default=None, ge=1, description="CPU threads per worker; default: the machine's share")
    max_failures: int = Field(default=3, ge=0, description="workers lost before the run fails")
    storage: str | None = Field(
        default=None, description="where checkpoints go: a folder or URL that all nodes reach; default: the run folder"
    )

    @model_validator(mode="after")
    def _bounds(self) -> Workers:
        least, most = self.bounds()
        if not 1 <= least <= most:
            raise ValueError(f"workers: expected a number above 0, or [min, max], found {self.workers}")
        return self

    def bounds(self) -> tuple[int, int]:
        """The least and the most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


class Cluster(Section):
    """Where things run. Changing this section does not change the run."""

    teacher: Actors = Actors()
    student: Workers = Workers()
    labelling_students: Actors = Actors()
    local_cpus: int | None = Field(
        default=None, ge=4, description="logical CPUs of a local Ray; default: max(8, cores)"
    )
    capacity: dict[str, float] | None = Field(
        default=None, description="what an autoscaling cluster may grow to; default: what is alive"
    )
    wait_minutes: float = Field(default=10, gt=0, description="how long to wait for resources that may still come")


# ---------------------------------------------------------------------------------------------- trackers


class Wandb(Section):
    """Weights & Biases: a W&B run per training. The key is W&B's own: WANDB_API_KEY, or `wandb login`."""

    kind: Literal["wandb"]
    project: str = Field(min_length=1)
    entity: str | None = Field(default=None, description="user or team; default: that of the key")
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline: kept in the training's folder, for `wandb sync`"
    )


class Mlflow(Section):
    """MLflow: an MLflow run per training. User and password are MLflow's own: MLFLOW_TRACKING_USERNAME, ..."""

    kind: Literal["mlflow"]
    tracking_uri: str = Field(description="https://host, or file:///folder; sqlite:///file needs the whole of mlflow")
    experiment: str = Field(min_length=1, description="made where there is none")

    @model_validator(mode="after")
    def _an_address_without_secrets(self) -> Mlflow:
        scheme, separator, rest = self.tracking_uri.partition("://")
        if not separator and scheme != "databricks":
            raise ValueError(f"tracking_uri: expected https://host or file:///folder, found {self.tracking_uri!r}")
        if "@" in rest.split("/")[0]:
            raise ValueError(
                "tracking_uri: a recipe holds no secrets; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


Tracker = Annotated[Wandb | Mlflow, Field(discriminator="kind")]


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
    answers: Answers = Answers()
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
        if self.answers.vote and self.teacher.sampling.n < 2:
            raise ValueError("answers.vote: a vote needs teacher.sampling.n of 2 or more")
        if self.answers.chosen() and self.student.training.needs_teacher():
            if self.student.training.teacher.kind == "store":
                raise ValueError("answers: what is chosen are texts: student.training.teacher in_process or actors")
        if self.answers.chosen() and sequences != "pseudo_targets":
            raise ValueError(f"answers: chosen answers are learnt as pseudo_targets, found sequences: {sequences}")
        if self.answers.chosen() and isinstance(self.method, Distill) and self.method.overlap:
            raise ValueError("method.overlap: answers are chosen when all are there: no answers.vote, retries, invalid")
        if self.student.training.needs_teacher() and self.teacher.model.kind == "served":
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
                    "student.training.teacher: mckd's rows are texts: kind in_process or actors, found store, "
                    "which goes with method.exchange: top_k"
                )
            if self.method.weigh == "confidence" and self.student.task == "regression":
                raise ValueError("method.weigh: confidence is a probability, and a regression has none")
            if soft and not stored:
                raise ValueError(
                    "method.exchange: top_k needs student.training.losses on probabilities, from teacher: {kind: store}"
                )
        if self.student.training.needs_teacher() and self.student.task != self.teacher.task:
            raise ValueError(f"teacher.task: expected {self.student.task}, the student's, found {self.teacher.task}")
        if sequences == "mixture" and self.student.training.needs_teacher():
            if self.student.training.teacher.kind == "store":
                raise ValueError("student.training.teacher: gold targets are not in the store: in_process or actors")
        if self.teacher.model.kind == "config" and not self.teacher.fine_tune:
            raise ValueError("a teacher of kind config has random weights: it needs teacher.fine_tune")
        if self.teacher.model.kind == "cut" and not self.teacher.fine_tune:
            raise ValueError("a teacher of kind cut lacks layers it was trained with: it needs teacher.fine_tune")
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


# -------------------------------------------------------------------------------------------- loading


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a YAML file, with `section.field=value` overrides; relative paths are taken from here.

    Raises RecipeError, in one line, for a missing file, broken YAML, an unknown key or a value that does not fit.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    for text in overrides or []:
        _override(tree, text)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("; ".join(f"{path}: {_one_line(e)}" for e in error.errors())) from None


def changed(recipe: Recipe, changes: dict[str, Any], where: str) -> Recipe:
    """The recipe with other values of `section.field`s, set in this order. Raises RecipeError, which names `where`."""
    tree = recipe.model_dump(mode="json")
    for name, value in changes.items():
        _set(tree, name, value)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("; ".join(f"{where}: {_one_line(e)}" for e in error.errors())) from None


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every default written out, and loading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def resolve(recipe: Recipe) -> Recipe:
    """The same recipe with local paths made absolute, so that it means the same from any folder."""

    def absolute(value: Any) -> Any:
        if isinstance(value, BaseModel):
            changes = {}
            for name in type(value).model_fields:
                old = getattr(value, name)
                new = absolute(old)
                local = name == "path" or (name == "name" and isinstance(value, DatasetRows))
                if local and "://" not in old and Path(old).exists():
                    new = str(Path(old).absolute())
                if new is not old:
                    changes[name] = new
            return value.model_copy(update=changes) if changes else value
        return value

    resolved = absolute(recipe)
    output = recipe.output if "://" in recipe.output else str(Path(recipe.output).absolute())
    return resolved.model_copy(update={"output": output})


def settings_of(method: Method) -> list[str]:
    """The numbers of a method, and what of it is not as by default, as a reader would say them."""
    numbers = {name: getattr(method, name) for name in ("partitions", "stages") if hasattr(method, name)}
    others = method.model_dump(mode="json", exclude={"kind", *numbers}, exclude_defaults=True)
    said = [f"{value} {name}" for name, value in numbers.items()]
    return said + [name if value is True else f"{name} {value}" for name, value in flat(others).items() if name]


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Fields whose values differ and that change what a run computes, as `field: old -> new`."""
    skip: Any = {"cluster": True, "description": True, "trackers": True}
    skip |= {"student": {"push_to_hub"}, "data": {"max_bad_rows"}}
    left = flat(old.model_dump(mode="json", exclude=skip))
    right = flat(new.model_dump(mode="json", exclude=skip))
    names = [*left, *(name for name in right if name not in left)]
    return [f"{n}: {left.get(n)!r} -> {right.get(n)!r}" for n in names if left.get(n) != right.get(n)]


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """Nested settings as `section.field` -> value; an empty section is a value."""
    if isinstance(value, dict) and value:
        return {k: v for key, part in value.items() for k, v in flat(part, f"{at}.{key}" if at else key).items()}
    return {at: value}


def _override(tree: dict, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise RecipeError(f"override {text!r}: expected section.field=value")
    try:
        _set(tree, name, yaml.safe_load(value))
    except yaml.YAMLError:
        raise RecipeError(f"override {text!r}: the value is not YAML") from None


def _set(tree: dict, name: str, value: Any) -> None:
    *sections, field = name.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise RecipeError(f"{name}: {section} is no section")
    tree[field] = value


def _one_line(error: Any) -> str:
    """One validation error as `field: what is wrong`, with the nearest known name for an unknown key."""
    at, known = [], Recipe
    for part in error["loc"]:
        if isinstance(part, int) and get_origin(known) is list:
            at.append(str(part))
            known = get_args(known)[0]
            continue
        models = _models(known)
        tags = [m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)]
        if tags and not any(part in m.model_fields for m in models):
            known = tags[0]  # pydantic names the chosen member of a union; a user does not
            continue
        at.append(str(part))
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if error["type"] == "extra_forbidden" and part == error["loc"][-1] and not fields:
            names = [name for m in models for name in m.model_fields]
            near = difflib.get_close_matches(str(part), names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
            return f"{'.'.join(at)}: unknown key; {hint}"
        known = fields[0] if fields else None
    message = error["msg"].removeprefix("Value error, ")
    found = error.get("input")
    shown = (
        f", found {found!r}" if at and not isinstance(found, (dict, BaseModel)) and error["type"] != "missing" else ""
    )
    return f"{'.'.join(at)}: {message}{shown}" if at else message


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (dict, list, Literal):
        return []
    return [model for part in get_args(annotation) for model in _models(part)]
