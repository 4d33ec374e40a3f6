"""Snips utterances: read, cut into parts, and written in every form."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from raykd.data.rows import BadRows, read_examples
from raykd.data.tasks.bio import bio
from raykd.data.tasks.formats import get_format
from raykd.data.tasks.interleaved import interleaved
from raykd.data.tasks.slot_rows import FORMS
from raykd.data.tasks.slots import intent, tags
from raykd.data.tasks.snips import snips
from raykd.data.tasks.top import top
from raykd.errors import DataError, RecipeError
from raykd.metrics.slots import chunk_f1
from raykd.recipe.data import FunctionRows

SNIPS = Path(__file__).parents[3].parent / "shared/data/snips/train.jsonl.gz"
present = pytest.mark.skipif(not SNIPS.exists(), reason="the Snips file lies beside the checkout, here there is none")
FORMATS = {"interleaved": get_format("slots"), "top": get_format("top"), "intent": get_format("intent")}


def record(name, *pieces):
    return {
        "intent": name,
        "data": [{"text": p} if isinstance(p, str) else dict(zip(("text", "entity"), p, strict=True)) for p in pieces],
    }


def snips_file(folder, *lines):
    path = folder / "some.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def everything(path, **options):
    return snips(path, "all", shares={"all": 1}, **options)


def test_a_word_belongs_to_the_first_entity_that_has_a_piece_of_it(tmp_path):
    path = snips_file(
        tmp_path,
        record("A", "play ", ("Madonna", "artist"), "'s  songs in ", ("Meers", "city"), ",", ("MP", "state"), "\n"),
        record("B", ("in a year ", "time"), ("x", "one"), " ", ("y", "one"), ("z", "two"), ("w w", "two"), "."),
    )
    rows = {row["id"]: (row["input"], row["target"]) for row in everything(path)}
    assert rows == {
        "some:1": ("play Madonna's songs in Meers,MP", "play O Madonna's B-artist songs O in O Meers,MP B-city"),
        "some:2": (
            "in a year x yzw w.",
            "in B-time a I-time year I-time x B-one yzw B-one w. B-two",
        ),
    }


def test_equal_utterances_are_one_row_and_their_kin_lies_in_the_same_part(tmp_path):
    path = snips_file(
        tmp_path,
        *(record("A", f"{word}  it") for word in ("play", "rate", "find", "book")),
        record("B", "play it\n"),
        record("A", " play it"),
        record("A", "Play it"),
    )
    row = {"id": "some:1", "input": "play it", "target": "A", "references": ["B"]}
    for seed in range(8):
        parts = [snips(path, part, form="intent", shares={"x": 0.5, "y": 0.5}, seed=seed) for part in "xy"]
        assert sorted(map(len, parts)) == [2, 3]
        assert [row in part for part in parts] == ["Play it" in {r["input"] for r in part} for part in parts]
    assert {row["input"] for row in everything(path, lower=True)} == {"play it", "rate it", "find it", "book it"}


def test_lines_that_cannot_be_read_say_why_in_every_part(tmp_path):
    path = snips_file(
        tmp_path,
        record("A", "good"),
        "{",
        "",
        [1],
        {"intent": "A"},
        {"intent": "A", "data": [{"text": 1}]},
        record("A", " "),
        record("A", ("x", "a b")),
        "[" * 100_000,
        {"data": []},
    )
    with open(path, "ab") as file:
        file.write(b"\xff\n")
    *bad, good = everything(path)
    assert good["input"] == "good"
    assert bad == [
        "line 2: not JSON",
        "line 4: no intent",
        "line 5: data is no list of {text, entity?}",
        "line 6: data is no list of {text, entity?}",
        "line 7: 0 words, 0 tags",
        "line 8: 'B-a b' is no tag",
        "line 9: nested too deep",
        "line 10: no intent",
        "line 11: not UTF-8",
    ]
    assert snips(path, "none", shares={"all": 1, "none": 0}) == bad
    with pytest.raises(DataError, match="line 2: not JSON"):
        list(read_examples(rows_of(path=path, part="train"), BadRows(0), need_target=True))
    assert (
        "line 1: intent 'two words' holds a blank"
        in everything(snips_file(tmp_path, record("two words", "a")), form="top")[0]
    )


def rows_of(**arguments):
    return FunctionRows(kind="function", function="raykd.data.tasks.snips:snips", arguments=arguments)


def test_arguments_that_make_no_sense_are_recipe_errors(tmp_path):
    path = snips_file(tmp_path, record("A", "a"))
    for arguments, message in (
        ({"part": "gold"}, "part 'gold', expected one of test, dev, train"),
        ({"part": "dev", "form": "tree"}, "form 'tree', expected one of interleaved, top, intent"),
        ({"part": "x", "shares": {"x": 0.6, "y": 0.5}}, "expected fractions that sum to 1 at most"),
        ({"part": "x", "shares": {"x": -0.1}}, "expected fractions"),
        ({"part": "x", "shares": {"x": "half"}}, "expected fractions"),
        ({"part": "x", "shares": {"x": float("nan")}}, "expected fractions"),
    ):
        with pytest.raises(RecipeError, match=message):
            snips(path, **arguments)
    with pytest.raises(RecipeError, match="bio: form 'tree'"):
        bio(path, form="tree")


def test_files_that_cannot_be_read_are_data_errors(tmp_path):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b'{"intent": "A"}\n' * 99)[:-12])
    for path in (tmp_path / "none", tmp_path, cut):
        for reader in (everything, bio):
            with pytest.raises(DataError, match="cannot be read"):
                reader(str(path))


@present
def test_the_parts_of_snips_share_no_utterance_and_are_the_same_every_time():
    parts = {part: snips(str(SNIPS), part) for part in ("test", "dev", "train")}
    assert {part: len(rows) for part, rows in parts.items()} == {"test": 1_361, "dev": 1_357, "train": 10_897}
    assert parts["dev"] == snips(str(SNIPS), "dev", shares={"test": 0.1, "dev": 0.1, "gold": 0.01})
    assert parts["dev"] != snips(str(SNIPS), "dev", seed=1)
    owners = Counter(name for rows in parts.values() for name in {row["input"].lower() for row in rows})
    assert len(owners) == 13_577 and set(owners.values()) == {1}
    assert len({row["id"] for rows in parts.values() for row in rows}) == 13_615
    assert not any("references" in row for rows in parts.values() for row in rows)  # equal words have equal slots
    assert len({row["target"] for row in snips(str(SNIPS), "dev", form="intent")[:50]}) == 7


@present
def test_every_target_of_snips_is_well_formed_and_read_back():
    forms = {form: everything(str(SNIPS), form=form, lower=form == "top") for form in FORMS}
    for form, rows in forms.items():
        assert all(FORMATS[form].invalid(row["input"], row["target"]) is None for row in rows)
        assert all(FORMATS[form].repair(row["input"], row["target"]) == row["target"] for row in rows)
    by_name = {row["id"]: row for row in forms["top"]}
    for row, name in zip(forms["interleaved"], forms["intent"], strict=True):
        found = tags(row["input"], row["target"])
        assert interleaved(row["input"].split(), found) == row["target"]
        if row["id"] in by_name:  # in lower case more utterances are equal
            other = by_name[row["id"]]
            assert tags(other["input"], other["target"]) == found
            assert intent(other["target"]) == intent(name["target"])
            assert top(other["input"].split(), found, name["target"]) == other["target"]
    right = [[row["target"]] for row in forms["top"]]
    assert chunk_f1([row["target"] for row in forms["top"]], right) == 100
    assert chunk_f1([f"[IN:{intent(row['target'])} {row['input']} ]" for row in forms["top"]], right) == 0


@present
def test_a_recipe_reads_a_part():
    examples = list(read_examples(rows_of(path=str(SNIPS), part="dev", form="top"), BadRows(0), need_target=True))
    assert [e.target for e in examples] == [row["target"] for row in snips(str(SNIPS), "dev", form="top")]
