import json
from pathlib import Path

import pytest

from raykd import metrics
from raykd.data.tasks.labelled_trees import invalid_labelled, labelled
from raykd.data.tasks.trees import gold_tree, leaves
from raykd.data.tasks.unlabelled_trees import unlabelled
from raykd.errors import DataError
from raykd.metrics import trees as scores
from raykd.recipe.names import METRIC, known_names

GOLD = "(TOP (S (NP (DT The) (JJ big) (NN dog)) (VP (VBZ barks) (ADVP (RB loudly))) (. .)))"
RELEASED = "( ( ( ( The ) ( big ) ( dog ) ) ( ( barks ) ( loudly ) ) ( . ) ) )"
CASES = [  # prediction, F1, precision, recall
    (RELEASED, 1.0, 1.0, 1.0),
    ("( ( ( The ) ( ( big ) ( dog ) ) ) ( ( barks ) ( loudly ) ) ( . )", 0.857, 0.75, 1.0),
    ("( ( The ) ( big ) ( dog ) ( barks ) ( loudly ) ( . ) )", 0.5, 1.0, 0.333),
    (RELEASED.replace("dog", "cat"), 1.0, 1.0, 1.0),
    ("( ( The ) ( dog ) )", 0, 0, 0),
    ("garbage", 0, 0, 0),
    (RELEASED.replace("( . )", "( . ) ( ! ) ( ! )"), 0, 0, 0),
]


@pytest.mark.parametrize(("prediction", "f1", "precision", "recall"), CASES)
def test_the_release_s_scores(prediction, f1, precision, recall):
    assert scores.release_bracket_f1([prediction], [[GOLD]]) == pytest.approx(100 * f1, abs=0.05)
    of_sentence = scores._release_scores(prediction, scores._gold([GOLD]))
    assert of_sentence == pytest.approx((f1, precision, recall), abs=5e-4)


def test_a_sentence_of_one_word_scores_nothing_in_the_release():
    assert scores.release_bracket_f1(["( yes )"], [["(FRAG (NN yes))"]]) == 0
    assert scores.release_bracket_f1(["( yes )", RELEASED], [["(FRAG (NN yes))"], [GOLD]]) == 50


def test_brackets_over_all_sentences():
    gold = gold_tree([GOLD])
    assert gold
    right = [[unlabelled(gold), GOLD]]
    assert scores.bracket_f1([unlabelled(gold)], right) == 100
    # one of three gold brackets is missed, none is wrong; punctuation has no part in it
    assert scores.bracket_f1(["( ( The big dog ) barks loudly . )"], right) == pytest.approx(100 * 4 / 5)
    assert scores.bracket_f1(["( ( The big dog ) ( barks loudly ) . ) )"], right) == 100
    assert scores.bracket_f1(["( ( The large dog ) ( barks loudly ) . )"], right) == 100  # the words are aligned
    with pytest.raises(DataError, match="no reference has a bracket"):
        scores.bracket_f1(["( yes )"], [["(FRAG (NN yes))"]])


def test_without_a_gold_tree_the_target_is_right():
    assert scores.bracket_f1(["( ( a b ) c )"], [["( ( a b ) c . )"]]) == 100
    assert scores.release_bracket_f1(["( ( a b ) c , )"], [["( ( a b ) c . )"]]) == 100


def test_labelled_brackets_count_labels_chains_and_words():
    gold = gold_tree([GOLD])
    assert gold
    right = [[GOLD]]
    assert scores.labelled_bracket_f1([labelled(gold)], right) == 100
    other = "(S (NP The big dog ) (NP barks (PRT loudly ) ) . )"  # PRT is ADVP
    assert scores.labelled_bracket_precision([other], right) == scores.labelled_bracket_recall([other], right) == 75
    chained = "(S (S (NP The big dog ) (VP barks (ADVP loudly ) ) . ) )"
    assert scores.labelled_bracket_precision([chained], right) == 80
    assert scores.labelled_bracket_recall(["(S The dog )"], right) == 0
    assert scores.labelled_bracket_precision(["(S The dog )"], right) == 0
    for cut in (labelled(gold)[:-2], labelled(gold) + " )", labelled(gold).replace("(S ", "", 1)):
        assert scores.labelled_bracket_f1([cut], right) == 0  # the words are right, but it is no tree
    assert scores.labelled_bracket_f1([cut, labelled(gold)], right * 2) == pytest.approx(200 / 3)


def test_the_targets_of_gold_trees_without_a_label_of_their_own_are_right():
    for text in ("(NN yes)", "( (S (A a)) (S (B b)) )", "(S ( (DT The) (NN dog)) (VP (VBZ barks)))"):
        gold = gold_tree([text])
        assert gold and invalid_labelled(" ".join(w for w, _ in leaves(gold)), labelled(gold)) is None
        found = scores.labelled_bracket_f1([labelled(gold), "(S The )"], [[text], ["(S (DT The))"]])
        assert found == 100


def test_as_pyevalb_has_it():
    """Labelled precision, recall and F1 of each pair and of all, from PYEVALB on the same trees."""
    held = json.loads((Path(__file__).parents[1] / "golden/pyevalb.json").read_text())
    assert len(held["pairs"]) >= 30
    predictions, references = [], []
    for pair in held["pairs"]:
        predicted = gold_tree([pair["predicted"]])
        assert predicted
        predictions.append(labelled(predicted))
        references.append([pair["gold"]])
        ours = [scores.labelled_bracket_precision, scores.labelled_bracket_recall]
        found = [score(predictions[-1:], references[-1:]) for score in ours]
        assert found == pytest.approx([pair["precision"], pair["recall"]], abs=1e-9), pair
    whole = [scores.labelled_bracket_precision(predictions, references)]
    whole += [scores.labelled_bracket_recall(predictions, references)]
    assert whole == pytest.approx([held["precision"], held["recall"]], abs=1e-9)


def test_labels_that_are_found_again():
    assert scores.label_recall(["( ( The ) ( big ) ( dog ) ( barks ) ( loudly ) ( . ) )"], [[GOLD]]) == {
        "S": (1, 1),
        "NP": (0, 1),
        "VP": (0, 1),
    }


def test_agreement_of_teacher_and_student():
    right = RELEASED
    flat = "( ( The ) ( big ) ( dog ) ( barks ) ( loudly ) ( . ) )"
    teacher, student = [right] * 10 + ["no"] * 10, [right] * 5 + [flat] * 5 + [right] * 10
    found = scores.agreement(teacher, student, [[GOLD]] * 20)
    assert found.both_trees == 10 and found.mean == pytest.approx((5 * 1 + 5 * 0.5) / 20)
    assert (found.teacher_f1, found.student_f1) == pytest.approx((0.5, (15 + 2.5) / 20))
    assert [d.rows for d in found.deciles] == [2] * 10
    assert [d.agreement for d in found.deciles] == sorted(d.agreement for d in found.deciles)
    assert (found.deciles[0].better, found.deciles[0].worse) == (2, 0)
    assert (found.deciles[6].better, found.deciles[6].worse) == (0, 2)


@pytest.mark.parametrize("name", [name for name in known_names(METRIC) if "bracket" in name])
def test_every_one_has_a_name_and_refuses_nothing_to_score(name):
    with pytest.raises(DataError):
        metrics.get(name)([], [])
