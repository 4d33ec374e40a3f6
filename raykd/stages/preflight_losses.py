"""Before the teacher is paid: whether the losses of a training can compute anything, and compare with the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raykd.data import prompts
from raykd.data.examples import Example
from raykd.errors import ModelError, RaykdError, RecipeError, comes_again, first_line
from raykd.losses.loss import Loss
from raykd.models import admits
from raykd.models.layers import captured, layer_widths, require_layer
from raykd.models.tokenizers import encode_inputs, load_tokenizer, shared_vocab_size, tokenizer_mark
from raykd.recipe.losses import FeatureLoss
from raykd.recipe.models import EndpointModel, FromConfig
from raykd.recipe.places import teacher_field
from raykd.recipe.recipe import Recipe
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.training import Training
from raykd.stages.prompts import prompt_shots
from raykd.training.losses import build_losses


@contextmanager
def in_field(field: str) -> Iterator[None]:
    """Put the recipe's field before the message of an error; one of Python that would come again is a RecipeError."""
    try:
        yield
    except RaykdError as error:
        raise type(error)(f"{field}: {error}") from None
    except Exception as error:
        if not comes_again(error):
            raise
        raise RecipeError(f"{field}: {type(error).__name__}: {first_line(error)}") from None


def require_losses_of_task(training: Training, task: str) -> None:
    """Raise RecipeError for losses that a model of this task cannot learn from.

    A user's own loss says only when it is imported what it computes on; those of raykd are known to the recipe's rules.
    """
    losses = build_losses(training)
    for loss in losses:
        if loss.of_features and task == "generation":
            raise RecipeError(f"losses.{loss.name}: compares hidden states of encoders, found a generation")
        if not loss.of_features and loss.of_numbers != (task == "regression"):
            computes, expected = ("logits", "numbers") if task == "regression" else ("numbers", "logits")
            raise RecipeError(f"losses.{loss.name}: computes on {computes}, a {task} needs a loss on {expected}")
    if all(loss.of_features for loss in losses):
        raise RecipeError("losses on hidden states alone train no head: give one on targets or logits too")


def require_agreement(recipe: Recipe, tokenizer: str, model: Any, inputs: Sequence[Example]) -> None:
    """Raise ModelError or RecipeError where the student's losses cannot compare it with its teacher.

    tokenizer  folder or hub name of the tokenizer of the student, and of a teacher with random weights
    model      the student, perhaps without weights
    inputs     the first inputs that the student learns
    """
    teacher = recipe.teacher
    if isinstance(teacher.model, EndpointModel):
        return
    folder = tokenizer if isinstance(teacher.model, FromConfig) else teacher.model.path
    if teacher.task == "generation":
        with in_field("student.training.losses"):
            shared_vocab_size(load_tokenizer(tokenizer), load_tokenizer(folder))
    if teacher.task == "extractive_qa" and tokenizer_mark(tokenizer) != tokenizer_mark(folder):
        raise ModelError("student.training: spans are places in a prompt: student and teacher need the same tokenizer")
    losses = [loss for loss in build_losses(recipe.student.training) if loss.of_features]
    if losses:
        _require_same_tokens(recipe, f"student.training.losses.{losses[0].name}", tokenizer, folder, inputs)
        _require_features(recipe, losses, model, folder)


def _require_same_tokens(recipe: Recipe, field: str, tokenizer: str, folder: str, inputs: Sequence[Example]) -> None:
    """Raise ModelError where student and teacher read other tokens: their hidden states are compared one by one."""
    teacher, student = recipe.teacher, recipe.student
    if teacher.prompt == student.prompt and tokenizer_mark(tokenizer) == tokenizer_mark(folder):
        return
    if any(not isinstance(r.prompt, str) and r.prompt.shots and r.prompt.shots.encoder for r in (teacher, student)):
        return  # whose weights take time to read
    student_rows, teacher_rows = _token_ids(student, tokenizer, inputs), _token_ids(teacher, folder, inputs)
    for example, student_row, teacher_row in zip(inputs, student_rows, teacher_rows, strict=True):
        if student_row != teacher_row:
            raise ModelError(
                f"{field}: hidden states are compared token by token, and student and teacher read other tokens of row "
                f"{example.id}: {student_row[:8]} and {teacher_row[:8]}; give them the same tokenizer and prompt"
            )


def _token_ids(role: Teacher | Student, folder: str, inputs: Sequence[Example]) -> list[list[int]]:
    """The prompts of a role for these inputs, as a model with a task head reads them."""
    tokenizer = load_tokenizer(folder, generates=False)
    texts = prompts.renderer(role.prompt, prompt_shots(role), tokenizer)([example.input for example in inputs])
    return encode_inputs(tokenizer, texts, False, prompts.special_tokens(role.prompt))


def _require_features(recipe: Recipe, losses: Sequence[Loss], model: Any, folder: str) -> None:
    """Raise an error for a hidden state that the student or its teacher lacks, or widths that do not fit."""
    teacher, sections = recipe.teacher, recipe.student.training.losses
    assert not isinstance(teacher.model, EndpointModel)
    with in_field(f"{teacher_field(recipe)}.model"):
        other = admits.admitted_model(teacher.model, load_tokenizer(folder, False), teacher.task, teacher.labels)
    sides = [("student", model)] + ([("teacher", other)] if other is not None else [])
    for loss in losses:
        field, code, widths = f"student.training.losses.{loss.name}", loss.loss, []
        for name, side in sides:
            at = f".{name}_layer" if isinstance(sections[loss.name], FeatureLoss) else ""
            needs = code.student_needs if name == "student" else code.teacher_needs
            with in_field(field + at):
                for hidden in needs:
                    require_layer(side.config, hidden.layer, f"the {name}")
                with captured(side, needs):
                    widths.append(layer_widths(side, needs))
        with in_field(field):
            if len(widths) == 2:
                code.fit(*widths)
