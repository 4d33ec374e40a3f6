"""Tokenizers that mean the same, and those that only look alike."""

import pytest

from raykd.errors import ModelError
from raykd.models import build_tokenizer, load_tokenizer, shared_columns
from raykd.recipe import WordsTokenizer


def words(folder, *texts, extra=()):
    build_tokenizer(WordsTokenizer(kind="words", extra=list(extra)), list(texts), folder)
    return load_tokenizer(folder)


def test_tokens_that_only_one_of_two_like_tokenizers_has_are_cut(tmp_path):
    student, teacher = words(tmp_path / "a", "a b c d"), words(tmp_path / "b", "a b c d")
    assert shared_columns(student, teacher) == len(student)
    teacher.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    assert shared_columns(student, teacher) == len(student) == len(teacher) - 1


def test_tokenizers_of_one_width_that_encode_differently_are_refused(tmp_path):
    student, teacher = words(tmp_path / "a", "a b c d"), words(tmp_path / "b", "a b c e")
    assert len(student) == len(teacher)
    with pytest.raises(ModelError, match=r"the tokenizers differ, .*'d' is \[\d+\] to the student's and \[2\] to the"):
        shared_columns(student, teacher)
