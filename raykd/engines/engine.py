"""Engines: prompts in, answers out.

An engine is opened once and held by an actor. `generate` gives, for every prompt in order, its samples or one
`Refusal`; `score` reads given targets instead of writing its own; `close` gives back what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from raykd.recipe.generation import Engine as EngineSpec
from raykd.recipe.generation import Payload, Sampling, TextPayload


class PseudoTarget(NamedTuple):
    """One sample, of T tokens.

    payload holds what the recipe's payload asks for beyond text, as arrays that start with the position:
        top_k     top_ids (T, k) int32, most likely first; top_logprobs (T, k) float32, natural, over the vocabulary
        sampled   sampled_ids (M,) int32, rising within a position; sampled_counts (M,) uint8; sampled_lengths (T,)
                  int32, how many of the M belong to each position: their sum is M
        hidden    hidden (T, H) float16: what the head reads, after the last norm
    """

    text: str
    token_ids: np.ndarray  # (T,) int32; of an encoder with a head, its numbers (raykd.models.task_heads)
    logprobs: np.ndarray  # (T,) float32, natural, at temperature 1; empty where the engine has none
    finish_reason: str  # stop | length
    payload: dict[str, np.ndarray] = {}


class Rejected(NamedTuple):
    """Why a prompt has no answer."""

    reason: str


@dataclass(frozen=True)
class EngineConfig:
    """What opens an engine: its kind, the model's folder, how to decode, what to record, the seed, and CPU threads."""

    spec: EngineSpec
    model: str
    sampling: Sampling
    seed: int
    threads: int
    payload: Payload = field(default_factory=lambda: TextPayload(kind="text"))
    special_tokens: bool = True  # add the tokenizer's own; a chat template has written them already
    hang_seconds: float = 600.0  # without an answer; then the engine counts as hung


class Engine(Protocol):
    """What holds a model and answers prompts. Methods may be called from several threads at once."""

    prompt_tokens: int  # read since the engine was opened
    output_tokens: int  # written since the engine was opened

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        """Samples number samples.start to samples.stop - 1 of each prompt.

        With seeds, one per prompt, sample i comes from the seed of its prompt plus i alone. Raises EngineDead where
        the engine died or hangs; it must be opened again then.
        """
        ...

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        """Each target as the answer to its prompt: tokens as in training, log-probabilities and payload."""
        ...

    def close(self) -> None: ...


def open_engine(opening: EngineConfig) -> Engine:
    """The engine of an opening, ready to answer. Raises EngineError or ModelError."""
    kind = opening.spec.kind
    if kind == "vllm":
        from raykd.engines.vllm import VllmEngine

        return VllmEngine(opening)
    if kind == "transformers":
        from raykd.models import task_heads
        from raykd.models.files import saved_configuration

        if task_heads.task_of(saved_configuration(opening.model)) != "generation":
            from raykd.engines.encoder import EncoderEngine

            return EncoderEngine(opening)
        from raykd.engines.transformers import TransformersEngine

        return TransformersEngine(opening)
    if kind == "endpoint":
        from raykd.engines.endpoint import EndpointEngine

        return EndpointEngine(opening)
    from raykd.engines.scripted import ScriptedEngine

    return ScriptedEngine(opening)


def too_long(tokens: int, sampling: Sampling, context: int) -> Rejected | None:
    """A refusal where prompt and answer do not fit into the model together."""
    if tokens + sampling.max_tokens <= context:
        return None
    return Rejected(f"prompt of {tokens} tokens + max_tokens {sampling.max_tokens} > the model's context of {context}")
