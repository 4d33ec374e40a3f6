"""Readers: the rows of files, data sets and functions, as cells by column.

For a row that it cannot read, a reader yields the reason in place of the cells. An error that concerns every row, such
as a misspelt column, is raised once.
"""

from __future__ import annotations

import csv
import difflib
import importlib
import inspect
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raykd.data.examples import BATCH_ROWS
from raykd.errors import DataError, RecipeError, first_line
from raykd.recipe.data import DatasetRows, FileRows, FunctionRows, Rows


class PlacedRow(NamedTuple):
    """A row of a source: its number, from 1, and its cells by column, or the reason why it cannot be read."""

    place: int
    cells: dict[str, Any] | str


def source_name(rows: Rows) -> str:
    """The name of a source in messages."""
    if isinstance(rows, FileRows):
        return rows.path
    return f"{rows.name}[{rows.split}]" if isinstance(rows, DatasetRows) else rows.function


def require_columns(name: str, needed: Iterable[str], columns: Iterable[Any]) -> None:
    """Raises DataError for the first needed column that is not among the columns; `name` is the source's."""
    names = [str(column) for column in columns]
    for column in needed:
        if column in names:
            continue
        near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        shown = ", ".join(repr(n) for n in names[:20]) + (", ..." if len(names) > 20 else "")
        raise DataError(f"{name}: no column {column!r}; {hint}columns found: {shown or 'none'}")


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """A context with the file, open as bytes. Turns errors of the system or Arrow in the block into a DataError."""
    if not Path(path).is_file():
        raise DataError(f"{path}: {'is a folder, expected a file' if Path(path).is_dir() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None


def _jsonl(rows: FileRows, columns: list[str]) -> Iterator[PlacedRow]:
    """An object per line. Lines are bytes until each is decoded, so that one bad line is one bad row."""
    with _opened(rows.path) as file:
        for line, raw in enumerate(file, start=1):
            if raw.strip():
                yield PlacedRow(line, _json_object(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw))


def _json_object(raw: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        return f"not JSON: {first_line(error)}"
    return row if isinstance(row, dict) else f"{type(row).__name__} {row!r:.40}, expected an object"


def _csv(rows: FileRows, columns: list[str]) -> Iterator[PlacedRow]:
    """Rows below a header; a quoted field may hold line ends, and a row is named by its first line."""
    with _opened(rows.path) as file:
        # bytes that are not UTF-8 become lone surrogates; only cells that are used are checked for these
        text = (raw.decode("utf-8" if n else "utf-8-sig", "surrogateescape") for n, raw in enumerate(file))
        reader = csv.reader(text, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{rows.path}:1: not CSV: {error}") from None
        if header is None:
            return
        require_columns(rows.path, columns, header)
        for column in columns:
            if header.count(column) > 1:
                raise DataError(f"{rows.path}: {header.count(column)} columns are named {column!r}")
        yield from _csv_rows(reader, header)


def _csv_rows(reader: Any, header: list[str]) -> Iterator[PlacedRow]:
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield PlacedRow(line, f"not CSV: {error}")
            continue
        if not fields:  # a blank line
            continue
        if len(fields) != len(header):
            yield PlacedRow(line, f"{len(fields)} fields, the header has {len(header)}")
        else:
            yield PlacedRow(line, dict(zip(header, fields, strict=True)))


def _parquet(rows: FileRows, columns: list[str]) -> Iterator[PlacedRow]:
    with _opened(rows.path) as file, pq.ParquetFile(file) as table:
        require_columns(rows.path, columns, table.schema_arrow.names)
        yield from _arrow_rows(table.iter_batches(BATCH_ROWS, columns=columns), columns)


def _dataset(rows: DatasetRows, columns: list[str]) -> Iterator[PlacedRow]:
    data_set = _data_set(rows)
    require_columns(source_name(rows), columns, data_set.column_names)
    batches = data_set.select_columns(columns).with_format("arrow").iter(BATCH_ROWS)
    yield from _arrow_rows(batches, columns)


def _data_set(rows: DatasetRows) -> Any:
    """The `datasets.Dataset` of the split. A folder that was saved without splits counts as the split `train`."""
    import datasets  # a second of imports that files do not need

    local = Path(rows.name).is_dir()
    if local and rows.config is not None:
        raise RecipeError(f"{rows.name}: config {rows.config!r} does nothing: a saved folder has none")
    try:
        if not local:
            return datasets.load_dataset(rows.name, rows.config, split=rows.split)
        saved = datasets.load_from_disk(rows.name)
    except Exception as error:  # of some thirty kinds, from the libraries below `datasets`
        raise DataError(f"{rows.name}: cannot be loaded: {type(error).__name__}: {first_line(error)}") from None
    if isinstance(saved, datasets.DatasetDict):
        splits, data_set = [str(split) for split in saved], saved.get(rows.split)
    else:
        splits = [str(saved.split or "train")]
        data_set = saved if rows.split in ("train", *splits) else None
    if data_set is None:
        raise DataError(f"{rows.name}: no split {rows.split!r}; splits found: {', '.join(splits)}")
    return data_set


def _arrow_rows(batches: Iterable[Any], columns: list[str]) -> Iterator[PlacedRow]:
    batch_columns = ([_cells(batch.column(column)) for column in columns] for batch in batches)
    rows = (cells for batch in batch_columns for cells in zip(*batch, strict=True))
    for line, cells in enumerate(rows, start=1):
        yield PlacedRow(line, dict(zip(columns, cells, strict=True)))


def _cells(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not check its bytes: decode the cells one by one
        return [_cell(cell) for cell in column]


def _cell(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return "\udcff"  # a lone surrogate, which is refused as not being UTF-8


def _function(rows: FunctionRows, columns: list[str]) -> Iterator[PlacedRow]:
    module, _, name = rows.function.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise RecipeError(f"{rows.function}: {first_line(error)}") from None
    if not callable(function):
        raise RecipeError(f"{rows.function}: {module} has no function {name}")
    try:
        inspect.signature(function).bind(**rows.arguments)
    except TypeError as error:
        raise RecipeError(f"{rows.function}: arguments: {error}") from None
    returned = function(**rows.arguments)
    if not isinstance(returned, Iterable):
        raise RecipeError(f"{rows.function}: returned {type(returned).__name__}, expected rows")
    for number, row in enumerate(returned, start=1):
        yield PlacedRow(number, row if isinstance(row, dict) else f"{type(row).__name__} {row!r:.40}, expected a dict")


# by the kind of rows in a recipe: reader(rows, wanted columns) -> the source's rows
READERS: dict[str, Any] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "dataset": _dataset,
    "function": _function,
}
