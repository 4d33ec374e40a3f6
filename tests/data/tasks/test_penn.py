"""Files of Penn trees: read, cut into parts, and written in every form."""

import gzip
from pathlib import Path

import pytest

from raykd.data.tasks.formats import get_format
from raykd.data.tasks.labelled_trees import labelled
from raykd.data.tasks.penn import TARGET_FORMS, penn
from raykd.data.tasks.trees import brackets, gold_tree, leaves, read
from raykd.errors import DataError, RecipeError
from raykd.metrics import trees as metrics

CRAFT = Path(__file__).parents[3].parent / "shared/data/craft/trees.mrg.gz"
present = pytest.mark.skipif(not CRAFT.exists(), reason="the CRAFT trees lie beside the checkout, here there are none")

DOG = "(S (NP (DT The) (NN dog)) (VP (VBZ barks)))"
BIG = "(TOP (S (NP (DT The) (JJ big) (NN dog)) (VP (VBZ barks) (ADVP (RB loudly))) (. .)))"
FORMS = {
    "unlabelled": get_format("trees"),
    "labelled": get_format("labelled_trees"),
    "release": get_format("release_trees"),
}


def test_trees_one_after_the_other(tmp_path):
    path = tmp_path / "some.mrg"
    path.write_text(f"( {DOG} )\n\n(TOP (S\n  (NP (PRP He))\n (VP (VBZ runs)) (-NONE- *)))\n(S (NP a)\n")
    bad, *rows = penn(str(path), "all", shares={"all": 1}, lower=True)
    assert bad == "line 6: 1 brackets are not closed"
    assert [row["id"] for row in sorted(rows, key=lambda r: r["id"])] == ["some:1", "some:3"]
    first = next(row for row in rows if row["id"] == "some:1")
    assert first["input"] == "the dog barks" and first["target"] == "( ( the dog ) barks )"
    assert first["references"] == ["(S (NP (DT the) (NN dog)) (VP (VBZ barks)))"]
    assert len(penn(str(path), "all", shares={"all": 1}, max_words=2)) == 2


def test_a_bad_tree_costs_no_other(tmp_path):
    path = tmp_path / "some.mrg"
    lines = [f"(S (NP (NN n{place}))\n   (VP (VB v)))\n" for place in range(9)]
    path.write_bytes("".join([*lines[:3], "(S (NP (NN n))\n", *lines[3:]]).encode() + b"(S (NN \xff))\n")
    *bad, _ = rows = penn(str(path), "all", shares={"all": 1})
    assert bad[:2] == ["line 7: 1 brackets are not closed", "line 20: not UTF-8"]
    assert sorted(row["input"] for row in rows if not isinstance(row, str)) == [f"n{place} v" for place in range(9)]


def test_a_row_is_in_one_part_whatever_is_left_out(tmp_path):
    path = tmp_path / "some.mrg"
    path.write_text("".join(f"(S {f'(NN w{place}) ' * (1 + place % 9)})\n" for place in range(200)))
    for less in ({"max_words": 5}, {"lower": True}):
        for part in ("test", "dev", "train"):
            whole = {row["id"] for row in penn(str(path), part)}
            assert {row["id"] for row in penn(str(path), part, **less)} <= whole


def test_what_makes_no_sense_is_refused(tmp_path):
    path = tmp_path / "some.mrg"
    path.write_text(DOG)
    for arguments, message in (
        ({"part": "x"}, "part 'x'"),
        ({"part": "test", "form": "tree"}, "form 'tree'"),
        ({"part": "test", "share": {"test": 1}}, "argument 'share', expected one of shares, seed"),
        ({"part": "a", "shares": {"a": 0.6, "b": 0.6}}, "fractions that sum to 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            penn(str(path), **arguments)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(DOG.encode() * 99)[:-12])
    for file in (tmp_path / "none", cut):
        with pytest.raises(DataError, match="cannot be read"):
            penn(str(file), "test")


def test_the_release_has_a_bracket_for_the_root(tmp_path):
    path = tmp_path / "one.mrg"
    path.write_text(BIG)
    (row,) = penn(str(path), "all", shares={"all": 1}, form="release")
    whole = "( ( ( The ) ( big ) ( dog ) ) ( ( barks ) ( loudly ) ) ( . ) )"
    assert row["target"] == f"( {whole} )" and metrics.release_bracket_f1([row["target"]], [row["references"]]) == 100
    path.write_text(BIG.replace("TOP ", ""))
    assert penn(str(path), "all", shares={"all": 1}, form="release")[0]["target"] == f"( {whole} )"
    assert penn(str(path), "all", shares={"all": 1})[0]["target"] == "( ( The big dog ) ( barks loudly ) . )"


@present
def test_every_craft_tree_is_read_and_its_targets_are_well_formed():
    rows = penn(str(CRAFT), "all", shares={"all": 1})
    texts = [row for row in rows if isinstance(row, str)]
    good = [row for row in rows if not isinstance(row, str)]
    assert len(texts) == 4 and all("2 words under the one part of speech" in text for text in texts)
    assert len(good) > 20_000
    for row in good[::5]:
        gold = gold_tree(row["references"])
        assert gold and " ".join(word for word, _ in leaves(gold)) == row["input"]
        for form, found in FORMS.items():
            target = TARGET_FORMS[form](gold)
            assert found.invalid(row["input"], target) is None, (form, row["id"], target)
        spans = {(a, b) for a, b, _ in brackets(gold) if b - a > 1}
        for form in ("unlabelled", "release", "labelled"):
            assert {(a, b) for a, b, _ in read(TARGET_FORMS[form](gold))[1] if b - a > 1} == spans
        assert read(labelled(gold))[1] == brackets(gold) or len(brackets(gold)) == 0


@present
def test_no_article_of_craft_is_in_two_parts(tmp_path):
    with gzip.open(CRAFT, "rt", encoding="utf-8") as file:
        lines = file.readlines()[::20]
    path = tmp_path / "few.mrg"
    path.write_text("".join(lines), encoding="utf-8")
    parts = {part: penn(str(path), part, max_words=40) for part in ("test", "dev", "train")}
    good = {part: [row for row in rows if not isinstance(row, str)] for part, rows in parts.items()}
    inputs = [row["input"] for rows in good.values() for row in rows]
    assert len(set(inputs)) == len(inputs) and all(len(text.split()) <= 40 for text in inputs)
    articles = {p: {lines[int(row["id"].split(":")[1]) - 1].split("\t")[0] for row in good[p]} for p in good}
    assert [len(found) for found in articles.values()] == [9, 8, 70]
    assert len(set().union(*articles.values())) == 87
    assert parts["dev"] == penn(str(path), "dev", max_words=40)
