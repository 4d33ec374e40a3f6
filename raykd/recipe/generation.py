"""A recipe: the whole description of a run, as frozen pydantic models.

Every default is written here and nowhere else, with its unit. Loading a recipe imports neither torch nor Ray.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raykd.recipe.section import Section


class VllmEngine(Section):
    """vLLM: decoder-only models."""

    kind: Literal["vllm"]
    arguments: dict[str, Any] = Field(default={}, description="passed to vllm.EngineArgs as they are")


class TransformersEngine(Section):
    """`transformers` generate: encoder-decoder models, and decoder-only ones where vLLM has no build."""

    kind: Literal["transformers"]
    batch_tokens: int | None = Field(
        default=None, ge=1, description="padded tokens, prompt and answer, worked on at once; default: found by itself"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"


class ScriptedEngine(Section):
    """A double for tests: answers each prompt by `module:function(prompt, sample) -> text`."""

    kind: Literal["scripted"]
    function: str = Field(default="raykd.engines.scripted:echo", pattern=r"^[\w.]+:\w+$")


class Price(Section):
    """What an endpoint asks for a million tokens, in any one currency: for the report."""

    prompt: float = Field(ge=0)
    output: float = Field(ge=0)


class EndpointEngine(Section):
    """Any OpenAI-compatible endpoint. Rows leave the cluster for it; the report says how many."""

    kind: Literal["endpoint"]
    url: str = Field(pattern=r"^https?://[^@]+$", description="up to and with /v1")
    api_key_env: str | None = Field(
        default=None, pattern=r"^[A-Za-z_]\w*$", description="the environment variable that holds the key"
    )
    concurrency: int = Field(default=16, ge=1, le=1000, description="requests under way, of each replica")
    requests_per_minute: float | None = Field(default=None, gt=0, description="begun at most, by each replica")
    retries: int = Field(
        default=12, ge=0, description="of a request before the pass stops, with growing pauses: 12 take a minute"
    )
    timeout_seconds: float = Field(default=120, gt=0, description="for an answer")
    price: Price | None = None


Engine = Annotated[VllmEngine | TransformersEngine | ScriptedEngine | EndpointEngine, Field(discriminator="kind")]


class Sampling(Section):
    """How a model decodes; the names are vLLM's."""

    n: int = Field(default=1, ge=1, description="samples per input")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0 is all")
    max_tokens: int = Field(default=128, ge=1)
    seeded: bool = Field(
        default=False, description="each sample's seed from the run's seed and its key, whatever else is in its batch"
    )
    options: dict[str, Any] = Field(
        default={}, description="further ones of vllm.SamplingParams or transformers.GenerationConfig, as they are"
    )

    @model_validator(mode="after")
    def _fields_serve(self) -> Sampling:
        beams = self.options.get("num_beams", 1)
        if self.temperature == 0 and self.n > max(1, beams):
            raise ValueError(f"n is {self.n} at temperature 0: every sample would be the same; set temperature")
        if self.temperature == 0 and (self.top_p != 1 or self.top_k):
            raise ValueError("top_p and top_k do nothing at temperature 0; set temperature")
        if self.temperature == 0 and self.seeded:
            raise ValueError("seeded does nothing at temperature 0")
        twice = [name for name in self.options if name in type(self).model_fields]
        if twice:
            raise ValueError(f"options.{twice[0]}: give sampling.{twice[0]} instead")
        return self


class TextPayload(Section):
    """Texts and their tokens."""

    kind: Literal["text"]
    logprobs: bool = Field(default=True, description="of each token; the transformers engine reads its answers again")


class TopKPayload(Section):
    """Texts, log-probabilities, and the k most likely tokens at each position with theirs over the vocabulary."""

    kind: Literal["top_k"]
    k: int = Field(default=64, ge=1)


class SampledPayload(Section):
    """Texts, log-probabilities, and tokens drawn at each position (random-sampling KD, arXiv 2503.16870)."""

    kind: Literal["sampled"]
    draws: int = Field(default=50, ge=1, le=255, description="per position; about a dozen different tokens stay")


class HiddenPayload(Section):
    """Texts, log-probabilities, and what the teacher's head reads at each position: exact, and large."""

    kind: Literal["hidden"]


class AutoPayload(Section):
    """Left to raykd: what the loss needs, in the form that costs least; the report says which and why."""

    kind: Literal["auto"]


Payload = Annotated[
    TextPayload | TopKPayload | SampledPayload | HiddenPayload | AutoPayload, Field(discriminator="kind")
]
