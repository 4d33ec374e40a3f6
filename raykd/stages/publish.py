"""The model card of every trained model, and the stage `publish`: a student goes to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from raykd.models import card
from raykd.models.files import content_hash
from raykd.recipe.load import dump_recipe, method_settings
from raykd.recipe.models import EndpointModel, FromConfig, TeacherModel
from raykd.recipe.roles import Student, Teacher
from raykd.run.session import Session
from raykd.stages.rows import environment
from raykd.training.job import TrainingSpec, TrainingStats


def write_model_card(
    session: Session, spec: TrainingSpec, role: Teacher | Student, folder: Path, stats: TrainingStats
) -> None:
    """Write the model card of a trained model into its folder; `stats` are its training's."""
    recipe, method = session.recipe, session.recipe.method
    unlabelled = recipe.data.unlabelled
    source = (
        getattr(unlabelled, "path", None) or getattr(unlabelled, "name", None) or getattr(unlabelled, "function", "")
    )
    base_model = spec.model.path if not isinstance(spec.model, FromConfig) else None
    facts = card.Card(
        name=recipe.name,
        arm=spec.name,
        method=" ".join([method.kind, *method_settings(method)]),
        teacher=_model_name(recipe.teacher.model) if role is not recipe.teacher else "none: this is the teacher",
        student=_model_name(spec.model),
        data=f"{source}: {stats['rows']} rows, {stats['dev_rows']} to judge by; licence: {recipe.data.licence}",
        losses=", ".join(f"{loss.weight:g} {kind}" for kind, loss in spec.training.losses.items()),
        command=f"raykd run {recipe.name}.yaml",
        recipe=dump_recipe(recipe),
        seed=recipe.seed,
        base_model=base_model,
        versions=environment()["packages"],
    )
    card.write_card(folder, facts)


def _model_name(model: TeacherModel) -> str:
    if isinstance(model, EndpointModel):
        return model.name
    return f"{model.model_type} from random weights" if isinstance(model, FromConfig) else model.path


def publish_student(session: Session, model: str) -> None:
    """Publish a student's folder on the hub if the recipe has `student.push_to_hub`. Raises ModelError if it fails."""
    push = session.recipe.student.push_to_hub
    if push is None:
        return

    def work(_: Path) -> tuple[dict, dict]:
        return {"address": card.push(Path(model), push.repo, push.private)}, {}

    address = session.stage("publish", "publish", {"repo": push.repo, "model": content_hash(Path(model))}, work)
    session.console.say(f"published: {address['address']}")
