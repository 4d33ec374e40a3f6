"""Engines: prompts in, pseudo-targets out.

An actor opens an engine once and keeps it. `generate` returns for every prompt, in order, its samples or one
`Rejected`; `score` reads targets instead of writing its own; `close` releases the model and its processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from raykd.recipe.generation import Engine as EngineSpec
from raykd.recipe.generation import Payload, Sampling, TextPayload


class PseudoTarget(NamedTuple):
    """One sample, of T tokens.

    payload holds what the recipe's payload records beyond text, as arrays whose first axis is the position:
        top_k     top_ids (T, k) int32, most likely first; top_logprobs (T, k) float32, natural, over the vocabulary
        sampled   sampled_ids (M,) int32, rising within a position; sampled_counts (M,) uint8; sampled_lengths (T,)
                  int32, how many of the M belong to each position: their sum is M
        hidden    hidden (T, H) float16: the input of the head, after the last norm
    """

    text: str
    token_ids: np.ndarray  # (T,) int32; of an encoder with a head: its head target (raykd.models.task_heads)
    logprobs: np.ndarray  # (T,) float32, natural, at temperature 1; empty where the engine has none
    finish_reason: str  # stop | length
    payload: dict[str, np.ndarray] = {}


class Rejected(NamedTuple):
    """A prompt that the model does not accept, with the reason."""

    reason: str


@dataclass(frozen=True)
class EngineConfig:
    """The configuration of an engine: its kind, the model's folder, decoding, payload, seed and CPU threads."""

    engine: EngineSpec
    model: str
    sampling: Sampling
    seed: int
    threads: int
    payload: Payload = field(default_factory=lambda: TextPayload(kind="text"))
    special_tokens: bool = True  # add the tokenizer's own; a chat template has written them already
    hang_seconds: float = 600.0  # without any output; after that the engine counts as hung


class Engine(Protocol):
    """A model that is open and writes pseudo-targets. Methods may be called from several threads at once."""

    prompt_tokens: int  # read since the engine was opened
    output_tokens: int  # written since the engine was opened

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        """Samples number samples.start to samples.stop - 1 of each prompt.

        With seeds, one per prompt, sample i depends only on the seed of its prompt plus i. Raises EngineDead if the
        engine died or hangs; it must then be opened again.
        """
        ...

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        """Each target as its prompt's pseudo-target: tokens as in training, log-probabilities and payload."""
        ...

    def close(self) -> None: ...


def open_engine(config: EngineConfig) -> Engine:
    """The engine of a configuration, ready to generate. Raises EngineError or ModelError."""
    kind = config.engine.kind
    if kind == "vllm":
        from raykd.engines.vllm import VllmEngine

        return VllmEngine(config)
    if kind == "transformers":
        from raykd.models import task_heads
        from raykd.models.files import saved_configuration

        if task_heads.task_of(saved_configuration(config.model)) != "generation":
            from raykd.engines.encoder import EncoderEngine

            return EncoderEngine(config)
        from raykd.engines.transformers import TransformersEngine

        return TransformersEngine(config)
    if kind == "endpoint":
        from raykd.engines.endpoint import EndpointEngine

        return EndpointEngine(config)
    from raykd.engines.scripted import ScriptedEngine

    return ScriptedEngine(config)


def text_only(text: str, finish_reason: str = "stop") -> PseudoTarget:
    """A pseudo-target with nothing but its text."""
    return PseudoTarget(
        text=text,
        token_ids=np.zeros(0, np.int32),
        logprobs=np.zeros(0, np.float32),
        finish_reason=finish_reason,
    )


def reject(prompt_tokens: int, output: str, output_tokens: int, context: int, encoder: bool = False) -> Rejected | None:
    """A `Rejected` if prompt and output do not fit into the model's context, or the prompt is empty; else None.

    All counts are in tokens; `output` names the output in the message. `encoder` is for an encoder-decoder, in which
    prompt and output have positions of their own, and a prompt ends with an end token.
    """
    if prompt_tokens == encoder:
        return Rejected("the prompt has no tokens")
    longest = max(prompt_tokens, output_tokens) if encoder else prompt_tokens + output_tokens
    if longest <= context:
        return None
    joined = "or" if encoder else "+"
    return Rejected(
        f"prompt of {prompt_tokens} tokens {joined} {output} {output_tokens} > the model's context of {context}"
    )
