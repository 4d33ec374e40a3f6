"""TODO: docstring."""

from __future__ import annotations

from raykd.data.splits import Splits
from raykd.recipe.models import Checkpoint, EndpointModel
from raykd.run.session import Session
from raykd.stages.train import TrainingData, train_students


def fine_tuned_teacher(session: Session, rows: Splits) -> str:
    """The teacher's folder: fine-tuned on gold pairs where the recipe asks for it, else as it is; or its name."""
    teacher = session.recipe.teacher
    if isinstance(teacher.model, EndpointModel):
        return teacher.model.name
    if teacher.fine_tune is None:
        assert isinstance(teacher.model, Checkpoint)
        return teacher.model.path
    training_data = TrainingData(rows.gold, teacher.fine_tune, rows.dev or None)
    return train_students(session, rows, {"teacher/fine_tune": training_data}, teacher)["teacher/fine_tune"]["model"]
