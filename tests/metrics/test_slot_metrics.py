import json
import random
from pathlib import Path

import pytest

from raykd.data.tasks.interleaved import interleaved
from raykd.data.tasks.top import top
from raykd.errors import DataError
from raykd.metrics.slots import chunk_f1, chunk_precision, chunk_recall, intent_accuracy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "seqeval.json").read_text())
METRICS = (chunk_f1, chunk_precision, chunk_recall)


def answer(tags, form=interleaved):
    return form([f"w{place}" for place, _ in enumerate(tags.split())], tags.split(), "Some")


@pytest.mark.parametrize(
    ("gold", "predicted", "f1", "precision", "recall"),
    [  # the first four of MCKD's published metric give 100, 100, 66.7 and 66.7
        ("O O B-x", "O O B-y", 0, 0, 0),
        ("B-artist I-artist O", "B-album I-album O", 0, 0, 0),
        ("B-artist I-artist O", "B-artist O O", 0, 0, 0),
        ("O B-fromloc.city_name O B-toloc.city_name", "O B-fromloc.city_name O O", 200 / 3, 100, 50),
        ("O B-x I-x O", "O B-x B-x O", 0, 0, 0),
        ("O B-x B-x O", "O I-x B-x O", 100, 100, 100),
        ("B-x O O", "B-x B-y B-z", 50, 100 / 3, 100),
        ("B-x", "O", 0, 0, 0),
    ],
)
def test_chunks_count_if_label_and_extent_are_right(gold, predicted, f1, precision, recall):
    for form in (interleaved, top):
        scores = [metric([answer(predicted, form)], [[answer(gold, form)]]) for metric in METRICS]
        assert scores == pytest.approx([f1, precision, recall])


@pytest.mark.parametrize("metric", METRICS)
def test_rows_without_a_slot_cannot_be_scored_alone(metric):
    for predicted in ("O O", "B-x O"):
        with pytest.raises(DataError, match="no reference has a slot"):
            metric([answer(predicted)], [[answer("O O")]])
    assert metric([answer("O O"), answer("B-x")], [[answer("O O")], [answer("B-x")]]) == 100


def test_scores_are_seqevals():
    pairs = [(answer(pair["predicted"]), [answer(pair["gold"])]) for pair in GOLDEN["pairs"]]
    assert len(pairs) == 300
    predictions, references = (list(column) for column in zip(*pairs, strict=True))
    assert [m(predictions, references) for m in METRICS] == pytest.approx(GOLDEN["corpus"], abs=1e-9, rel=0)
    scored = 0
    for (predicted, right), pair in zip(pairs, GOLDEN["pairs"], strict=True):
        if "scores" in pair and set(pair["gold"].split()) != {"O"}:
            scores = [metric([predicted], [right]) for metric in METRICS]
            assert scores == pytest.approx(pair["scores"], abs=1e-9, rel=0)
            scored += 1
    assert scored > 40


def test_the_forms_of_prediction_and_reference_may_differ():
    gold, predicted = "B-x I-x O B-y", "B-x I-x O B-x"
    scores = {chunk_f1([answer(predicted, one)], [[answer(gold, two)]]) for one in (interleaved, top) for two in (top,)}
    assert scores == {50.0}


def test_a_prediction_is_aligned_to_the_words_of_the_first_reference():
    right = ["play O the O Edge B-artist of I-artist Glory I-artist now O", "play O"]
    for said, f1 in (
        ("play O the O edge B-artist of I-artist glory I-artist now O", 100),  # other spellings
        ("play O Edge B-artist of I-artist Glory I-artist now O", 100),  # a word is missing
        ("please O play O the O Edge B-artist of I-artist Glory I-artist now O and O then O", 100),
        ("play O the O Edge B-artist of I-artist Glory I-artist", 100),  # cut off
        ("play O the O Edge B-artist of Glory I-artist now O", 0),  # a tag is missing
        ("", 0),
    ):
        assert chunk_f1([said], [right]) == f1


def test_intents_are_right_if_one_of_the_references_has_them():
    predictions = ["[IN:PlayMusic play ]", "PlayMusic", " GetWeather\n", "play O", ""]
    references = [["[IN:PlayMusic play it ]"], ["GetWeather", "PlayMusic"], ["GetWeather"], ["RateBook"], ["RateBook"]]
    assert intent_accuracy(predictions, references) == 60
    assert intent_accuracy(["[IN:playmusic play ]"], [["PlayMusic"]]) == 0
    with pytest.raises(DataError, match="references of prediction 1 have no intent"):
        intent_accuracy(["PlayMusic", "PlayMusic"], [["PlayMusic"], ["play O it O"]])


@pytest.mark.parametrize("metric", [*METRICS, intent_accuracy])
def test_what_cannot_be_scored_is_a_data_error(metric):
    with pytest.raises(DataError, match="no predictions"):
        metric([], [])
    with pytest.raises(DataError, match="2 predictions, but references for 1"):
        metric(["a", "b"], [["a B-x"]])
    with pytest.raises(DataError, match="prediction 1 has no reference"):
        metric(["a", "b"], [["a B-x"], []])


def test_scores_of_random_tags_lie_between_0_and_100():
    draw = random.Random(1)
    tags = ["O", "O", "B-x", "I-x", "B-y", "I-y"]
    for _ in range(2_000):
        gold = ["B-x", *draw.choices(tags, k=draw.randrange(6))]
        said = draw.choices(tags, k=len(gold) + draw.choice([0, 0, -1, 1]))
        form = draw.choice([interleaved, top])
        f1, precision, recall = (
            metric([answer(" ".join(said), form)], [[answer(" ".join(gold))]]) for metric in METRICS
        )
        assert 0 <= min(precision, recall) <= f1 + 1e-9 <= max(precision, recall) + 2e-9 <= 100 + 2e-9
