"""Targets of slot filling in every form: written, read, judged and repaired."""

import random
from collections import Counter

import pytest

from raykd.data.tasks import slots
from raykd.data.tasks.formats import get_format
from raykd.data.tasks.intents import intent_name
from raykd.data.tasks.interleaved import interleaved
from raykd.data.tasks.slot_rows import FORMS
from raykd.data.tasks.slots import chunks, intent, tags
from raykd.data.tasks.top import top
from raykd.metrics.slots import chunk_f1, chunk_precision, chunk_recall, intent_accuracy

PLAY = ("play the Edge of Glory by Lady Gaga", "O B-track I-track I-track I-track O B-artist I-artist")
BRACKETS = "[IN:PlayMusic play [SL:track the Edge of Glory ] by [SL:artist Lady Gaga ] ]"
WRITTEN = {
    "interleaved": "play O the B-track Edge I-track of I-track Glory I-track by O Lady B-artist Gaga I-artist",
    "top": BRACKETS,
    "intent": "PlayMusic",
}
FORMATS = {"interleaved": get_format("slots"), "top": get_format("top"), "intent": get_format("intent")}
INVALID = {form: FORMATS[form].invalid for form in FORMS}
REPAIR = {form: FORMATS[form].repair for form in FORMS}


@pytest.mark.parametrize("form", WRITTEN)
def test_a_form_is_written_and_read(form):
    text, labels = PLAY
    assert FORMS[form](text.split(), labels.split(), "PlayMusic") == WRITTEN[form]
    assert INVALID[form](text, WRITTEN[form]) is None
    assert REPAIR[form](text, WRITTEN[form]) == WRITTEN[form]
    assert intent(WRITTEN[form]) == (None if form == "interleaved" else "PlayMusic")
    if form != "intent":
        assert (slots.words(WRITTEN[form]), tags(text, WRITTEN[form])) == (text.split(), labels.split())


def test_words_that_look_like_tags_and_brackets_are_read_back():
    text = r"] O B-x [SL:a \] [IN:b \\[SL:c I-y x] \ [SL"
    labels = "B-B-a I-B-a O B-x I-x B-x O O B-y B-y I-y".split()
    for form in ("interleaved", "top"):
        answer = FORMS[form](text.split(), labels, "Some")
        assert INVALID[form](text, answer) is None
        assert (slots.words(answer), tags(text, answer)) == (text.split(), labels)
    assert top(["]"], ["O"], "Some") == r"[IN:Some \] ]"


def test_an_inside_that_continues_nothing_begins_a_chunk():
    found = "I-x I-x I-y O I-y B-y I-y B-x I-y".split()
    expected = [("x", 0, 2), ("y", 2, 3), ("y", 4, 5), ("y", 5, 7), ("x", 7, 8), ("y", 8, 9)]
    assert chunks(found) == chunks(slots.to_iob2(found)) == expected
    assert slots.to_iob2(found) == "B-x I-x B-y O B-y B-y I-y B-x B-y".split()


def test_targets_that_cannot_be_written_are_value_errors():
    for form in (interleaved, top):
        with pytest.raises(ValueError):
            form(["a", "b"], ["O"], "Some")
    for name in (None, "", "two words", "a]"):
        for form in (top, intent_name):
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
        right = slots.to_iob2(draw.choices(["O", "O", "B-x", "I-x", "B-y", "I-y"], k=size))
        text, targets = " ".join(spoken), {form: FORMS[form](spoken, right, "I") for form in FORMS}
        assert [tags(text, targets[form]) for form in ("interleaved", "top")] == [right, right]
        answer = mutated(draw, targets[draw.choice(list(targets))])
        found = tags(text, answer)
        assert len(found) == size and all(map(slots.TAG.fullmatch, found))
        for form in FORMS:
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
    assert all(100 < valid[form] < 3_900 for form in FORMS)


@pytest.mark.slow
def test_whatever_a_model_says_is_read_judged_and_mended_a_hundred_thousand_times():
    fuzz(100_000, seed=1)
