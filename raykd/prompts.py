"""Prompts: the text a model is given for an input."""

from __future__ import annotations

import hashlib


def render(template: str, text: str) -> str:
    """The template with the input in place of `{input}`; other braces stay as they are."""
    return template.replace("{input}", text)


def key(prompt: str) -> str:
    """The name of a rendered prompt in a store: 32 hex digits of its SHA-256."""
    return hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:32]
