"""The section `data`: sources of rows (files, data sets, functions), and the sets of rows of a run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from raykd.recipe.named import check_one_named
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
        default=None,
        description="gold pairs, for fine_tune of a teacher, method.gold and the source gold of sequences",
    )
    dev: Rows | None = Field(
        default=None,
        description="gold pairs that choose the best checkpoint of a teacher's fine_tune and of arms.gold_only",
    )
    test: dict[str, Rows] | None = Field(
        default=None, description="gold pairs that every arm is scored on, by a name; one set of them so far"
    )
    max_bad_rows: int = Field(
        default=0, ge=0, description="how many bad rows are left out and reported; one more ends the run"
    )
    licence: str = "not stated"

    @field_validator("test", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("kind"), str):
            raise ValueError(f"expected rows by a name, {{main: {{kind: {value['kind']:.40}, ...}}}}, found rows")
        check_one_named(value, "set of test rows", "main: {kind: jsonl, path: test.jsonl}")
        return value

    @property
    def test_rows(self) -> Rows | None:
        """The one set of test rows; None if there is none."""
        return next(iter(self.test.values())) if self.test else None
