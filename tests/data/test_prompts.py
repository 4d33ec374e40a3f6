"""What a model is given for an input."""

import json

import pytest

from raykd.data import prompts
from raykd.data.examples import Example
from raykd.errors import ModelError
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.data import FunctionRows
from raykd.recipe.prompts import Chat, Completion, Shots

SHOTS = [Example("1", "a b", "A B"), Example("2", "{input} {x}", "C")]


def first(count, **others):
    rows = FunctionRows(kind="function", function="nowhere:rows")  # the candidates are given
    return Shots(rows=rows, count=count, **others)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_template_fills_its_place_and_no_other_brace():
    assert prompts.renderer("say {input} {other}")(["{x}"]) == ["say {x} {other}"]


def test_a_completion_shows_its_examples_first():
    prompt = Completion(kind="completion", template="{input} =>", shots=first(2))
    assert prompts.renderer(prompt, SHOTS)(["c"]) == ["a b => A B\n\n{input} {x} => C\n\nc =>"]
    prompt = Completion(kind="completion", template="{input}", shot="Q: {prompt}\nA: {target}\n", shots=first(1))
    assert prompts.renderer(prompt, SHOTS)(["c"]) == ["Q: a b\nA: A B\nQ: c\nA:"]
    prompt = Completion(kind="completion", template="{input}", shot="{prompt}\n{target}\n\n", shots=first(1))
    assert prompts.renderer(prompt, SHOTS)(["c"]) == ["a b\nA B\n\nc\n"]  # a line's end is not the target's


def test_a_chat_is_written_by_the_tokenizer(shared_tokenizer):
    tokenizer = load_tokenizer(shared_tokenizer)
    prompt = Chat(kind="chat", system="Be brief.", template="Say {input}", shots=first(1))
    with pytest.raises(ModelError, match="kind chat needs a tokenizer with a chat template"):
        prompts.renderer(prompt, SHOTS, tokenizer)
    tokenizer.chat_template, tokenizer.bos_token = TEMPLATE, "a"
    rendered = prompts.renderer(prompt, SHOTS, tokenizer)(["c"])
    assert rendered == ["a<system>Be brief.<user>Say a b<assistant>A B<user>Say c<assistant>"]
    assert not prompts.special_tokens(prompt) and prompts.special_tokens("{input}")


def test_a_chat_with_an_endpoint_is_its_turns_and_needs_no_tokenizer():
    prompt = Chat(kind="chat", system="Be brief.", template="Say {input}", shots=first(1))
    (turns,) = prompts.renderer(prompt, SHOTS, endpoint=True)(["ç"])
    said = [("system", "Be brief."), ("user", "Say a b"), ("assistant", "A B"), ("user", "Say ç")]
    assert [(turn["role"], turn["content"]) for turn in json.loads(turns)] == said
    assert json.loads(prompts.renderer(Chat(kind="chat"), endpoint=True)(["c"])[0]) == [
        {"role": "user", "content": "c"}
    ]


def test_each_input_is_shown_its_own_examples():
    rows = [Example("1", "fly home", "F"), Example("2", "play jazz", "P")]
    shown = Completion(kind="completion", shot="{prompt}: {target}; ", shots=first(1, choose="bm25"))
    found = prompts.renderer(shown, rows)(["jazz", "home", "fly home"])
    assert found == ["play jazz: P; jazz:", "fly home: F; home:", "play jazz: P; fly home:"]


def test_keys_are_those_of_the_rendered_prompt():
    assert len(prompts.key("a")) == 16 and prompts.key("a") != prompts.key("b")
