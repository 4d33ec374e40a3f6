"""Rows checked one by one.

A row becomes an `Example`. One that cannot is a bad row: left out, counted, and reported with its file and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykd.data.examples import Example
from raykd.data.readers import READERS, PlacedRow, require_columns, source_name
from raykd.errors import DataError, RecipeError
from raykd.recipe.data import FileRows, FunctionRows, Rows

ROLES = ("input", "target", "references", "id")


@dataclass(frozen=True)
class BadRow:
    """A row that was left out, and the reason; `line` counts from 1, and is None if the source has no lines."""

    file: str
    line: int | None
    reason: str


class BadRows:
    """The bad rows of one source or several, and the number that is tolerated in all."""

    def __init__(self, tolerated: int):
        self.tolerated = tolerated
        self.rows: list[BadRow] = []

    def add(self, file: str, line: int | None, reason: str) -> None:
        """Record a bad row. Raises DataError, naming it, if it is one more than tolerated."""
        self.rows.append(BadRow(file, line, reason))
        if len(self.rows) > self.tolerated:
            place = file if line is None else f"{file}:{line}"
            count = f" (bad row {len(self.rows)}, {self.tolerated} tolerated)" if self.tolerated else ""
            raise DataError(f"{place}: {reason}{count}")


def read_examples(rows: Rows, bad: BadRows, *, need_target: bool) -> Iterator[Example]:
    """Yield the good rows of a source as examples, at most `rows.limit`; bad rows are added to `bad`.

    A row without an id is named `<file's stem>:<line>` for a file, else by its index from 0. Optional cells may be
    empty. A reference list may be a single text, which is all that a CSV cell can be.

    Raises DataError for a source that cannot be read, a column that no row has, a source without a good row, and
    one bad row more than tolerated; RecipeError for a recipe that does not fit the source.
    """
    name = source_name(rows)
    columns = _columns(rows, need_target)
    column_names = list(dict.fromkeys(columns.values()))
    needed = column_names
    if isinstance(rows, FunctionRows):  # its rows have their columns as keys
        needed = ["input", "target"] if need_target else ["input"]
    lines: dict[str, int] | None = {} if "id" in columns else None  # id -> line, if an id could occur twice
    good = line = 0
    for line, cells in _with_columns(name, needed, READERS[rows.kind](rows, column_names)):
        default = f"{Path(rows.path).stem}:{line}" if isinstance(rows, FileRows) else str(line - 1)
        try:
            example = _example(cells, columns, need_target, default)
            if lines is not None and lines.setdefault(example.id, line) != line:
                raise ValueError(f"id {example.id!r} is also that of row {lines[example.id]}")
        except ValueError as error:
            bad.add(name, line, str(error))
            continue
        yield example
        good += 1
        if good == rows.limit:
            break
    if not good:
        raise DataError(f"{name}: every row is bad" if line else f"{name}: no rows")


def _example(row: dict[str, Any] | str, columns: dict[str, str], need_target: bool, default_id: str) -> Example:
    """A row's cells as an example; raises ValueError with the reason why they cannot be one."""
    if isinstance(row, str):
        raise ValueError(row)
    cells = {role: row.get(column) for role, column in columns.items()}
    input_ = _text(cells["input"], columns["input"])
    target = cells.get("target")
    target = _text(target, columns["target"]) if need_target or not _absent(target) else None
    references = cells.get("references")
    references = () if _absent(references) else _references(references, columns["references"])
    id_ = cells.get("id")
    id_ = default_id if _absent(id_) else _id(id_, columns["id"])
    return Example(id=id_, input=input_, target=target, references=references)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _text(value: Any, column: str) -> str:
    """The cell, unchanged; raises ValueError unless it is a text that a model can read and a file can hold."""
    if value is None:
        raise ValueError(f"column {column!r} is missing")
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} is {type(value).__name__} {value!r:.40}, expected text")
    if not value.strip():
        raise ValueError(f"column {column!r} is empty")
    if "\0" in value:
        raise ValueError(f"column {column!r} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"column {column!r} is not UTF-8") from None
    return value


def _references(value: Any, column: str) -> tuple[str, ...]:
    texts = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_text(text, column) for text in texts)


def _id(value: Any, column: str) -> str:
    """The cell as an id: a text or an integer; raises ValueError for anything else."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value, column)


def _columns(rows: Rows, need_target: bool) -> dict[str, str]:
    """The column of each role that the source may have."""
    if isinstance(rows, FunctionRows):
        return {role: role for role in ROLES}
    if need_target and rows.columns.target is None:
        raise RecipeError(
            f"{source_name(rows)}: these rows need targets, and columns.target does not say where they are"
        )
    named = {role: getattr(rows.columns, role) for role in ROLES}
    return {role: column for role, column in named.items() if column is not None}


def _with_columns(name: str, needed: list[str], rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The same rows. Raises DataError before the first of them if no row has a needed column.

    Rows are held back until every needed column was seen; from then on a row without one is a bad row by itself.
    """
    unseen, columns, waiting = set(needed), {}, []
    for row in rows:
        if not unseen:
            yield row
            continue
        waiting.append(row)
        if isinstance(row.cells, dict):
            columns.update(dict.fromkeys(row.cells))
            unseen -= row.cells.keys()
        if not unseen:
            yield from waiting
            waiting.clear()
    if columns:
        require_columns(name, needed, columns)
    yield from waiting
