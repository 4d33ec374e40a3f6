"""The stage `teacher/fine_tune`: the teacher learns gold pairs before it labels."""

from __future__ import annotations

from raykd.data.splits import Splits
from raykd.recipe.models import Checkpoint, EndpointModel
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.train import TrainingData, train_students

STAGE = "teacher/fine_tune"


def fine_tuned_teacher(session: Session, splits: Splits) -> str:
    """The folder of the teacher, which is fine-tuned first if the recipe has `fine_tune` for it.

    For a teacher behind an endpoint it returns the model's name. Raises the errors of `train_students`.
    """
    teacher = session.recipe.teacher
    if isinstance(teacher.model, EndpointModel):
        return teacher.model.name
    if teacher.fine_tune is None:
        assert isinstance(teacher.model, Checkpoint)
        return teacher.model.path
    data = TrainingData(
        rows=splits.gold, about=StageAbout(arm="teacher"), training=teacher.fine_tune, dev=splits.dev or None
    )
    return train_students(session, splits, {STAGE: data}, role=teacher)[STAGE].folder
