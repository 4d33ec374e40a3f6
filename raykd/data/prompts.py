"""Prompts: the text a model is given for an input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raykd.data.examples import Example
from raykd.data.shots import chooser
from raykd.errors import ModelError
from raykd.recipe.models import Task
from raykd.recipe.prompts import Chat, Completion, Prompt


@dataclass(frozen=True)
class PromptEncoder:
    """How prompts are made and read: the tokenizer's folder, the prompt and its examples."""

    tokenizer: str
    prompt: Prompt
    shots: tuple[Example, ...] = ()
    encoder: bool = False  # an encoder-decoder, whose inputs end with an end token
    task: Task = "generation"
    labels: tuple[str, ...] | None = None  # the classes of a classification


def renderer(
    prompt: Prompt, candidates: Sequence[Example] = (), tokenizer: Any = None, served: bool = False
) -> Callable[[list[str]], list[str]]:
    """A function from inputs to prompts, whose examples are chosen among the candidates.

    Only a chat needs the tokenizer; raises ModelError where it has no template. The prompt of a chat with a served
    model is its turns as JSON.
    """
    template = prompt if isinstance(prompt, str) else prompt.template

    def fill(text: str) -> str:
        return template.replace("{input}", text)  # other braces stay as they are

    if isinstance(prompt, str):
        return lambda texts: [fill(text) for text in texts]
    choose = chooser(prompt.shots, candidates)
    one = _chat(prompt, fill, tokenizer, served) if isinstance(prompt, Chat) else _completion(prompt, fill)
    return lambda texts: [one(text, shown) for text, shown in zip(texts, choose(texts), strict=True)]


def _chat(prompt: Chat, fill: Callable[[str], str], tokenizer: Any, served: bool) -> Callable[..., str]:
    if not served and not getattr(tokenizer, "chat_template", None):
        raise ModelError("prompt: kind chat needs a tokenizer with a chat template, and this one has none")

    def write(text: str, shown: list[Example]) -> str:
        turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for shot in shown:
            turns += [{"role": "user", "content": fill(shot.input)}, {"role": "assistant", "content": shot.target}]
        turns.append({"role": "user", "content": fill(text)})
        if served:
            return json.dumps(turns, ensure_ascii=False)
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    return write


def _completion(prompt: Completion, fill: Callable[[str], str]) -> Callable[..., str]:
    before, between, after = _around(prompt.shot)

    def write(text: str, shown: list[Example]) -> str:
        examples = "".join(f"{before}{fill(shot.input)}{between}{shot.target}{after}" for shot in shown)
        return examples + before + fill(text) + between.rstrip(" ")  # the blank before a target is the target's

    return write


def _around(shot: str) -> tuple[str, str, str]:
    before, _, rest = shot.partition("{prompt}")
    between, _, after = rest.partition("{target}")
    return before, between, after


def special_tokens(prompt: Prompt) -> bool:
    """Whether a tokenizer must add its special tokens; a chat template has written them already."""
    return not isinstance(prompt, Chat)


def key(prompt: str, target: str | None = None) -> bytes:
    """The name in a store of a rendered prompt, or of a prompt with the target that is read: 16 bytes of a SHA-256."""
    text = prompt if target is None else f"{prompt}\0{target}"  # no text holds a NUL
    return hashlib.sha256(text.encode("utf-8")).digest()[:16]
