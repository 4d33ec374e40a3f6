"""The losses that a recipe knows are those that `raykd.losses` computes."""

import pytest

from raykd.losses.kinds import LOSSES as COMPUTED
from raykd.recipe.losses import LOSSES
from raykd.recipe.training import Training


def training_of(*losses: str) -> Training:
    return Training.model_validate({"learning_rate": 0.1, "max_steps": 1, "losses": {name: {} for name in losses}})


def test_recipes_and_losses_have_one_list():
    assert list(LOSSES) == list(COMPUTED)
    for name, kind in LOSSES.items():
        assert (kind.teacher, kind.regression) == (COMPUTED[name].teacher, COMPUTED[name].regression), name


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_whether_it_needs_a_teacher(name):
    training = training_of("raykd.losses.divergences:jsd", name)
    assert training.teacher_losses() == ([name] if LOSSES[name].teacher else [])
    assert training.needs_teacher() == LOSSES[name].teacher


def test_a_users_own_loss_needs_no_teacher():
    training = training_of("mine:loss")
    assert not training.needs_teacher() and training.teacher_losses() == []
