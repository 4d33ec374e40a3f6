"""TODO: docstring."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from raykd.recipe.data import Rows
from raykd.recipe.section import Section


class Shots(Section):
    """Examples shown before the input; an input is never shown as its own example."""

    rows: Rows = Field(description="with targets")
    count: int = Field(ge=1, description="shown to each input")
    choose: Literal["first", "random", "bm25", "embedding"] = Field(
        default="first", description="the first of the rows, or for each input others: drawn, or the most similar"
    )
    nearest: Literal["last", "first"] | None = Field(
        default=None, description="where the most similar stands; default: last, beside the input"
    )
    encoder: str | None = Field(default=None, description="of embedding: a Hugging Face folder or hub name")

    @model_validator(mode="after")
    def _fields_serve(self) -> Shots:
        if (self.encoder is None) == (self.choose == "embedding"):
            raise ValueError("encoder goes with choose: embedding")
        if self.nearest and self.choose in ("first", "random"):
            raise ValueError(f"nearest does nothing: choose is {self.choose}")
        return self


Template = Annotated[str, Field(pattern=r"\{input\}")]


class Completion(Section):
    """A text that the model goes on with."""

    kind: Literal["completion"]
    template: Template = "{input}"
    shots: Shots | None = None
    shot: str = Field(
        default="{prompt} {target}\n\n", pattern=r"\{prompt\}[^{}]*\{target\}", description="{prompt}: the template"
    )


class Chat(Section):
    """Turns, written by the tokenizer's chat template; examples are earlier turns."""

    kind: Literal["chat"]
    system: str | None = None
    template: Template = Field(default="{input}", description="the user's turn")
    shots: Shots | None = None


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "template"
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


# a bare text is the template of a completion
Prompt = Annotated[
    Annotated[Template, Tag("template")] | Annotated[Completion, Tag("completion")] | Annotated[Chat, Tag("chat")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_kind",
        custom_error_message="expected a template, or a section of kind completion or chat",
    ),
]
