"""The sections of models and tokenizers: where they come from, and how their weights are changed."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raykd.recipe.section import Section


class WordsTokenizer(Section):
    """A token for each word of the gold pairs and unlabelled inputs; words are separated by blanks."""

    kind: Literal["words"]
    extra: list[str] = Field(default=[], description="further words, such as the separator of a prompt")


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
    model_type: str = Field(description="a name of `transformers.AutoConfig.for_model`: llama, t5, ...")
    settings: dict[str, Any] = Field(default={}, description="fields of its configuration")


class Pruned(Section):
    """Some layers of a pretrained model, with its embeddings, norms, head and tokenizer. The first layer is 0."""

    kind: Literal["pruned"]
    path: str = Field(description="the larger model: a Hugging Face folder or hub name")
    layers: list[int] | None = Field(
        default=None, description="the layers to keep, for a decoder-only or encoder-only model"
    )
    encoder_layers: list[int] | None = Field(
        default=None, description="the layers to keep, for an encoder-decoder; default: all"
    )
    decoder_layers: list[int] | None = Field(
        default=None, description="the layers to keep, for an encoder-decoder; default: all"
    )

    @model_validator(mode="after")
    def _layers_serve(self) -> Pruned:
        fields = ("layers", "encoder_layers", "decoder_layers")
        layer_lists = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        if not layer_lists:
            raise ValueError("give layers, or for an encoder-decoder model encoder_layers, decoder_layers or both")
        if self.layers is not None and len(layer_lists) > 1:
            raise ValueError("layers is for models of one side: it does not go with encoder_layers or decoder_layers")
        for name, layers in layer_lists.items():
            if not layers or layers[0] < 0 or any(later <= layer for layer, later in itertools.pairwise(layers)):
                raise ValueError(f"{name}: expected one layer or more, from 0 and rising, found {layers}")
        return self


Model = Annotated[Checkpoint | FromConfig | Pruned, Field(discriminator="kind")]


class EndpointModel(Section):
    """A model behind an endpoint (engine: kind endpoint), by the name it has there."""

    kind: Literal["endpoint"]
    name: str = Field(min_length=1)


TeacherModel = Annotated[Checkpoint | FromConfig | Pruned | EndpointModel, Field(discriminator="kind")]
Task = Literal["generation", "classification", "regression", "extractive_qa"]


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021) through `peft`. The trained model has them merged into its weights."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    modules: list[str] | Literal["all-linear"] = Field(
        default="all-linear", description="the layers that get adapters, by the ends of their names"
    )


class Push(Section):
    """Where to publish on the Hugging Face hub; the token is the hub's own: HF_TOKEN, or `hf auth login`."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name; created where it does not exist")
    private: bool = True
