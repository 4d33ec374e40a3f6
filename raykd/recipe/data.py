"""The section `data`: sources of rows (files, data sets, functions), and the sets of rows of a run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from raykd.recipe.names import FunctionName
from raykd.recipe.section import Section


class Columns(Section):
    """The names of the columns."""

    input: str = "input"
    target: str | None = Field(default=None, description="the gold target; leave it out if there is none")
    references: str | None = Field(default=None, description="a list of further correct targets, for scoring only")
    id: str | None = Field(default=None, description="the name of the row; default: its place in the file")


class FileRows(Section):
    """Rows of a JSONL, CSV or parquet file."""

    kind: Literal["jsonl", "csv", "parquet"]
    path: str
    columns: Columns = Columns()
    limit: int | None = Field(default=None, ge=1, description="use only this many rows, the first ones")


class DatasetRows(Section):
    """Rows of a `datasets` data set: a name on the hub, or a folder that `save_to_disk` wrote."""

    kind: Literal["dataset"]
    name: str
    config: str | None = None
    split: str = "train"
    columns: Columns = Columns()
    limit: int | None = Field(default=None, ge=1, description="use only this many rows, the first ones")


class FunctionRows(Section):
    """Rows that `module:function(**arguments)` yields: dicts with `input` and perhaps `target`, `references`, `id`."""

    kind: Literal["function"]
    function: FunctionName
    arguments: dict[str, Any] = {}
    limit: int | None = Field(default=None, ge=1, description="use only this many rows, the first ones")


Rows = Annotated[FileRows | DatasetRows | FunctionRows, Field(discriminator="kind")]


class Data(Section):
    """The sets of rows of a run, and how many bad rows it tolerates."""

    unlabelled: Rows = Field(description="inputs that the teacher labels; a target column is for the report only")
    gold: Rows | None = Field(
        default=None, description="gold pairs, for teacher.fine_tune, method.gold and sequences of kind gold or mixture"
    )
    dev: Rows | None = Field(
        default=None,
        description="gold pairs that choose the best checkpoint of teacher.fine_tune and of arms.gold_only",
    )
    test: Rows | None = Field(default=None, description="gold pairs that every arm is scored on")
    max_bad_rows: int = Field(
        default=0, ge=0, description="how many bad rows are left out and reported; one more ends the run"
    )
    licence: str = "not stated"
