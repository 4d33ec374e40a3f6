"""Formats by name."""

import pytest

from raykd.data.tasks.formats import Format, get_format
from raykd.errors import RecipeError
from raykd.recipe.names import FORMAT, known_names


def test_a_label_is_one_of_the_student_s():
    form = get_format("labels", ["book", "playlist", "play"])
    assert [form.invalid("x", answer) for answer in ("play", " book\n")] == [None, None]
    assert form.invalid("x", "Play") == "'Play' is none of the labels"
    answers = ["Play", "not play but book", "It is PLAYLIST.", "plaayl", "", "???", " play "]
    assert [form.repair("x", a) for a in answers] == ["play", "book", "playlist", "play", None, None, " play "]


@pytest.mark.parametrize(
    ("labels", "answer", "named"),
    [
        (["entailment", "not_entailment"], "not_entailment.", "not_entailment"),
        (["entailment", "not_entailment"], "The answer is Not_Entailment", "not_entailment"),
        (["positive", "not positive"], "It is not positive.", "not positive"),
        (["relevant", "irrelevant"], "Irrelevant", "irrelevant"),
        (["A", "B", "C", "D"], "B) Paris", "B"),
        (["A", "B", "C", "D"], "B because it is", "B"),
        (["0", "1"], "1 (confidence 0.9)", "1"),
        (["a", "A"], "it is A", "A"),
    ],
)
def test_a_label_is_named_by_whole_words_and_the_longest_counts(labels, answer, named):
    assert get_format("labels", labels).repair("x", answer) == named


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slot", "did you mean slots?"),
        ("labels", "student.labels"),
        ("nowhere:FORM", "nowhere"),
        ("raykd.data.tasks.formats:label_format", "expected a Format, found a function"),
    ],
)
def test_a_format_that_is_not_there_is_refused(name, message):
    with pytest.raises(RecipeError, match=message):
        get_format(name)


def test_every_format_s_module_has_it():
    assert len(known_names(FORMAT)) == 7
    for name in known_names(FORMAT):
        assert isinstance(get_format(name), Format)
