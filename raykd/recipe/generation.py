"""How a model writes texts: the sections of its engine, its decoding, and the payload recorded for each token."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raykd.recipe.names import FunctionName
from raykd.recipe.section import Section


class VllmEngine(Section):
    """vLLM: decoder-only models."""

    kind: Literal["vllm"]
    arguments: dict[str, Any] = Field(default={}, description="passed to vllm.EngineArgs as they are")


class TransformersEngine(Section):
    """`transformers` generate: encoder-decoder models, and decoder-only ones where vLLM has no build."""

    kind: Literal["transformers"]
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="padded tokens of a batch, prompts and pseudo-targets together; default: found while it runs",
    )
    dtype: Literal["float32", "bfloat16"] = "float32"


class ScriptedEngine(Section):
    """A double for tests, which writes `module:function(prompt, sample) -> text` for each prompt."""

    kind: Literal["scripted"]
    function: FunctionName = "raykd.engines.scripted:echo"


class Price(Section):
    """What an endpoint charges for a million tokens, in any currency: for the report."""

    prompt: float = Field(ge=0)
    output: float = Field(ge=0)


class EndpointEngine(Section):
    """Any OpenAI-compatible endpoint. Rows leave the cluster for it, and the report says how many."""

    kind: Literal["endpoint"]
    url: str = Field(pattern=r"^https?://[^@]+$", description="its address, up to and including /v1")
    api_key_env: str | None = Field(
        default=None, pattern=r"^[A-Za-z_]\w*$", description="name of the environment variable that holds the key"
    )
    concurrency: int = Field(default=16, ge=1, le=1000, description="requests that each replica has open at a time")
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="requests that each replica sends in a minute, at most"
    )
    retries: int = Field(
        default=12,
        ge=0,
        description="how often a request is repeated before the pass stops; pauses grow, so 12 retries take a minute",
    )
    timeout_seconds: float = Field(default=120, gt=0, description="how long a response may take")
    price: Price | None = None


Engine = Annotated[VllmEngine | TransformersEngine | ScriptedEngine | EndpointEngine, Field(discriminator="kind")]


class Sampling(Section):
    """How a model decodes. The fields have vLLM's names and meanings."""

    n: int = Field(default=1, ge=1, description="how many pseudo-targets a model writes for an input")
    temperature: float = Field(default=0.0, ge=0, description="0: the most likely token at every position (greedy)")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the likeliest tokens of this total probability"
    )
    top_k: int = Field(default=0, ge=0, description="sample from the k likeliest tokens; 0: from all")
    max_tokens: int = Field(default=128, ge=1, description="maximum length of a pseudo-target")
    seeded: bool = Field(
        default=False,
        description="a sample depends on the recipe's seed, its prompt and its number alone, not on its batch (vLLM)",
    )
    options: dict[str, Any] = Field(
        default={},
        description="further fields of vllm.SamplingParams or transformers.GenerationConfig, passed on as they are",
    )

    @model_validator(mode="after")
    def _fields_serve(self) -> Sampling:
        beams = self.options.get("num_beams", 1)
        beams = beams if isinstance(beams, int) else 1  # rules_early refuses what is no number
        if self.temperature == 0 and self.n > max(1, beams):
            raise ValueError(f"n is {self.n} at temperature 0: every sample would be the same; set temperature")
        if self.temperature == 0 and (self.top_p != 1 or self.top_k):
            raise ValueError("top_p and top_k do nothing at temperature 0; set temperature")
        if self.temperature == 0 and self.seeded:
            raise ValueError("seeded does nothing at temperature 0")
        twice = [name for name in self.options if name in type(self).model_fields]
        if twice:
            raise ValueError(f"options.{twice[0]}: set {twice[0]} beside options instead")
        return self


class TextPayload(Section):
    """Texts and their token ids."""

    kind: Literal["text"]
    logprobs: bool = Field(
        default=True,
        description="log-probabilities of the tokens as well; the transformers engine needs a second pass for them",
    )


class TopKPayload(Section):
    """Texts, log-probabilities, and at each position the k most likely tokens with their log-probabilities."""

    kind: Literal["top_k"]
    k: int = Field(default=64, ge=1)


class SampledPayload(Section):
    """Texts, log-probabilities, and tokens drawn at each position (random-sampling KD, arXiv 2503.16870)."""

    kind: Literal["sampled"]
    draws: int = Field(default=50, ge=1, le=255, description="tokens drawn per position; about a dozen of them differ")


class HiddenPayload(Section):
    """Texts, log-probabilities, and at each position the input of the teacher's output layer: exact, and large."""

    kind: Literal["hidden"]


class AutoPayload(Section):
    """The cheapest payload that the losses can use; the report names it, with the reason."""

    kind: Literal["auto"]


Payload = Annotated[
    TextPayload | TopKPayload | SampledPayload | HiddenPayload | AutoPayload, Field(discriminator="kind")
]
