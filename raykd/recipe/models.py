"""TODO: docstring."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raykd.recipe.section import Section


class WordsTokenizer(Section):
    """One token per blank-separated word of gold pairs and unlabelled inputs."""

    kind: Literal["words"]
    extra: list[str] = Field(default=[], description="further words, such as a prompt's separator")


class PretrainedTokenizer(Section):
    """The tokenizer of a Hugging Face folder or hub name."""

    kind: Literal["pretrained"]
    path: str


Tokenizer = Annotated[WordsTokenizer | PretrainedTokenizer, Field(discriminator="kind")]


class Checkpoint(Section):
    """A pretrained model: a Hugging Face folder or hub name, with its own tokenizer."""

    kind: Literal["checkpoint"]
    path: str


class FromConfig(Section):
    """A model with random weights: a `transformers` model type and its configuration's settings."""

    kind: Literal["config"]
    model_type: str = Field(description="as `transformers.AutoConfig.for_model` knows it: llama, t5, ...")
    settings: dict[str, Any] = {}


class Pruned(Section):
    """Some layers of a pretrained model, with its embeddings, norms, head and tokenizer; layers are counted from 0."""

    kind: Literal["pruned"]
    path: str = Field(description="the larger model: a Hugging Face folder or hub name")
    layers: list[int] | None = Field(default=None, description="to keep, of a decoder-only or encoder-only model")
    encoder_layers: list[int] | None = Field(default=None, description="to keep, of an encoder-decoder; default: all")
    decoder_layers: list[int] | None = Field(default=None, description="to keep, of an encoder-decoder; default: all")

    @model_validator(mode="after")
    def _layers_serve(self) -> Pruned:
        sides = {"encoder_layers": self.encoder_layers, "decoder_layers": self.decoder_layers}
        given = {name: kept for name, kept in {"layers": self.layers, **sides}.items() if kept is not None}
        if not given:
            raise ValueError("give layers, or for an encoder-decoder model encoder_layers, decoder_layers or both")
        if self.layers is not None and len(given) > 1:
            raise ValueError("layers is for models of one side: it does not go with encoder_layers or decoder_layers")
        for name, kept in given.items():
            if not kept or kept[0] < 0 or any(later <= layer for layer, later in zip(kept, kept[1:], strict=False)):
                raise ValueError(f"{name}: expected one layer or more, from 0 and rising, found {kept}")
        return self


Model = Annotated[Checkpoint | FromConfig | Pruned, Field(discriminator="kind")]


class EndpointModel(Section):
    """A model behind an endpoint (engine: kind endpoint), by the name it has there."""

    kind: Literal["endpoint"]
    name: str = Field(min_length=1)


TeacherModel = Annotated[Checkpoint | FromConfig | Pruned | EndpointModel, Field(discriminator="kind")]
Task = Literal[
    "generation", "classification", "regression", "extractive_qa"
]  # extractive_qa: the answer is a span of the input


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021) through `peft`; what is left at the end is the merged model."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    modules: list[str] | Literal["all-linear"] = Field(
        default="all-linear", description="names of layers, by their end"
    )


class Push(Section):
    """Where to publish on the Hugging Face hub; the token is the hub's own: HF_TOKEN, or `hf auth login`."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name; made where there is none")
    private: bool = True
