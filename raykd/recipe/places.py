"""Where the parts of a recipe stand, for rules and messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raykd.recipe.generation import Sampling
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.training import Training

if TYPE_CHECKING:
    from raykd.recipe.recipe import Recipe


def teacher_field(recipe: Recipe) -> str:
    """Where the teacher stands in the recipe."""
    return f"teachers.{recipe.teacher_name}"


def roles(recipe: Recipe) -> list[tuple[str, Teacher | Student]]:
    return [(teacher_field(recipe), recipe.teacher), ("student", recipe.student)]


def samplings(role: Teacher | Student) -> list[tuple[str, Sampling]]:
    """Where each sampling stands in a role's section, and the sampling."""
    if isinstance(role, Student):
        return [("sampling", role.sampling)]
    answering = [("answering", role.answering)] if role.answering else []
    return [(f"passes.{role.pass_name}", role.sampling), *answering]


def trainings(recipe: Recipe) -> Iterator[tuple[str, Teacher | Student, Training]]:
    """Where a training stands in the recipe, whose it is, and the training."""
    if recipe.teacher.fine_tune:
        yield f"{teacher_field(recipe)}.fine_tune", recipe.teacher, recipe.teacher.fine_tune
    yield "student.training", recipe.student, recipe.student.training


def learns_from_store(recipe: Recipe) -> bool:
    """Whether the student's losses compare it with what the store holds of the teacher."""
    return recipe.student.training.reads_store()


def decodings(recipe: Recipe) -> Iterator[tuple[str, Teacher | Student, Sampling]]:
    """Where a sampling stands in the recipe, whose it is, and the sampling."""
    for name, role in roles(recipe):
        for field, sampling in samplings(role):
            yield f"{name}.{field}", role, sampling
