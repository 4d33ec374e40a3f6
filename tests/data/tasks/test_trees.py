import gzip
import json
import random
from pathlib import Path

import pytest

from raykd.data import pseudo_targets
from raykd.data.examples import Example
from raykd.data.rows import BadRows, read_examples
from raykd.data.tasks.treebanks import penn, translation, write_translation
from raykd.data.tasks.trees import (
    LABELLED,
    RELEASE,
    TARGET_FORMS,
    UNLABELLED,
    brackets,
    clean,
    gold_tree,
    invalid_unlabelled,
    labelled,
    leaves,
    one_line,
    parse,
    read,
    release,
    release_repair,
    repair_unlabelled,
    unlabelled,
)
from raykd.errors import DataError, RecipeError
from raykd.metrics import trees as metrics
from raykd.recipe.data import FunctionRows

CRAFT = Path(__file__).parents[3].parent / "shared/data/craft/trees.mrg.gz"
present = pytest.mark.skipif(not CRAFT.exists(), reason="the CRAFT trees lie beside the checkout, here there are none")

DOG = "(S (NP (DT The) (NN dog)) (VP (VBZ barks)))"
BIG = "(TOP (S (NP (DT The) (JJ big) (NN dog)) (VP (VBZ barks) (ADVP (RB loudly))) (. .)))"
YES = "(FRAG (NN yes))"
FORMS = {"unlabelled": UNLABELLED, "labelled": LABELLED, "release": RELEASE}


def tree(text):
    (found,) = parse(text)
    return clean(found)


@pytest.mark.parametrize(
    ("gold", "released"),
    [
        (DOG, "( ( ( The ) ( dog ) ) ( barks ) )"),
        (BIG, "( ( ( ( The ) ( big ) ( dog ) ) ( ( barks ) ( loudly ) ) ( . ) ) )"),
        (YES, "( yes )"),
    ],
)
def test_the_release_s_form_is_the_release_s(gold, released):
    assert release(parse(gold)[0]) == released  # with TOP, which it does not know


def test_the_clean_forms():
    chain = "(ROOT (S (VP (NP-SBJ=1 (NP (DT The) (NN dog))) (PP (-NONE- *T*)) (-LRB- -LRB-))))"
    assert unlabelled(tree(chain)) == "( ( The dog ) -LRB- )"
    assert labelled(tree(chain)) == "(S (VP (NP (NP The dog ) ) -LRB- ) )"
    assert unlabelled(tree(YES)) == "( yes )" and labelled(tree(YES)) == "(FRAG yes )"
    assert labelled(tree("(NN yes)")) == "(TOP yes )"
    assert one_line(tree(BIG)) == BIG.removeprefix("(TOP ").removesuffix(")")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(S (NP", "2 brackets are not closed"),
        ("(S a) )", "closed that was not opened"),
        ("a (S b)", "words outside"),
        ("(" * 300, "more than 200 brackets"),
        ("(S (NP a b))", "2 words under the one part of speech 'NP'"),
        ("(S (NP a) b)", "words and constituents together"),
    ],
)
def test_what_is_no_tree_is_said_in_a_line(text, message):
    with pytest.raises(ValueError, match=message):
        for found in parse(text):
            clean(found)


@pytest.mark.parametrize(
    ("form", "answer", "reason", "repaired"),
    [
        ("unlabelled", "( The ( big dog )", "1 brackets are not closed", "( The ( big dog ) )"),
        ("unlabelled", "( The big dog ) )", "closed that was not opened", "( The big dog )"),
        ("unlabelled", "( The ( small dog ) )", "word 2 is 'small', the input's is 'big'", "( The ( big dog ) )"),
        ("unlabelled", "( The ( big big dog ) )", "word 3 is 'big'", "( The ( big dog ) )"),
        ("unlabelled", "(NP The big dog )", "'(NP' is a bracket with a label", "( The big dog )"),
        ("unlabelled", "( The ( ) big dog )", "a bracket holds no word", "( The big dog )"),
        ("unlabelled", "The big dog", "words outside of brackets", "( The big dog )"),
        ("unlabelled", "", "0 trees", "( The big dog )"),
        ("labelled", "( The big dog )", "'(' is a bracket without a label", "(X The big dog )"),
        ("labelled", "(NP The (NN big ) ) (VP dog )", "2 trees", "(S (NP The (NN big ) ) (VP dog ) )"),
        ("release", "( ( The ) ( big dog )", "1 brackets are not closed", "( ( The ) ( big dog ) )"),
        ("release", "( The )", "1 words, the input has 3", "( The )"),
        ("release", "(S The big dog )", "4 words, the input has 3", "( S The big dog )"),  # it knows no labels
    ],
)
def test_what_is_not_well_formed_is_said_and_mended(form, answer, reason, repaired):
    text = "The big dog"
    assert reason in (FORMS[form].invalid(text, answer) or "")
    assert FORMS[form].repair(text, answer) == repaired
    assert form == "release" or FORMS[form].invalid(text, repaired) is None


@pytest.mark.parametrize(
    ("text", "answer", "mended"),
    [
        ("a / b", "( a/b )", "( ( a ) ( / ) ( b ) )"),
        ("a - b - c d-e", "( ( a-b-c ) (d-e ) )", "( ( ( a ) ( - ) ( b ) ( - ) ( c ) ) ( d-e ) )"),
        ("I wo n't", "( I ) ( won't )", "( I ) ( ( wo n't ) )"),
        ("I won't", "( won't )", "( won't )"),
        ("dog 's", "( dog's", "( ( dog 's ) )"),
        ("dog's", "( dog's )", "( dog's )"),
    ],
)
def test_the_release_mends_in_its_order(text, answer, mended):
    assert release_repair(text, answer) == mended


def test_words_with_brackets_are_written_as_in_penn():
    text = "f (x) )"
    assert invalid_unlabelled(text, "( f -LRB-x-RRB- -RRB- )") is None
    assert repair_unlabelled(text, "f") == "( f -LRB-x-RRB- -RRB- )"


@pytest.mark.parametrize("form", ["unlabelled", "labelled"])
def test_long_sentences_are_mended_too(form):
    """Within 200 brackets, and with every bracket where there are many, but not within each other."""
    words = [f"w{place}" for place in range(500)]
    label = "NP" if form == "labelled" else ""
    nested = " ".join(f"({label} {word}" for word in words) + " )" * 500
    wide = f"({label} " + " ".join(f"({label} {a} {b} )" for a, b in zip(words[::2], words[1::2], strict=True)) + " )"
    for answer, count in ((nested, 200), (nested + " )", 200), (wide + " )", 251), (wide.replace("w499", "x"), 251)):
        mended = FORMS[form].repair(" ".join(words), answer)
        assert FORMS[form].invalid(" ".join(words), mended) is None
        assert mended.count("(") == count


# ------------------------------------------------------------------------------------------- whatever a model says


def mutated(dice, text):
    pieces = text.split()
    for _ in range(dice.randint(0, 4)):
        place = dice.randrange(len(pieces) + 1)
        kind = dice.randrange(6)
        if kind == 0:
            pieces.insert(
                place, dice.choice(["(", ")", "(NP", "a/b", "won't", "x's", "-", "(X", "))", "((", "é", "'s"])
            )
        elif kind == 1 and pieces:
            pieces.pop(place % len(pieces))
        elif kind == 2:
            pieces = pieces[:place]
        elif kind == 3 and pieces:
            pieces[place % len(pieces)] = dice.choice(pieces)
        elif kind == 4:
            dice.shuffle(pieces)
        else:
            pieces = pieces[place:] + pieces[:place]
    return dice.choice([" ", " ", "", "  \n"]).join(pieces)


def fuzz(count, seed):
    """Mutated answers to three sentences: nothing raises, scores are within bounds, repairs are well formed."""
    dice, golds = random.Random(seed), [tree(text) for text in (DOG, BIG, YES)]
    scores = [getattr(metrics, name) for name in dir(metrics) if name.endswith(("f1", "precision", "recall"))]
    scores = [score for score in scores if score is not metrics.label_recall and not score.__name__.startswith("_")]
    assert len(scores) == 5
    valid = dict.fromkeys(FORMS, 0)
    for _ in range(count):
        gold = dice.choice(golds)
        text = " ".join(word for word, _ in leaves(gold))
        answer = mutated(dice, TARGET_FORMS[dice.choice(list(FORMS))](gold))
        for form, found in FORMS.items():
            mended = found.repair(text, answer)
            if found.invalid(text, answer) is None:
                valid[form] += 1
                assert mended == answer
            elif form != "release":
                assert found.invalid(text, mended) is None, (form, text, answer, mended)
        for score in scores:
            right = [unlabelled(gold), one_line(gold)]
            if score is metrics.bracket_f1 and gold is golds[2]:
                continue  # a word alone has no bracket
            assert 0 <= score([answer], [right]) <= 100
    return valid


def test_whatever_a_model_says_is_read_judged_and_mended():
    valid = fuzz(3_000, seed=0)
    assert all(100 < count < 2_900 for count in valid.values()), valid


@pytest.mark.slow
def test_whatever_a_model_says_is_read_judged_and_mended_a_hundred_thousand_times():
    fuzz(100_000, seed=1)


@pytest.mark.parametrize("answer", ["(" * 50_000, ")" * 50_000, " )" * 50_000, "( a " * 20_000, "a " * 20_000])
def test_endless_answers_take_no_time(answer):
    for form in FORMS.values():
        assert form.invalid("a b", answer)
        form.repair("a b", answer)
    assert metrics.release_bracket_f1([answer], [[DOG]]) == 0


# ------------------------------------------------------------------------------------------- rows


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


def test_pseudo_targets_are_written_for_the_authors_code_as_the_page_says(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs/mckd.md").read_text("utf-8")
    labels = tmp_path / "runs/trees/mckd/round-1/labels"
    labels.mkdir(parents=True)
    pseudo_targets.save_pseudo_targets(labels / "pseudo_targets.parquet", [Example("1", "The dog", "( The dog )")])
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python\n")[1].split("```")[0], {})
    (row,) = translation("train.json")
    assert (row["input"], row["target"]) == ("The dog", "( The dog )")


def test_the_authors_files_are_written_and_read(tmp_path):
    rows = [
        {"id": "mine:1", "input": "The dog barks", "target": release(tree(DOG)), "references": [DOG]},
        {"id": "mine:2", "input": "yes é", "target": "( yes ) ( é )"},
    ]
    path = tmp_path / "mine.json"
    assert write_translation(path, rows) == 2
    assert json.loads(path.read_text().splitlines()[0])["translation"]["parsed"] == DOG
    with open(path, "a") as file:
        file.write('{"translation": {"unparsed": 1}}\n{\n[]\n' + "1" * 5_000)
    *good, one, two, three, four = map(str, translation(str(path)))
    assert good == list(map(str, rows)) and two == "line 4: not JSON"
    assert all(text.startswith(f"line {n}: not {{") for n, text in ((3, one), (5, three), (6, four)))
    assert [row["target"] for row in translation(str(path), silver=True) if not isinstance(row, str)] == [None, None]
    bad = BadRows(4)
    source = FunctionRows(
        kind="function", function="raykd.data.tasks.treebanks:translation", arguments={"path": str(path)}
    )
    examples = list(read_examples(source, bad, need_target=True))
    assert [e.references for e in examples] == [(DOG,), ()] and len(bad.rows) == 4


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
