"""Which examples a prompt shows."""

import numpy as np
import pytest

from raykd.data.examples import Example
from raykd.data.shots import shot_selector
from raykd.errors import DataError
from raykd.models.load import embedder
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.data import FunctionRows
from raykd.recipe.prompts import Shots

TEXTS = ["show flights to Boston", "a flight, please", "play some jazz", "play jazz by Miles Davis", "set an alarm"]
ROWS = [Example(str(i), text, text.upper()) for i, text in enumerate(TEXTS)]
MANY = [Example(str(i), f"input {i}", "x") for i in range(200)]


def of(count: int, **others) -> Shots:
    return Shots(rows=FunctionRows(kind="function", function="nowhere:rows"), count=count, **others)


def ids(found: list[list[Example]]) -> list[str]:
    return ["".join(e.id for e in shown) for shown in found]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, shared_tokenizer) -> str:
    """The folder of a tiny BERT with random weights."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = load_tokenizer(shared_tokenizer)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_first_are_shown_in_order_but_never_the_input_itself():
    assert shot_selector(None, [])(["a", "b"]) == [[], []]
    assert ids(shot_selector(of(2), ROWS)(["new", TEXTS[0], TEXTS[4]])) == ["01", "12", "01"]
    assert ids(shot_selector(of(2), ROWS[:2])(["new", TEXTS[0]])) == ["01", "1"]  # there is no other


def test_what_is_drawn_depends_on_the_input_alone():
    select = shot_selector(of(3, choose="random"), MANY)
    texts = [row.input for row in MANY]
    found = select(texts)
    assert found == [select([text])[0] for text in texts]
    assert found == shot_selector(of(3, choose="random"), MANY)(texts[::-1])[::-1]
    assert all(len({e.id for e in shown} - {own.id}) == 3 for shown, own in zip(found, MANY, strict=True))
    times = np.bincount([int(e.id) for shown in found for e in shown], minlength=200)
    assert (times > 0).mean() > 0.9 and times.max() < 15  # 3 each on average: nearly all, none again and again
    assert len({shown[0].id for shown in found}) > 100  # nor does the order follow the rows


def test_bm25_puts_the_most_similar_beside_the_input():
    texts = ["PLAY Miles", "flight to Boston!", TEXTS[3]]
    assert ids(shot_selector(of(2, choose="bm25"), ROWS)(texts)) == ["23", "10", "02"]
    assert ids(shot_selector(of(2, choose="bm25", nearest="first"), ROWS)(texts)) == ["32", "01", "20"]


def test_bm25_scores_are_those_of_the_formula():
    """Robertson and Zaragoza 2009, eq. 3.15, with k1 = 1.5, b = 0.75 and the idf that is never negative."""
    rng = np.random.default_rng(0)
    docs = [rng.choice(list("abcdefghij"), rng.integers(1, 9)).tolist() for _ in range(30)]
    rows = [Example(str(i), " ".join(doc), "x") for i, doc in enumerate(docs)]
    mean = np.mean([len(doc) for doc in docs])

    def score(query: str, doc: list[str]) -> float:
        holding = sum(query in other for other in docs)
        idf = np.log(1 + (len(docs) - holding + 0.5) / (holding + 0.5))
        return idf * doc.count(query) / (doc.count(query) + 1.5 * (0.25 + 0.75 * len(doc) / mean))

    for query in (["a"], ["b", "c"], ["a", "a", "j"]):
        shown = shot_selector(of(30, choose="bm25", nearest="first"), rows)([" ".join(query).upper()])[0]
        scores = [sum(score(word, docs[int(e.id)]) for word in query) for e in shown]
        assert len(shown) == 30 and scores[0] > 0
        np.testing.assert_array_less(np.diff(scores), 1e-6)


def test_bm25_without_a_word_in_common_takes_the_first():
    select = shot_selector(of(2, choose="bm25", nearest="first"), [*ROWS, Example("5", " ", "")])
    assert ids(select(["", " \n", "zzz", "?", TEXTS[0], "alarm"])) == [*["01"] * 4, "12", "40"]
    rows = [Example(str(i), " ", "x") for i in range(3)]
    with pytest.raises(DataError, match="^prompt.shots.rows: choose: bm25 compares words, and no input has any$"):
        shot_selector(of(2, choose="bm25"), rows)


def test_embeddings_are_ranked_by_their_cosine(encoder):
    rng = np.random.default_rng(0)
    rows = [Example(str(i), " ".join(rng.choice(list("abcdefgh"), 6)), "x") for i in range(40)]
    texts = [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(300)]  # more than are compared at once
    embed = embedder(encoder)
    near = embed(texts) @ embed([row.input for row in rows]).T
    expected = np.argsort(-near, axis=1)[:, :4]
    found = shot_selector(of(4, choose="embedding", encoder=encoder), rows)(texts)
    same = [
        [e.id for e in shown[::-1]] == [str(i) for i in order] for shown, order in zip(found, expected, strict=True)
    ]
    assert np.mean(same) > 0.98  # but for near ties
    first = shot_selector(of(4, choose="embedding", encoder=encoder, nearest="first"), rows)(texts)
    assert first == [shown[::-1] for shown in found]


@pytest.mark.parametrize("choose", ["first", "random", "bm25", "embedding"])
def test_an_input_is_never_its_own_example_however_often_it_stands_in_the_rows(choose, encoder):
    inputs = ["a b", "a b", "c d", "a b", "e f"]
    rows = [Example(str(i), text, "x") for i, text in enumerate(inputs)]
    shots = of(2, choose=choose, encoder=encoder if choose == "embedding" else None)
    assert sorted(shot_selector(shots, rows)(["a b"])[0], key=lambda e: e.id) == [rows[2], rows[4]]
    assert [len(shown) for shown in shot_selector(shots, rows)(["c d", "g h", "g", " h a b"])] == [2] * 4


@pytest.mark.parametrize("choose", ["first", "random", "bm25"])
def test_too_few_rows_are_refused_in_one_line(choose):
    with pytest.raises(DataError, match=r"^prompt.shots.rows: 5 rows, prompt.shots.count asks for 6$"):
        shot_selector(of(6, choose=choose), ROWS)
    with pytest.raises(DataError, match=r"^prompt.shots.rows: 0 rows, prompt.shots.count asks for 1$"):
        shot_selector(of(1, choose=choose), [])
