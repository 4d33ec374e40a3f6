"""TODO: docstring."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from raykd.recipe.section import Section


class Columns(Section):
    """Which columns of a file hold what."""

    input: str = "input"
    target: str | None = Field(default=None, description="gold target; leave out where there is none")
    references: str | None = Field(default=None, description="a list of further right targets, for scoring only")
    id: str | None = Field(default=None, description="a name of the row; default: its place in the file")


class FileRows(Section):
    """Rows of a JSONL, CSV or parquet file."""

    kind: Literal["jsonl", "csv", "parquet"]
    path: str
    columns: Columns = Columns()
    limit: int | None = Field(default=None, ge=1, description="rows; the first ones")


class DatasetRows(Section):
    """Rows of a `datasets` data set: a name on the hub, or a folder that `save_to_disk` wrote."""

    kind: Literal["dataset"]
    name: str
    config: str | None = None
    split: str = "train"
    columns: Columns = Columns()
    limit: int | None = Field(default=None, ge=1, description="rows; the first ones")


class FunctionRows(Section):
    """Rows yielded by `module:function(**arguments)`: dicts with `input` and perhaps `target`, `references`, `id`."""

    kind: Literal["function"]
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    arguments: dict[str, Any] = {}
    limit: int | None = Field(default=None, ge=1, description="rows; the first ones")


Rows = Annotated[FileRows | DatasetRows | FunctionRows, Field(discriminator="kind")]


class Data(Section):
    """Where rows come from, and how many may be bad."""

    unlabelled: Rows = Field(description="inputs the teacher labels; a target column serves the report only")
    gold: Rows | None = Field(default=None, description="pairs to fine-tune the teacher on")
    dev: Rows | None = Field(default=None, description="pairs that choose the teacher's and control arm's checkpoint")
    test: Rows | None = Field(default=None, description="pairs every arm is scored on")
    max_bad_rows: int = Field(default=0, ge=0, description="rows left out (and reported) before the run is refused")
    licence: str = "not stated"
