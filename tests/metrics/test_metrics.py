import itertools
import random

import pytest
import sacrebleu

from raykd.errors import DataError, RecipeError
from raykd.metrics import get, lower_is_better
from raykd.metrics.text import bleu, chrf, edit_distance, exact_match, phoneme_error_rate, word_error_rate
from raykd.recipe.names import METRIC, known_names


def naive_distance(left, right):
    """Levenshtein's recursion as it is defined."""
    if not left or not right:
        return len(left) + len(right)
    kept = naive_distance(left[1:], right[1:]) + (left[0] != right[0])
    return min(kept, naive_distance(left[1:], right) + 1, naive_distance(left, right[1:]) + 1)


def test_edit_distance_is_the_recursion_of_its_definition():
    lists = [list(text) for size in range(4) for text in itertools.product("ab", repeat=size)]
    assert all(edit_distance(a, b) == naive_distance(a, b) for a in lists for b in lists)
    draw = random.Random(0)
    for _ in range(30):
        a, b = ([draw.choice("abc") for _ in range(draw.randrange(7))] for _ in range(2))
        assert edit_distance(a, b) == naive_distance(a, b)


def test_phoneme_error_rate_sums_edits_over_tokens_of_the_nearest_answers():
    predictions = ["D AA K", "K AE", "R EH D Z"]
    references = [["D AA K"], ["K AE T S"], ["R IY D", "R EH D"]]
    # edits 0, 2 and 1 (to the second answer) over 3, 4 and 3 tokens
    assert phoneme_error_rate(predictions, references) == pytest.approx(100 * 3 / 10)


def test_phoneme_error_rate_chooses_the_fewest_edits_per_token():
    # 2 edits of 2 tokens, or 2 of 4
    assert phoneme_error_rate(["B A C D"], [["B A", "B A X Y"]]) == pytest.approx(50)
    # 1 edit of 1 token, or 3 of 4: the answer with more edits is the nearer one
    assert phoneme_error_rate(["X"], [["Y", "X A B C"]]) == pytest.approx(75)


def test_phoneme_error_rate_may_exceed_a_hundred_and_ignores_the_width_of_blanks():
    assert phoneme_error_rate(["A B C"], [["D"]]) == pytest.approx(300)
    assert phoneme_error_rate([" A  B\n"], [["A B"]]) == 0
    assert phoneme_error_rate([""], [["A B"]]) == pytest.approx(100)


def test_word_error_rate_is_the_share_of_words_that_equal_no_answer():
    predictions = ["R IY D", "K AE T", " D  AA K ", ""]
    references = [["R EH D", "R IY D"], ["K AE T S"], ["D AA K"], ["AH"]]
    assert word_error_rate(predictions, references) == 50


def test_exact_match_compares_texts_but_for_surrounding_blanks():
    assert exact_match([" a b\n", "a  b", "A b", "c"], [["a b"], ["a b"], ["a b"], ["x", "c"]]) == 50


def test_bleu_and_chrf_are_sacrebleus():
    predictions = ["the cat sat on the mat", "a dog barked loudly at night"]
    one = [["the cat sat on a mat"], ["the dog barked loudly at night"]]
    assert bleu(predictions, one) == pytest.approx(
        sacrebleu.corpus_bleu(predictions, [[r[0] for r in one]]).score, abs=1e-9
    )
    assert chrf(predictions, one) == pytest.approx(
        sacrebleu.corpus_chrf(predictions, [[r[0] for r in one]]).score, abs=1e-9
    )
    assert bleu(predictions, [[p] for p in predictions]) == pytest.approx(100)
    assert chrf(predictions, [[p] for p in predictions]) == pytest.approx(100)


def test_bleu_by_hand():
    # 6 tokens against 6: n-gram precisions 5/6, 3/5, 2/4, 1/3, brevity penalty 1
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu(["the cat sat on the mat"], [["the cat sat on a mat"]]) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_rows_may_have_different_numbers_of_references(metric):
    predictions = ["the cat sat on the mat", "a dog barked loudly at night"]
    ragged = [["the cat sat on a mat", "the cat sat on the mat", "cats sit"], ["the dog barked loudly at night"]]
    # repeating an answer adds nothing, so the ragged list must score as this rectangular one
    even = [ragged[0], ragged[1] * 3]
    assert metric(predictions, ragged) == pytest.approx(metric(predictions, even))
    assert metric(predictions, ragged) == pytest.approx(metric(predictions[::-1], ragged[::-1]))
    assert metric(predictions, ragged) > metric(predictions, [r[:1] for r in ragged])


@pytest.mark.parametrize("name", known_names(METRIC))
def test_what_cannot_be_scored_is_a_data_error(name):
    with pytest.raises(DataError, match="no predictions"):
        get(name)([], [])
    with pytest.raises(DataError, match="2 predictions, but references for 1"):
        get(name)(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="prediction 1 has no reference"):
        get(name)(["a", "b"], [["a"], []])


def test_answers_without_a_token_are_a_data_error():
    with pytest.raises(DataError, match="all empty"):
        phoneme_error_rate(["A"], [[""]])


def always_seven(predictions, references):
    return 7.0


def test_get_finds_metrics_by_name_and_by_module():
    assert [get("bleu"), get("exact_match")] == [bleu, exact_match]
    assert len(known_names(METRIC)) == 14 and all(callable(get(name)) for name in known_names(METRIC))
    assert get(f"{__name__}:always_seven") is always_seven


def test_get_names_the_nearest_metric():
    for name, message in (
        ("phonem_error_rate", "unknown metric 'phonem_error_rate'; did you mean phoneme_error_rate?"),
        ("xyz", "unknown metric 'xyz'; known: chunk_f1, "),
        ("no_such_module:f", "No module named 'no_such_module'"),
        (f"{__name__}:sven", "has no metric sven"),
        (":f", "Empty module name"),
    ):
        with pytest.raises(RecipeError) as error:
            get(name)
        assert message in str(error.value)


def test_whether_less_is_better_stands_beside_the_metric(tmp_path, monkeypatch):
    assert lower_is_better("word_error_rate") and lower_is_better("test/phoneme_error_rate")
    assert lower_is_better("dev_loss") and not lower_is_better("bleu")
    code = "LOWER_IS_BETTER = ('distance',)\ndef distance(p, r): ...\ndef overlap(p, r): ...\n"
    (tmp_path / "edits.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert lower_is_better("edits:distance") and not lower_is_better("edits:overlap")
    assert not lower_is_better("gone_module:word_error_rate")
