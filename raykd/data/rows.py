"""TODO: docstring."""

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
    """A row that was left out; `line` counts from 1, and is None where there are no lines."""

    file: str
    line: int | None
    reason: str


class BadRows:
    """The bad rows of one reading or of several, and how many of them are tolerated in all."""

    def __init__(self, tolerated: int):
        self.tolerated = tolerated
        self.rows: list[BadRow] = []

    def add(self, file: str, line: int | None, reason: str) -> None:
        """Keep a bad row. Raises DataError, naming it, if it is one more than tolerated."""
        self.rows.append(BadRow(file, line, reason))
        if len(self.rows) > self.tolerated:
            where = file if line is None else f"{file}:{line}"
            count = f" (bad row {len(self.rows)}, {self.tolerated} tolerated)" if self.tolerated else ""
            raise DataError(f"{where}: {reason}{count}")


def read_examples(rows: Rows, bad: BadRows, *, need_target: bool) -> Iterator[Example]:
    """The good rows of a source, as they are met, `rows.limit` of them at most; the others go to `bad`.

    An id that a row does not give is `<file's stem>:<line>` for a file, else the row's index from 0. Optional cells may
    be empty. A reference list may be a single text, which is all that a CSV cell can be.

    Raises DataError for a source that cannot be read, a column that no row has, a source without a good row, and
    one bad row more than tolerated; RecipeError for a recipe that cannot mean this source.
    """
    name = source_name(rows)
    columns = _columns(rows, need_target)
    wanted = list(dict.fromkeys(columns.values()))
    needed = wanted
    if isinstance(rows, FunctionRows):  # its rows say by their keys what they have
        needed = ["input", "target"] if need_target else ["input"]
    lines: dict[str, int] | None = {} if "id" in columns else None  # of ids, where they could come twice
    good = line = 0
    for line, row in _with_columns(name, needed, READERS[rows.kind](rows, wanted)):
        default = f"{Path(rows.path).stem}:{line}" if isinstance(rows, FileRows) else str(line - 1)
        try:
            example = _example(row, columns, need_target, default)
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
    """The row as an example; raises ValueError with the reason why it cannot be one."""
    if isinstance(row, str):
        raise ValueError(row)
    cells = {role: row.get(column) for role, column in columns.items()}
    text = _text(cells["input"], columns["input"])
    target = cells.get("target")
    target = _text(target, columns["target"]) if need_target or not _absent(target) else None
    references = cells.get("references")
    references = () if _absent(references) else _references(references, columns["references"])
    name = cells.get("id")
    name = default_id if _absent(name) else _id(name, columns["id"])
    return Example(name, text, target, references)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _text(value: Any, column: str) -> str:
    """The cell, unchanged; raises ValueError unless it is text that a model can be given and a file can hold."""
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
    several = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_text(one, column) for one in several)


def _id(value: Any, column: str) -> str:
    """Numbers may name a row, unlike anything else that is not text."""
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


def _with_columns(name: str, needed: list[str], found: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The same rows. Raises DataError before the first of them if no row has a needed column.

    Rows are held back until each needed column was seen: only then is a row without it a bad row of its own.
    """
    unseen, known, held = set(needed), {}, []
    for line, row in found:
        if not unseen:
            yield line, row
            continue
        held.append((line, row))
        if isinstance(row, dict):
            known.update(dict.fromkeys(row))
            unseen -= row.keys()
        if not unseen:
            yield from held
            held.clear()
    if known:
        require_columns(name, needed, known)
    yield from held
