"""Prompts: the text a model is given for an input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from raykd.data import Example
from raykd.errors import ModelError
from raykd.recipe import Chat, Prompt


def renderer(prompt: Prompt, shots: Sequence[Example] = (), tokenizer: Any = None) -> Callable[[str], str]:
    """A function from input to prompt. Only a chat needs the tokenizer; raises ModelError where it has no template."""
    template = prompt if isinstance(prompt, str) else prompt.template

    def fill(text: str) -> str:
        return template.replace("{input}", text)  # other braces stay as they are

    if isinstance(prompt, str):
        return fill
    if isinstance(prompt, Chat):
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError("prompt: kind chat needs a tokenizer with a chat template, and this one has none")
        turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for shot in shots:
            turns += [{"role": "user", "content": fill(shot.input)}, {"role": "assistant", "content": shot.target}]

        def chat(text: str) -> str:
            turn = {"role": "user", "content": fill(text)}
            return tokenizer.apply_chat_template([*turns, turn], tokenize=False, add_generation_prompt=True)

        return chat
    before, between, after = _around(prompt.shot)
    shown = "".join(f"{before}{fill(shot.input)}{between}{shot.target}{after}" for shot in shots)
    return lambda text: shown + before + fill(text) + between.rstrip()  # the blank before a target is the target's


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
