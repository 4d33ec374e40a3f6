"""Engines: prompts in, answers out.

An engine is opened once and held by an actor: `generate(prompts)` gives, for every prompt in order, its n answers or
one `Refusal`; `close()` gives back what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from raykd.recipe import Engine as EngineSpec
from raykd.recipe import Sampling


class Answer(NamedTuple):
    """One sample: its text, tokens, their log-probabilities (natural; empty where unknown), and why it ended."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


class Refusal(NamedTuple):
    """Why a prompt has no answer."""

    reason: str


@dataclass(frozen=True)
class Opening:
    """What opens an engine: its kind, the model's folder, how to decode, the seed, and CPU threads."""

    spec: EngineSpec
    model: str
    sampling: Sampling
    seed: int
    threads: int


class Engine(Protocol):
    """What holds a model and answers prompts."""

    prompt_tokens: int  # read since the engine was opened
    output_tokens: int  # written since the engine was opened

    def generate(self, prompts: list[str]) -> list[list[Answer] | Refusal]: ...

    def close(self) -> None: ...


def open_engine(opening: Opening) -> Engine:
    """The engine of an opening, ready to answer. Raises EngineError or ModelError."""
    kind = opening.spec.kind
    if kind == "vllm":
        from raykd.engines.vllm import VllmEngine

        return VllmEngine(opening)
    if kind == "transformers":
        from raykd.engines.transformers import TransformersEngine

        return TransformersEngine(opening)
    from raykd.engines.scripted import ScriptedEngine

    return ScriptedEngine(opening)


def too_long(tokens: int, sampling: Sampling, context: int) -> Refusal | None:
    """A refusal where prompt and answer do not fit into the model together."""
    if tokens + sampling.max_tokens <= context:
        return None
    return Refusal(f"prompt of {tokens} tokens + max_tokens {sampling.max_tokens} > the model's context of {context}")
