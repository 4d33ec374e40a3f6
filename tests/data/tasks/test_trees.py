"""Trees and their targets in every form: written, read, judged and repaired."""

import random

import pytest

from raykd.data.tasks.labelled_trees import LABELLED, labelled
from raykd.data.tasks.penn import TARGET_FORMS
from raykd.data.tasks.release_trees import RELEASE, release, release_repair
from raykd.data.tasks.trees import clean, leaves, one_line, parse
from raykd.data.tasks.unlabelled_trees import UNLABELLED, invalid_unlabelled, repair_unlabelled, unlabelled
from raykd.metrics import trees as metrics

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
