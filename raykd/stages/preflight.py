"""Before fine-tuning and the first prompt: what the recipe, the models and the first rows show without an engine.

Nothing is written but the tokenizer that models with random weights share. No weights are read, and no Ray is needed.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykd import metrics
from raykd.data import prompts
from raykd.data.examples import Example
from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.data.splits import Splits
from raykd.engines.engine import reject
from raykd.errors import DataError, RecipeError, first_line
from raykd.models import admits
from raykd.models.files import saved_configuration
from raykd.models.tokenizers import encode_inputs, load_tokenizer
from raykd.recipe.generation import EndpointEngine, TopKPayload, VllmEngine
from raykd.recipe.methods import Mckd
from raykd.recipe.metrics import metric_kinds
from raykd.recipe.models import EndpointModel, FromConfig, Model
from raykd.recipe.names import code_digests
from raykd.recipe.places import teacher_field
from raykd.recipe.recipe import Recipe
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.training import Training
from raykd.run.session import Session
from raykd.stages.label import decoding_parts
from raykd.stages.preflight_losses import in_field, require_agreement, require_losses_of_task
from raykd.stages.prompts import prompt_shots
from raykd.stages.rows import json_lines, output_format, read_rows
from raykd.stages.tokenizer import shared_tokenizer
from raykd.stages.train import prompt_encoder
from raykd.store.open import require_parts

FIRST = 64  # rows of each split that are encoded
SCORED = 2000  # test rows that every metric must be able to score
LABELS = "teacher/labels"  # the stage after which the teacher is paid


@dataclass(frozen=True)
class _Training:
    """A training that the run will do: where it stands in the recipe, and the gold rows that it learns, by split."""

    field: str
    role: Teacher | Student
    training: Training
    model: Model
    tokenizer: str  # folder or hub name
    rows: dict[str, list[Example]]


def preflight(session: Session) -> None:
    """Check what can be known before the teacher is paid; does nothing where it has been.

    Raises RecipeError, ModelError or DataError, in one line, and the errors of `read_rows`.
    """
    if session.folder.is_complete(LABELS):
        return
    splits, recipe = read_rows(session), session.recipe
    _check_counts(recipe, splits)
    shared = shared_tokenizer(session, splits)
    _check_surroundings(recipe)
    trainings = list(_trainings(recipe, splits, shared))
    for training in trainings:
        _check_training(session, training, splits.unlabelled[:FIRST])
    _check_teacher(recipe, shared)
    for field, role in ((teacher_field(recipe), recipe.teacher), ("student", recipe.student)):
        _check_prompts(recipe, field, role, shared, splits.unlabelled[:FIRST])
    _check_formats(session, splits)
    _check_metrics(recipe, splits)


def _trainings(recipe: Recipe, splits: Splits, shared: str) -> Iterator[_Training]:
    teacher, student, arm = recipe.teacher, recipe.student, recipe.arms.gold_only
    dev = {"data.dev": splits.dev} if splits.dev else {}

    def tokenizer(model: Model) -> str:
        return shared if isinstance(model, FromConfig) else model.path

    if teacher.fine_tune and not isinstance(teacher.model, EndpointModel):
        rows = {"data.gold": splits.gold, **dev}
        model = teacher.model
        yield _Training(f"{teacher_field(recipe)}.fine_tune", teacher, teacher.fine_tune, model, tokenizer(model), rows)
    rows = {"data.gold": splits.gold} if _learns_gold(recipe) else {}
    model = student.model
    yield _Training("student.training", student, student.training, model, tokenizer(model), rows)
    if arm:
        if arm.settings and isinstance(model, FromConfig):
            model = model.model_copy(update={"settings": {**model.settings, **arm.settings}})
        rows = {"arms.gold_only.rows": splits.control, **dev}
        yield _Training("arms.gold_only", student, student.training, model, tokenizer(model), rows)


def _learns_gold(recipe: Recipe) -> bool:
    """Whether the student learns gold targets as well."""
    mixed_in = isinstance(recipe.method, Mckd) and recipe.method.gold
    return mixed_in or "gold" in recipe.student.training.sequences.sources()


# ------------------------------------------------------------------------------------------------------------ trainings


def _check_training(session: Session, plan: _Training, inputs: list[Example]) -> None:
    """Raise an error for a training that could not begin; `inputs`: the first ones."""
    from raykd.training import setup

    role, settings = plan.role, plan.training
    with in_field(plan.field):
        if plan.field != "arms.gold_only":
            require_losses_of_task(settings, role.task)
        setup.build_schedule(settings, settings.max_steps or setup.UNKNOWN_STEPS)
        tokenizer = load_tokenizer(plan.tokenizer, role.task == "generation")
        model = admits.admitted_model(plan.model, tokenizer, role.task, role.labels)
        if model is None:
            return
        admits.require_adapters(model, settings.lora, settings.gradient_checkpointing)
    encoder = prompt_encoder(role, plan.tokenizer, role.task == "generation" and model.config.is_encoder_decoder)
    positions = admits.learned_positions(model)
    if positions and settings.dev_metrics and settings.dev_prediction_tokens >= positions:
        raise RecipeError(
            f"{plan.field}.dev_prediction_tokens: expected less than {positions}, the model's positions, "
            f"found {settings.dev_prediction_tokens}"
        )
    for split, examples in plan.rows.items():
        _check_gold(session.recipe, plan, encoder, positions, split, examples[:FIRST])
    if plan.field == "student.training" and settings.needs_teacher():
        require_agreement(session.recipe, plan.tokenizer, model, inputs)


def _check_gold(
    recipe: Recipe, plan: _Training, encoder: PromptEncoder, positions: int | None, split: str, rows: list[Example]
) -> None:
    """Raise DataError where gold rows cannot be learnt, as the training would."""
    from raykd.training.encode import Limits, encode_source

    settings = plan.training
    limits = Limits(
        name=f"{plan.field}: {split}",
        input_tokens=min(settings.max_input_tokens, positions or settings.max_input_tokens),
        target_tokens=settings.max_target_tokens,
        long_targets=settings.long_targets,
        empty_targets=settings.empty_targets,
        bad_rows=recipe.data.max_bad_rows,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text(json_lines({"id": e.id, "input": e.input, "target": e.target} for e in rows), encoding="utf-8")
        summary = encode_source(Path(folder) / "rows.arrow", FileSource(str(file)), encoder, None, limits)
    if rows and not summary["rows"]:
        reason = summary["bad_rows"][0]["reason"] if summary["bad_rows"] else "they have no targets"
        raise DataError(f"{plan.field}: none of the first {len(rows)} rows of {split} can be learnt: {reason}")


# -------------------------------------------------------------------------------------------------- teacher and prompts


def _check_teacher(recipe: Recipe, shared: str) -> None:
    """Raise ModelError or RecipeError for a teacher that could not label."""
    teacher = recipe.teacher
    if isinstance(teacher.model, EndpointModel):
        return
    opens = teacher.engine.kind in ("vllm", "transformers")
    if opens and not teacher.fine_tune and not isinstance(teacher.model, FromConfig):
        with in_field(f"{teacher_field(recipe)}.model"):
            admits.require_trained_for(teacher.model.path, teacher.task)
            tokenizer = load_tokenizer(teacher.model.path, teacher.task == "generation")
            admits.admitted_model(teacher.model, tokenizer, teacher.task, teacher.labels)
    if isinstance(teacher.engine, VllmEngine):
        _check_vllm(
            teacher_field(recipe),
            teacher,
            len(load_tokenizer(shared)) if isinstance(teacher.model, FromConfig) else None,
        )


def _check_vllm(field: str, teacher: Teacher, words: int | None) -> None:
    """Raise RecipeError for what vLLM would refuse; `words`: the teacher's tokens, None: its configuration says."""
    assert isinstance(teacher.engine, VllmEngine) and not isinstance(teacher.model, EndpointModel)
    config = _settled_configuration(teacher.model).get_text_config()
    payload, arguments = teacher.payload, teacher.engine.arguments
    tokens: int = words or config.vocab_size or 0
    if isinstance(payload, TopKPayload) and 0 < tokens < payload.k:
        raise RecipeError(f"{field}.payload.k: expected at most {tokens}, the teacher's tokens, found {payload.k}")
    context, longest = admits.context_length(config), arguments.get("max_model_len")
    rope = getattr(config, "rope_parameters", None) or {}
    scaled = rope.get("rope_type", "default") != "default" or "hf_overrides" in arguments
    allowed = scaled or os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")
    most = max(context or 0, getattr(config, "model_max_length", None) or 0)
    if most and longest and longest > most and not allowed:
        raise RecipeError(
            f"{field}.engine.arguments.max_model_len: expected at most {most}, the model's positions, found {longest}"
        )
    parallel, heads = arguments.get("tensor_parallel_size", 1), config.num_attention_heads
    if heads % parallel:
        raise RecipeError(
            f"{field}.engine.arguments.tensor_parallel_size: expected a divisor of {heads}, the model's attention "
            f"heads, found {parallel}"
        )


def _check_prompts(recipe: Recipe, field: str, role: Teacher | Student, shared: str, rows: list[Example]) -> None:
    """Raise an error where prompts cannot be made, or where models read too few of the first inputs."""
    model, endpoint = role.model, isinstance(role.engine, EndpointEngine)
    tokenizer = None
    if not isinstance(model, EndpointModel):
        tokenizer = load_tokenizer(shared if isinstance(model, FromConfig) else model.path, role.task == "generation")
    with in_field(f"{field}.prompt"):
        shots, prompt = prompt_shots(role), role.prompt
        if not isinstance(prompt, str) and prompt.shots and prompt.shots.encoder:  # whose weights take time to read
            load_tokenizer(prompt.shots.encoder, generates=False)
            prompt = prompt.model_copy(update={"shots": None})
        texts = prompts.renderer(prompt, shots, tokenizer, endpoint)([e.input for e in rows])
    if tokenizer is None or isinstance(model, EndpointModel):
        return
    config = _settled_configuration(model)
    reads = bool(config.is_encoder_decoder) and role.task == "generation"
    ids = encode_inputs(tokenizer, texts, reads, prompts.special_tokens(role.prompt))
    reasons = [_why_not(role, config, len(row), reads) for row in ids]
    if field == "student" and not recipe.pseudo_targets.selects():
        most = recipe.student.training.max_input_tokens
        long = (f"input of {len(row)} tokens, student.training.max_input_tokens is {most}" for row in ids)
        reasons = [
            reason or (why if len(row) > most else None) for reason, why, row in zip(reasons, long, ids, strict=True)
        ]
    bad = [(row, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    if bad and (len(bad) > recipe.data.max_bad_rows or len(bad) == len(rows)):
        (row, reason), counts = bad[0], f"{len(bad)} of the first {len(rows)} inputs"
        raise DataError(f"{field}: row {row.id}: {reason} ({counts}, {recipe.data.max_bad_rows} bad rows tolerated)")


def _settled_configuration(model: Model) -> Any:
    """The configuration with the recipe's settings."""
    from transformers import AutoConfig

    if isinstance(model, FromConfig):
        return AutoConfig.for_model(model.model_type, **model.settings)
    return saved_configuration(model.path)


def _why_not(role: Teacher | Student, config: Any, tokens: int, encoder: bool) -> str | None:
    """Why the role's engine would reject a prompt of so many tokens; None where it would not."""
    context = admits.context_length(config)
    if isinstance(role.engine, VllmEngine):
        context = role.engine.arguments.get("max_model_len") or context
    if role.engine.kind not in ("vllm", "transformers") or context is None:
        return None
    if role.task != "generation":
        return f"prompt of {tokens} tokens > the model's context of {context}" if tokens > context else None
    rejected = reject(tokens, "max_tokens", role.sampling.max_tokens, context, encoder)
    return rejected.reason if rejected else None


# ----------------------------------------------------------------------------------------------- counts, scores, places


def _check_counts(recipe: Recipe, splits: Splits) -> None:
    """Raise DataError for too few inputs to learn from and to evaluate on: an input is never both."""
    parts = recipe.method.partitions if isinstance(recipe.method, Mckd) else 1
    different = len({example.input for example in splits.unlabelled})
    if different < 2 * parts:
        raise DataError(f"data.unlabelled: {different} different inputs, expected {2 * parts} or more")


def _check_formats(session: Session, splits: Splits) -> None:
    """Raise DataError where no gold target has the recipe's format."""
    form = output_format(session)
    for field, examples in (("data.gold", splits.gold), ("data.test", splits.test)):
        reasons = [form.invalid(example.input, example.target or "") for example in examples[:FIRST]]
        if reasons and all(reasons):
            name = session.recipe.pseudo_targets.format
            raise DataError(
                f"pseudo_targets.format: none of the first {len(reasons)} targets of {field} is of the format {name}: "
                f"{str(reasons[0])[:200]}"
            )


def _check_metrics(recipe: Recipe, splits: Splits) -> None:
    """Raise DataError for a metric that cannot score the rows that it will score; their targets are the predictions."""
    scored = [
        ("metrics", name, examples)
        for name in metric_kinds(recipe.metrics)
        for examples in (splits.test, splits.unlabelled)
    ]
    scored += [("dev_metrics", name, splits.dev) for name in metric_kinds(recipe.student.training.dev_metrics)]
    consistency = recipe.method.consistency_filter if isinstance(recipe.method, Mckd) else None
    if consistency:
        scored.append(("method.consistency_filter", consistency.metric, splits.test or splits.gold or splits.dev))
    for field, name, examples in scored:
        rows = [example for example in examples[:SCORED] if example.target is not None]
        if rows:
            with in_field(f"{field}: {name}"):
                metrics.get(name)([e.target or "" for e in rows], [e.references_with_target() for e in rows])


def _check_surroundings(recipe: Recipe) -> None:
    """Raise RecipeError for a package, a key or a place that the run will need and does not have."""
    if not os.environ.get("RAY_ADDRESS") and not os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):  # all on this machine
        for field, role in ((teacher_field(recipe), recipe.teacher), ("student", recipe.student)):
            if isinstance(role.engine, VllmEngine) and importlib.util.find_spec("vllm") is None:
                raise RecipeError(f"{field}.engine: vllm is not installed: pip install 'raykd[cpu]' or 'raykd[vllm]'")
            key = role.engine.api_key_env if isinstance(role.engine, EndpointEngine) else None
            if key and not os.environ.get(key):
                raise RecipeError(f"{field}.engine.api_key_env: the environment has no {key}")
    if recipe.student.push_to_hub:
        from huggingface_hub import get_token

        if get_token() is None:
            raise RecipeError("student.push_to_hub: no token for the hub: set HF_TOKEN, or `hf auth login`")
    place = recipe.cluster.student.storage
    if place:
        _check_place("cluster.student.storage", place)
    if recipe.teacher.store:
        field = f"{teacher_field(recipe)}.store"
        _check_place(field, recipe.teacher.store)
        with in_field(field):
            parts = decoding_parts(recipe.teacher, recipe.seed)
            require_parts(recipe.teacher.store, parts | code_digests(recipe.teacher.engine, recipe.modules))


def _check_place(field: str, place: str) -> None:
    """Raise RecipeError for a folder or URL that cannot be made, or written into."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(place)
        system.makedirs(path, exist_ok=True)
        if "file" in system.protocol and not os.access(path, os.W_OK):
            raise PermissionError("it cannot be written")
    except Exception as error:  # of as many kinds as there are file systems
        raise RecipeError(f"{field}: {place}: {first_line(error)}") from None
