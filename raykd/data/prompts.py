"""Prompts: the text that a model reads for an input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raykd.data.examples import Example
from raykd.data.shots import shot_selector
from raykd.errors import ModelError
from raykd.recipe.models import Task
from raykd.recipe.prompts import Chat, Completion, Prompt


@dataclass(frozen=True)
class PromptEncoder:
    """How a model's prompts are rendered and tokenized: the tokenizer's folder, the prompt and its examples."""

    tokenizer: str
    prompt: Prompt
    shots: tuple[Example, ...] = ()
    encoder: bool = False  # an encoder-decoder, whose inputs end with an end token
    task: Task = "generation"
    labels: tuple[str, ...] | None = None  # the classes of a classification


def renderer(
    prompt: Prompt, candidates: Sequence[Example] = (), tokenizer: Any = None, endpoint: bool = False
) -> Callable[[list[str]], list[str]]:
    """A function from inputs to prompts; the examples in a prompt are selected from the candidates.

    Only a chat needs the tokenizer; raises ModelError if it has no chat template. With `endpoint`, for a model behind
    an endpoint, the prompt of a chat is its turns as JSON.
    """
    template = prompt if isinstance(prompt, str) else prompt.template

    def fill(text: str) -> str:
        return template.replace("{input}", text)  # other braces stay as they are

    if isinstance(prompt, str):
        return lambda texts: [fill(text) for text in texts]
    select = shot_selector(prompt.shots, candidates)
    render = _chat(prompt, fill, tokenizer, endpoint) if isinstance(prompt, Chat) else _completion(prompt, fill)
    return lambda texts: [render(text, shots) for text, shots in zip(texts, select(texts), strict=True)]


def _chat(prompt: Chat, fill: Callable[[str], str], tokenizer: Any, endpoint: bool) -> Callable[..., str]:
    if not endpoint and not getattr(tokenizer, "chat_template", None):
        raise ModelError("prompt: kind chat needs a tokenizer with a chat template, and this one has none")

    def render(text: str, shots: list[Example]) -> str:
        turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for shot in shots:
            turns += [{"role": "user", "content": fill(shot.input)}, {"role": "assistant", "content": shot.target}]
        turns.append({"role": "user", "content": fill(text)})
        if endpoint:
            return json.dumps(turns, ensure_ascii=False)
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    return render


def _completion(prompt: Completion, fill: Callable[[str], str]) -> Callable[..., str]:
    before, between, after = _around(prompt.shot)

    def render(text: str, shots: list[Example]) -> str:
        examples = "".join(f"{before}{fill(shot.input)}{between}{shot.target}{after}" for shot in shots)
        return examples + before + fill(text) + between.rstrip(" ")  # the blank before a target is the target's

    return render


def _around(shot: str) -> tuple[str, str, str]:
    """The texts of an example before its prompt, between prompt and target, and after the target."""
    before, _, rest = shot.partition("{prompt}")
    between, _, after = rest.partition("{target}")
    return before, between, after


def special_tokens(prompt: Prompt) -> bool:
    """Whether a tokenizer must add its special tokens to the prompt; a chat template has written them already."""
    return not isinstance(prompt, Chat)


def key(prompt: str, target: str | None = None) -> bytes:
    """The name in a store of a rendered prompt, or of a prompt with a target to score: 16 bytes of a SHA-256."""
    text = prompt if target is None else f"{prompt}\0{target}"  # no text holds a NUL
    return hashlib.sha256(text.encode("utf-8")).digest()[:16]
