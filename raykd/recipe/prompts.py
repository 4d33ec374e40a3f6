"""The sections of prompts: the text that a model reads for an input."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from raykd.recipe.data import Rows
from raykd.recipe.section import Section


class Shots(Section):
    """Examples that stand before the input in its prompt. An input is never its own example."""

    rows: Rows = Field(description="pairs of input and target")
    count: int = Field(ge=1, description="examples in each prompt")
    choose: Literal["first", "random", "bm25", "embedding"] = Field(
        default="first",
        description="first: the first rows, for every input; else rows for each input: drawn at random, or the most "
        "similar ones by BM25 or by an encoder's embeddings",
    )
    nearest: Literal["last", "first"] | None = Field(
        default=None, description="where the most similar example stands; default: last, next to the input"
    )
    encoder: str | None = Field(default=None, description="for embedding: the model, a Hugging Face folder or hub name")

    @model_validator(mode="after")
    def _fields_serve(self) -> Shots:
        if (self.encoder is None) == (self.choose == "embedding"):
            raise ValueError("encoder goes with choose: embedding")
        if self.nearest and self.choose in ("first", "random"):
            raise ValueError(f"nearest does nothing: choose is {self.choose}")
        return self


Template = Annotated[str, Field(pattern=r"\{input\}")]


class Completion(Section):
    """One text, which the model continues."""

    kind: Literal["completion"]
    template: Template = Field(default="{input}", description="what is written for an input; {input} stands for it")
    shots: Shots | None = None
    shot: str = Field(
        default="{prompt} {target}\n\n",
        pattern=r"\{prompt\}[^{}]*\{target\}",
        description="how an example is written: {prompt} stands for the template with the example's input, {target} "
        "for its target; the input is written the same way, up to where its target begins",
    )


class Chat(Section):
    """A conversation, written by the tokenizer's chat template. Examples are its earlier turns."""

    kind: Literal["chat"]
    system: str | None = Field(default=None, description="the system message")
    template: Template = Field(default="{input}", description="the user's turn; {input} stands for the input")
    shots: Shots | None = None


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "template"
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


# a plain text is the template of a completion without shots
Prompt = Annotated[
    Annotated[Template, Tag("template")] | Annotated[Completion, Tag("completion")] | Annotated[Chat, Tag("chat")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_kind",
        custom_error_message="expected a template, or a section of kind completion or chat",
    ),
]
