import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from raykd.data.rows import BadRows, read_examples
from raykd.data.tasks import slots
from raykd.data.tasks.slots import bio, chunks, intent, interleaved, snips, tags, top
from raykd.errors import DataError, RecipeError
from raykd.metrics.slots import chunk_f1, chunk_precision, chunk_recall, intent_accuracy
from raykd.recipe.data import FunctionRows

SNIPS = Path(__file__).parents[3].parent / "shared/data/snips/train.jsonl.gz"
present = pytest.mark.skipif(not SNIPS.exists(), reason="the Snips file lies beside the checkout, here there is none")

PLAY = ("play the Edge of Glory by Lady Gaga", "O B-track I-track I-track I-track O B-artist I-artist")
BRACKETS = "[IN:PlayMusic play [SL:track the Edge of Glory ] by [SL:artist Lady Gaga ] ]"
WRITTEN = {
    "interleaved": "play O the B-track Edge I-track of I-track Glory I-track by O Lady B-artist Gaga I-artist",
    "top": BRACKETS,
    "intent": "PlayMusic",
}
INVALID = {form: getattr(slots, f"invalid_{form}") for form in slots.FORMS}
REPAIR = {form: getattr(slots, f"repair_{form}") for form in slots.FORMS}


# ------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("form", WRITTEN)
def test_a_form_is_written_and_read(form):
    text, labels = PLAY
    assert slots.FORMS[form](text.split(), labels.split(), "PlayMusic") == WRITTEN[form]
    assert INVALID[form](text, WRITTEN[form]) is None
    assert REPAIR[form](text, WRITTEN[form]) == WRITTEN[form]
    assert intent(WRITTEN[form]) == (None if form == "interleaved" else "PlayMusic")
    if form != "intent":
        assert (slots.words(WRITTEN[form]), tags(text, WRITTEN[form])) == (text.split(), labels.split())


def test_words_that_look_like_tags_and_brackets_are_read_back():
    text = r"] O B-x [SL:a \] [IN:b \\[SL:c I-y x] \ [SL"
    labels = "B-B-a I-B-a O B-x I-x B-x O O B-y B-y I-y".split()
    for form in ("interleaved", "top"):
        answer = slots.FORMS[form](text.split(), labels, "Some")
        assert INVALID[form](text, answer) is None
        assert (slots.words(answer), tags(text, answer)) == (text.split(), labels)
    assert top(["]"], ["O"], "Some") == r"[IN:Some \] ]"


def test_an_inside_that_continues_nothing_begins_a_chunk():
    found = "I-x I-x I-y O I-y B-y I-y B-x I-y".split()
    expected = [("x", 0, 2), ("y", 2, 3), ("y", 4, 5), ("y", 5, 7), ("x", 7, 8), ("y", 8, 9)]
    assert chunks(found) == chunks(slots.begun(found)) == expected
    assert slots.begun(found) == "B-x I-x B-y O B-y B-y I-y B-x B-y".split()


def test_targets_that_cannot_be_written_are_value_errors():
    for form in (interleaved, top):
        with pytest.raises(ValueError):
            form(["a", "b"], ["O"], "Some")
    for name in (None, "", "two words", "a]"):
        for form in (top, slots.intent_only):
            with pytest.raises(ValueError, match="intent"):
                form(["a"], ["O"], name)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("play O Lady B-artist Gaga I-artist now O", "O B-artist I-artist O"),
        ("play O Lady B-artist Gaga I-artist now", "O B-artist I-artist O"),  # cut off
        ("play O Lady B-artist", "O B-artist O O"),
        ("play O Gaga B-artist now O", "O O B-artist O"),  # a word is missing
        ("play O lady B-artist gaga I-artist now O", "O B-artist I-artist O"),
        ("play O Lady artist Gaga I- now B-x", "O O O B-x"),
        ("play O Lady B-artist B-artist Gaga I-artist now O", "O B-artist I-artist O"),
        ("play Lady B-artist Gaga now", "O B-artist O O"),
        ("[IN:Play play [SL:artist Lady Gaga ] now ]", "O B-artist I-artist O"),
        ("[IN:Play play [SL:artist Lady Gaga] now]", "O B-artist I-artist O"),
        ("[IN:Play play [SL:artist Lady Gaga", "O B-artist I-artist O"),
        ("play [SL:artist Lady Gaga ] now ]", "O B-artist I-artist O"),
        ("[IN: play [SL:artist Lady [SL:x Gaga ] ] now ]", "O B-artist B-x O"),
        ("[IN:Play play [SL: Lady Gaga ] now ]", "O O O O"),
        ("[IN:Play Gaga ]", "O O O O"),
        ("Play", "O O O O"),
        ("", "O O O O"),
    ],
)
def test_damaged_answers_give_a_tag_to_every_word(answer, expected):
    assert tags("play Lady Gaga now", answer) == expected.split()


def test_the_intent_is_found_where_there_is_one():
    for answer, name in (
        ("play [IN:Play ] [IN:Other", "Play"),
        (" Play\n", "Play"),
        ("[IN: play ]", None),
        ("play it", None),
        ("play]", None),
        ("", None),
    ):
        assert intent(answer) == name


@pytest.mark.parametrize(
    ("form", "answer", "reason", "repaired"),
    [
        ("interleaved", "", "0 words, the input has 2", "a O b O"),
        ("interleaved", "a B-x b", "3 pieces, expected a tag for each word", "a B-x b O"),
        ("interleaved", "a B-x c I-x", "word 2 is 'c', the input's is 'b'", "a B-x b I-x"),
        ("interleaved", "a O b B-x c O", "3 words, the input has 2", "a O b B-x"),
        ("interleaved", "a O b C-x", "'C-x' is no tag", "a O b O"),
        ("interleaved", "a O b B-", "'B-' is no tag", "a O b O"),
        ("interleaved", "a I-x b I-x", "'I-x' continues nothing: before it is 'O'", "a B-x b I-x"),
        ("interleaved", "a B-y b I-x", "'I-x' continues nothing: before it is 'B-y'", "a B-y b B-x"),
        ("interleaved", "[IN:I a [SL:x b ] ]", "'a' is no tag", "a O b B-x"),
        ("top", "", "begins with '', expected [IN: and an intent", "[IN:none a b ]"),
        ("top", "a [SL:x b ] ]", "begins with 'a', expected [IN: and an intent", "[IN:none a [SL:x b ] ]"),
        ("top", "[IN: a b ]", "begins with '[IN:', expected [IN: and an intent", "[IN:none a b ]"),
        ("top", "[IN:I] a b ]", "begins with '[IN:I]', expected [IN: and an intent", "[IN:I a b ]"),
        ("top", "[IN:I a b", "'[IN:I' is not closed", "[IN:I a b ]"),
        ("top", "[IN:I a [SL:x b ]", "'[IN:I' is not closed", "[IN:I a [SL:x b ] ]"),
        ("top", "[IN:I a [SL:x b", "'[SL:x' is not closed", "[IN:I a [SL:x b ] ]"),
        ("top", "[IN:I a b ] ]", "goes on after the intent is closed", "[IN:I a b ]"),
        ("top", "[IN:I [SL:x a [SL:y b ] ] ]", "'[SL:y' within '[SL:x'", "[IN:I [SL:x a ] [SL:y b ] ]"),
        ("top", "[IN:I a [IN:J b ] ]", "'[IN:J' within '[IN:I'", "[IN:I a b ]"),
        ("top", "[IN:I a [SL: b ] ]", "'[SL:' within '[IN:I'", "[IN:I a b ]"),
        ("top", "[IN:I a [SL:x ] b ]", "'[SL:x' holds no word", "[IN:I a b ]"),
        ("top", "[IN:I a [SL:x c ] ]", "word 2 is 'c', the input's is 'b'", "[IN:I a [SL:x b ] ]"),
        ("top", "[IN:I a ]", "1 words, the input has 2", "[IN:I a b ]"),
        ("top", "a O b B-x", "begins with 'a', expected [IN: and an intent", "[IN:none a [SL:x b ] ]"),
        ("intent", "", "no intent", "none"),
        ("intent", "Play Music", "'Play Music' is no label", "none"),
        ("intent", "[IN:I a b ]", "'[IN:I a b ]' is no label", "I"),
    ],
)
def test_what_is_wrong_is_said_and_mended(form, answer, reason, repaired):
    assert INVALID[form]("a b", answer) == reason
    assert REPAIR[form]("a b", answer) == repaired
    assert INVALID[form]("a b", repaired) is None


def test_nothing_is_a_target_of_an_empty_input():
    for form in ("interleaved", "top"):
        for answer in ("", "[IN:I ]"):
            assert "\n" not in str(INVALID[form]("", answer)) and INVALID[form](" ", answer)
            assert isinstance(REPAIR[form]("", answer), str)


# ------------------------------------------------------------------------------------------- fuzz


PIECES = "a b O B-x I-x I-y B- ] [IN:I [IN: [SL:x [SL:y [SL: \\] [ \\ é x] [SL:[ ]] \udcff \0 \xad".split(" ")


def mutated(draw, text):
    """The text with some pieces, or characters, lost, doubled, swapped or replaced."""
    parts = text.split() if draw.random() < 0.7 else list(text)
    for _ in range(draw.randrange(5)):
        place = draw.randrange(len(parts) + 1)
        change = draw.randrange(5)
        if change == 0:
            parts[place : place + 1] = []
        elif change == 1:
            parts.insert(place, draw.choice(PIECES))
        elif change == 2:
            parts[place : place + 1] = [draw.choice(PIECES)]
        elif change == 3:
            parts[place:place] = parts[place : place + 3]
        else:
            parts = parts[:place] if draw.random() < 0.3 else parts[place : place + 2] + parts
    return (" " if len(parts) and max(map(len, parts)) > 1 else "").join(parts)


def fuzz(count, seed):
    """How often each form's mutated answers were well formed; all properties hold for each of them."""
    draw = random.Random(seed)
    valid = Counter()
    for _ in range(count):
        size = draw.randrange(1, 9)
        spoken = draw.choices(["a", "b", "c", "d"], k=size) if draw.random() < 0.8 else draw.choices(PIECES, k=size)
        right = slots.begun(draw.choices(["O", "O", "B-x", "I-x", "B-y", "I-y"], k=size))
        text, targets = " ".join(spoken), {form: slots.FORMS[form](spoken, right, "I") for form in slots.FORMS}
        assert [tags(text, targets[form]) for form in ("interleaved", "top")] == [right, right]
        answer = mutated(draw, targets[draw.choice(list(targets))])
        found = tags(text, answer)
        assert len(found) == size and all(map(slots.TAG.fullmatch, found))
        for form in slots.FORMS:
            reason, repaired = INVALID[form](text, answer), REPAIR[form](text, answer)
            assert INVALID[form](text, repaired) is None, (text, answer, repaired)
            if reason is None:
                assert repaired == answer
            else:
                assert reason and len(reason.splitlines()) == 1
            if form != "intent" and (reason is None or slots.words(answer) != []):
                assert chunks(tags(text, repaired)) == chunks(found), (text, answer, repaired)
            valid[form] += reason is None
        for form in ("interleaved", "top"):
            for metric in (chunk_f1, chunk_precision, chunk_recall) if chunks(right) else ():
                assert 0 <= metric([answer], [[targets[form]]]) <= 100
        assert intent_accuracy([answer], [[targets["top"]]]) in (0, 100)
    return valid


def test_whatever_a_model_says_is_read_judged_and_mended():
    valid = fuzz(4_000, seed=0)
    assert all(100 < valid[form] < 3_900 for form in slots.FORMS)


@pytest.mark.slow
def test_whatever_a_model_says_is_read_judged_and_mended_a_hundred_thousand_times():
    fuzz(100_000, seed=1)


# ------------------------------------------------------------------------------------------- Snips


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
        list(read_examples(rows_of("snips", path=path, part="train"), BadRows(0), need_target=True))
    assert (
        "line 1: intent 'two words' holds a blank"
        in everything(snips_file(tmp_path, record("two words", "a")), form="top")[0]
    )


def rows_of(reader, **arguments):
    return FunctionRows(kind="function", function=f"raykd.data.tasks.slots:{reader}", arguments=arguments)


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
    forms = {form: everything(str(SNIPS), form=form, lower=form == "top") for form in slots.FORMS}
    for form, rows in forms.items():
        assert all(INVALID[form](row["input"], row["target"]) is None for row in rows)
        assert all(REPAIR[form](row["input"], row["target"]) == row["target"] for row in rows)
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
    examples = list(
        read_examples(rows_of("snips", path=str(SNIPS), part="dev", form="top"), BadRows(0), need_target=True)
    )
    assert [e.target for e in examples] == [row["target"] for row in snips(str(SNIPS), "dev", form="top")]


# ------------------------------------------------------------------------------------------- BIO files


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
    assert len(list(read_examples(rows_of("bio", path=str(path)), bad, need_target=True))) == 2
    assert "line 3: 2 words, 1 tags" in bad.rows[0].reason
