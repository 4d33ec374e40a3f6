"""A remote teacher that fails: what is tried again, and what ends the training."""

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from raykd.cluster.score import ActorScorer
from raykd.errors import ModelError, TrainingError


def raising(error):
    def get(request):
        raise error

    return get


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        (ValueError("no such token\nmore"), "training.teacher: ValueError: no such token"),
        (ModelError("t: no safetensors weights"), "training.teacher: t: no safetensors weights"),
        (RuntimeError("shapes cannot be multiplied"), "training.teacher: RuntimeError: shapes cannot be multiplied"),
    ],
)
def test_an_error_of_a_teacher_that_would_come_again_is_the_trainings(monkeypatch, cause, line):
    monkeypatch.setattr(ray, "get", raising(RayTaskError("top_k", "traceback", cause).as_instanceof_cause()))
    with pytest.raises(TrainingError) as error:
        ActorScorer([]).wait(None)  # type: ignore[arg-type]
    assert str(error.value) == line


def test_a_teacher_that_cannot_be_opened_is_the_trainings_error(monkeypatch):
    died = ActorDiedError(RayTaskError("__init__", "Traceback\nModelError: no weights", ModelError("no weights")))
    monkeypatch.setattr(ray, "get", raising(died))
    with pytest.raises(TrainingError, match="^training.teacher: it cannot be opened: .*no weights$"):
        ActorScorer([]).wait(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [ActorDiedError(), RayTaskError("top_k", "traceback", OSError(5, "disk"))])
def test_what_may_pass_stays_what_it_is(monkeypatch, error):
    monkeypatch.setattr(ray, "get", raising(error))
    with pytest.raises(type(error)):
        ActorScorer([]).wait(None)  # type: ignore[arg-type]
