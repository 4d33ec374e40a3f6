"""TODO: docstring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raykd.models import card
from raykd.models.files import content_hash
from raykd.recipe.load import dump_recipe, method_settings
from raykd.recipe.models import EndpointModel, FromConfig, Model, TeacherModel
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.training import Training
from raykd.run.session import Session
from raykd.stages.rows import environment


def write_model_card(
    session: Session,
    name: str,
    model: Model,
    training: Training,
    side: Teacher | Student,
    folder: Path,
    stats: dict[str, Any],
) -> None:
    """The model card of a model that was trained."""
    recipe, method = session.recipe, session.recipe.method
    unlabelled = recipe.data.unlabelled
    source = (
        getattr(unlabelled, "path", None) or getattr(unlabelled, "name", None) or getattr(unlabelled, "function", "")
    )
    began = model.path if not isinstance(model, FromConfig) else None
    facts = card.Card(
        name=recipe.name,
        arm=name,
        method=" ".join([method.kind, *method_settings(method)]),
        teacher=_named(recipe.teacher.model) if side is not recipe.teacher else "none: this is the teacher",
        student=_named(model),
        data=f"{source}: {stats['rows']} rows, {stats['dev_rows']} to judge by; licence: {recipe.data.licence}",
        losses=", ".join(f"{loss.weight:g} {kind}" for kind, loss in training.losses.items()),
        command=f"raykd run {recipe.name}.yaml",
        recipe=dump_recipe(recipe),
        seed=recipe.seed,
        base_model=began,
        versions=environment()["packages"],
    )
    card.write_card(folder, facts)


def _named(model: TeacherModel) -> str:
    if isinstance(model, EndpointModel):
        return model.name
    return f"{model.model_type} from random weights" if isinstance(model, FromConfig) else model.path


def publish_student(session: Session, model: str) -> None:
    """Put a student on the hub, where the recipe asks for it."""
    push = session.recipe.student.push_to_hub
    if push is None:
        return

    def work(_: Path) -> tuple[dict, dict]:
        return {"address": card.push(Path(model), push.repo, push.private)}, {}

    address = session.stage("publish", "publish", {"repo": push.repo, "model": content_hash(Path(model))}, work)
    session.console.say(f"published: {address['address']}")
