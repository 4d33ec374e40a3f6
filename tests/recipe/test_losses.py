"""Every loss of a recipe has its own section, which says what computes it."""

import importlib
import inspect
import re

import pytest
from pydantic import ValidationError

from raykd.errors import RecipeError
from raykd.recipe.losses import COMMON, LOSSES
from raykd.recipe.training import Training
from raykd.training.losses import build_losses


def training_of(**losses: dict) -> Training:
    return Training.model_validate({"learning_rate": 0.1, "max_steps": 1, "losses": losses})


@pytest.mark.parametrize("name", LOSSES)
def test_a_section_says_what_its_code_needs_and_has_its_defaults(name):
    section = LOSSES[name]
    (loss,) = build_losses(training_of(**{name: {}}))
    assert (loss.name, loss.of_numbers, loss.of_features) == (name, section.regression, section.features)
    assert bool(loss.needs & {"teacher", "features"}) == section.teacher
    module, _, attribute = section.code.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    options = {n: field.default for n, field in section.model_fields.items() if n not in COMMON}
    assert options == {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_whether_it_needs_a_teacher(name):
    training = training_of(**{"first": {"kind": "jsd"}, name: {}})
    assert training.teacher_losses() == (["first", name] if LOSSES[name].teacher else ["first"])
    assert training_of(**{name: {}}).needs_teacher() == LOSSES[name].teacher


def test_names_are_ones_own_and_one_kind_may_be_there_twice():
    training = training_of(soft={"kind": "forward_kl", "temperature": 2.0}, hard={"kind": "forward_kl"}, jsd=None)
    assert [loss.name for loss in build_losses(training)] == ["soft", "hard", "jsd"]
    assert [loss.squared for loss in build_losses(training)] == [True, True, False]
    assert Training.model_validate(training.model_dump(mode="json")) == training


def bounded(student_NE, teacher_NE, power=1.0):
    return (student_NE - teacher_NE).abs().pow(power).sum(1)


def no_loss(logits, power):
    return logits


def test_a_users_own_loss_gets_the_teacher_and_its_options():
    own = {"kind": "test_losses:bounded", "options": {"power": 2.0}, "weight": 0.5}
    (loss,) = build_losses(training_of(own=own))
    assert training_of(own=own).needs_teacher() and loss.needs == {"teacher"} and loss.loss.options == {"power": 2.0}
    with pytest.raises(RecipeError, match=r"losses.own: test_losses:bounded: bounded: .*its options powr"):
        build_losses(training_of(own={**own, "options": {"powr": 2.0}}))
    with pytest.raises(RecipeError, match="compares with the teacher's outputs: set teacher_outputs: true"):
        build_losses(training_of(own={**own, "teacher_outputs": False}))
    with pytest.raises(RecipeError, match="a loss is a function of student_NE, teacher_NE, at_N"):
        build_losses(training_of(own={"kind": "test_losses:no_loss"}))
    with pytest.raises(RecipeError, match=r"losses.own: nowhere:loss: No module named 'nowhere'"):
        build_losses(training_of(own={"kind": "nowhere:loss"}))


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"jsd": {"bata": 0.3}}, r"losses.jsd.*bata\n.*Extra inputs"),
        ({"jsd": {"options": {"beta": 0.3}}}, r"losses.jsd.*options\n.*Extra inputs"),
        ({"jsd": {"beta": 1.2}}, "less than or equal to 1"),
        ({"skewed_forward_kl": {"alpha": 1.7}}, "less than 1"),
        ({"skewed_reverse_kl": {"alpha": -0.1}}, "greater than or equal to 0"),
        ({"atkd": {"hard_share": 1.0}}, "less than 1"),
        ({"forward_kl": {"easy_weight": 0.2}}, r"easy_weight\n.*Extra inputs"),
        ({"nucleus_kl": {"p": 0}}, "greater than 0"),
        ({"teacher_mse": {"temperature": 2.0}}, r"temperature\n.*Extra inputs"),
        ({"cross_correlation": {"mask": "add"}}, "mask does nothing without keep"),
        ({"jds": {}}, "jds: no such loss; did you mean jsd"),
        ({"mine": {"kind": "jds"}}, "mine.kind 'jds': no such loss; did you mean jsd"),
        ({"loss": {"kind": "jsd"}}, "losses.loss: the log has another number of this name"),
    ],
)
def test_what_a_loss_does_not_have_is_refused(losses, words):
    with pytest.raises(ValidationError, match=re.compile(words, re.DOTALL)):
        training_of(**losses)
