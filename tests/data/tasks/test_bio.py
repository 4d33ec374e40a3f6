"""Files of words with BIO tags, in every layout."""

import gzip

from raykd.data.rows import BadRows, read_examples
from raykd.data.tasks.bio import bio
from raykd.recipe.data import FunctionRows

ATIS = (
    "BOS flights from new york to boston EOS\tO O O B-from I-from O B-to atis_flight\n"
    "BOS list fares EOS\tO O I-what atis_airfare\n"
)
CONLL = "flights O\nfrom\tX\tO\nnew NNP B-from\nyork NNP I-from\nto O\nboston B-to\n\n \nlist O\nfares I-what\n"
RECORDS = (
    '{"que": "flights from new york to boston", "ans": "O O B-from I-from O B-to"}\n\n'
    '{"que": "list fares", "ans": "O I-what"}\n'
)


def test_all_layouts_of_bio_files_give_the_same_rows(tmp_path):
    path = tmp_path / "atis.train.iob"
    for text, second in ((ATIS, 2), (CONLL, 9), (RECORDS, 3)):
        for data in (text.encode(), gzip.compress(text.encode()), text.replace("\n", "\r\n").encode()):
            path.write_bytes(data)
            assert bio(str(path)) == [
                {
                    "id": "atis:1",
                    "input": "flights from new york to boston",
                    "target": "flights O from O new B-from york I-from to O boston B-to",
                },
                {"id": f"atis:{second}", "input": "list fares", "target": "list O fares B-what"},
            ]


def test_intents_of_a_bio_file(tmp_path):
    path = tmp_path / "atis.iob"
    path.write_text(ATIS)
    assert [row["target"] for row in bio(str(path), form="intent")] == ["atis_flight", "atis_airfare"]
    assert bio(str(path), form="top")[1]["target"] == "[IN:atis_airfare list [SL:what fares ] ]"
    path.write_text(CONLL)
    assert bio(str(path), form="top") == ["line 1: no intent", "line 9: no intent"]


def test_sentences_that_cannot_be_read_say_why(tmp_path):
    path = tmp_path / "bad.iob"
    for text, expected in (
        (
            ATIS + "BOS a b EOS\tO O x\nBOS a EOS\nlist EOS\tO O x\nBOS a EOS\tO S-x x\nBOS EOS\tO x\n",
            [
                "line 3: 2 words, 1 tags",
                "line 4: not BOS words EOS, a tab, O tags intent",
                "line 5: not BOS words EOS, a tab, O tags intent",
                "line 6: 'S-x' is no tag",
                "line 7: 0 words, 0 tags",
            ],
        ),
        (
            CONLL + "\nlist O\nfares\n\nlist what\n",
            ["line 12: 'fares' has no tag, word 2", "line 15: 'what' is no tag"],
        ),
        (
            RECORDS + '{"que": "a b", "ans": "O"}\n{"que": "a"}\n[]\n',
            ["line 4: 2 words, 1 tags", "line 5: no texts que and ans", "line 6: no texts que and ans"],
        ),
    ):
        path.write_text(text)
        assert bio(str(path))[2:] == expected
    path.write_text("")
    assert bio(str(path)) == []
    path.write_text(ATIS + "BOS a b EOS\tO O x\n")
    bad = BadRows(1)
    source = FunctionRows(kind="function", function="raykd.data.tasks.bio:bio", arguments={"path": str(path)})
    assert len(list(read_examples(source, bad, need_target=True))) == 2
    assert "line 3: 2 words, 1 tags" in bad.rows[0].reason
