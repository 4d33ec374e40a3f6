"""Rows: read from files, data sets and functions, and checked one by one.

A row becomes an `Example`. One that cannot is a bad row: left out, counted, and reported with its file and line.
What is wrong with every row, such as a misspelt column, is one error instead.
"""

from __future__ import annotations

import csv
import difflib
import importlib
import inspect
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd.errors import DataError, RecipeError
from raykd.recipe import DatasetRows, FileRows, FunctionRows, Rows

BATCH_ROWS = 8192  # rows of parquet and of data sets decoded at once
SAVED_ROWS = 1024  # rows of a row group: what is read for one of them
EXAMPLES = pa.schema(
    [("id", pa.string()), ("input", pa.string()), ("target", pa.string()), ("references", pa.list_(pa.string()))]
)
ROLES = ("input", "target", "references", "id")

# A row as a source gives it: its 1-based place, and its cells by column, or the reason why it has none.
Found = tuple[int, "dict[str, Any] | str"]


@dataclass(frozen=True)
class Lineage:
    """Where a pseudo-target is from.

    by         "teacher", or the name of the training whose student wrote it; several with + between, of a vote
    round      0: the teacher's; partition  that its input is in
    score      mean natural log-probability of its tokens to who wrote it; None where that is not known
    agreement  0 to 1: the share of votes for it, or its score in the back check; None where there was neither
    """

    by: str
    round: int = 0
    partition: int | None = None
    score: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Example:
    """An input, and what is known to be right for it. `references` are further right targets, for scoring only.

    A pseudo-target counts for `weight` in the loss, and has a lineage.
    """

    id: str
    input: str
    target: str | None = None
    references: tuple[str, ...] = ()
    weight: float = 1.0
    lineage: Lineage | None = None

    def right_answers(self) -> list[str]:
        """The target, then the references, without duplicates; empty where nothing is known."""
        known = (self.target, *self.references)
        return list(dict.fromkeys(answer for answer in known if answer is not None))


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


def read(rows: Rows, bad: BadRows, *, need_target: bool) -> Iterator[Example]:
    """The good rows of a source, as they are met, `rows.limit` of them at most; the others go to `bad`.

    An id that a row does not give is `<file's stem>:<line>` for a file, else the row's index from 0. Optional cells may
    be empty. A reference list may be a single text, which is all that a CSV cell can be.

    Raises DataError for a source that cannot be read, a column that no row has, a source without a good row, and
    one bad row more than tolerated; RecipeError for a recipe that cannot mean this source.
    """
    name = _name(rows)
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


# ------------------------------------------------------------------------------------------- rows on disk


def save(path: Path, rows: Iterable[tuple], schema: pa.Schema) -> int:
    """Write rows to a parquet file as they come, whole or not at all; returns how many."""
    part = path.with_name(f".{path.name}.part")
    count = 0
    with pq.ParquetWriter(part, schema, compression="zstd") as file:
        for batch in batched(rows, SAVED_ROWS):
            columns = [pa.array(cells, kind.type) for cells, kind in zip(zip(*batch, strict=True), schema, strict=True)]
            file.write_batch(pa.record_batch(columns, schema=schema), SAVED_ROWS)
            count += len(batch)
    os.replace(part, path)
    return count


def save_examples(path: Path, examples: Iterable[Example]) -> int:
    """`save` of examples; `load` reads them."""
    return save(path, ((e.id, e.input, e.target, list(e.references)) for e in examples), EXAMPLES)


def load(path: Path) -> Iterator[Example]:
    """The examples that `save_examples` wrote."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            for name, text, target, references in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                yield Example(name, text, target, tuple(references))


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def chunk_order(count: int, size: int, seed: int) -> list[range]:
    """Chunks of `size` consecutive rows in the order in which the teacher is asked for them, and a student follows."""
    starts = np.random.default_rng([seed, 31]).permutation(math.ceil(count / size)) * size
    return [range(start, min(start + size, count)) for start in starts.tolist()]


# ------------------------------------------------------------------------------------------- one row


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


# ------------------------------------------------------------------------------------------- columns


def _name(rows: Rows) -> str:
    """What messages call the source."""
    if isinstance(rows, FileRows):
        return rows.path
    return f"{rows.name}[{rows.split}]" if isinstance(rows, DatasetRows) else rows.function


def _columns(rows: Rows, need_target: bool) -> dict[str, str]:
    """The column of each role that the source may have."""
    if isinstance(rows, FunctionRows):
        return {role: role for role in ROLES}
    if need_target and rows.columns.target is None:
        raise RecipeError(f"{_name(rows)}: these rows need targets, and columns.target does not say where they are")
    named = {role: getattr(rows.columns, role) for role in ROLES}
    return {role: column for role, column in named.items() if column is not None}


def _require(name: str, needed: Iterable[str], found: Iterable[Any]) -> None:
    """Raises DataError for the first needed column that was not found."""
    names = [str(column) for column in found]
    for column in needed:
        if column in names:
            continue
        near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        shown = ", ".join(repr(n) for n in names[:20]) + (", ..." if len(names) > 20 else "")
        raise DataError(f"{name}: no column {column!r}; {hint}columns found: {shown or 'none'}")


def _with_columns(name: str, needed: list[str], found: Iterable[Found]) -> Iterator[Found]:
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
        _require(name, needed, known)
    yield from held


# ------------------------------------------------------------------------------------------- sources


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """The file, open as bytes; raises DataError for what the system or Arrow has against it."""
    if not Path(path).is_file():
        raise DataError(f"{path}: {'is a folder, expected a file' if Path(path).is_dir() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {_first_line(error)}") from None


def _jsonl(rows: FileRows, wanted: list[str]) -> Iterator[Found]:
    """An object per line. Lines are bytes until each is decoded, so that one bad line is one bad row."""
    with _opened(rows.path) as file:
        for line, raw in enumerate(file, start=1):
            if raw.strip():
                yield line, _json_object(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw)


def _json_object(raw: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        return f"not JSON: {_first_line(error)}"
    return row if isinstance(row, dict) else f"{type(row).__name__} {row!r:.40}, expected an object"


def _csv(rows: FileRows, wanted: list[str]) -> Iterator[Found]:
    """Rows below a header; a quoted field may hold line ends, and a row is named by its first line."""
    with _opened(rows.path) as file:
        # what is not UTF-8 becomes lone surrogates, which only the cells that are used are checked for
        text = (raw.decode("utf-8" if n else "utf-8-sig", "surrogateescape") for n, raw in enumerate(file))
        reader = csv.reader(text, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{rows.path}:1: not CSV: {error}") from None
        if header is None:
            return
        _require(rows.path, wanted, header)
        for column in wanted:
            if header.count(column) > 1:
                raise DataError(f"{rows.path}: {header.count(column)} columns are named {column!r}")
        yield from _csv_rows(reader, header)


def _csv_rows(reader: Any, header: list[str]) -> Iterator[Found]:
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"not CSV: {error}"
            continue
        if not fields:  # a blank line
            continue
        if len(fields) != len(header):
            yield line, f"{len(fields)} fields, the header has {len(header)}"
        else:
            yield line, dict(zip(header, fields, strict=True))


def _parquet(rows: FileRows, wanted: list[str]) -> Iterator[Found]:
    with _opened(rows.path) as file, pq.ParquetFile(file) as table:
        _require(rows.path, wanted, table.schema_arrow.names)
        yield from _arrow_rows(table.iter_batches(BATCH_ROWS, columns=wanted), wanted)


def _dataset(rows: DatasetRows, wanted: list[str]) -> Iterator[Found]:
    found = _data_set(rows)
    _require(_name(rows), wanted, found.column_names)
    batches = found.select_columns(wanted).with_format("arrow").iter(BATCH_ROWS)
    yield from _arrow_rows(batches, wanted)


def _data_set(rows: DatasetRows) -> Any:
    """The `datasets.Dataset` of the split. A folder saved without splits is what `split: train` (the default) means."""
    import datasets  # a second of imports that files do not need

    local = Path(rows.name).is_dir()
    if local and rows.config is not None:
        raise RecipeError(f"{rows.name}: config {rows.config!r} does nothing: a saved folder has none")
    try:
        if not local:
            return datasets.load_dataset(rows.name, rows.config, split=rows.split)
        found = datasets.load_from_disk(rows.name)
    except Exception as error:  # of some thirty kinds, from the libraries below `datasets`
        raise DataError(f"{rows.name}: cannot be loaded: {type(error).__name__}: {_first_line(error)}") from None
    if isinstance(found, datasets.DatasetDict):
        splits, found = [str(split) for split in found], found.get(rows.split)
    else:
        splits = [str(found.split or "train")]
        found = found if rows.split in ("train", *splits) else None
    if found is None:
        raise DataError(f"{rows.name}: no split {rows.split!r}; splits found: {', '.join(splits)}")
    return found


def _arrow_rows(batches: Iterable[Any], wanted: list[str]) -> Iterator[Found]:
    columns = ([_cells(batch.column(column)) for column in wanted] for batch in batches)
    rows = (cells for batch in columns for cells in zip(*batch, strict=True))
    for line, cells in enumerate(rows, start=1):
        yield line, dict(zip(wanted, cells, strict=True))


def _cells(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not check its bytes: find the cells to blame
        return [_cell(cell) for cell in column]


def _cell(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return "\udcff"  # a lone surrogate, which is refused as not being UTF-8


def _function(rows: FunctionRows, wanted: list[str]) -> Iterator[Found]:
    module, _, name = rows.function.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise RecipeError(f"{rows.function}: {_first_line(error)}") from None
    if not callable(function):
        raise RecipeError(f"{rows.function}: {module} has no function {name}")
    try:
        inspect.signature(function).bind(**rows.arguments)
    except TypeError as error:
        raise RecipeError(f"{rows.function}: arguments: {error}") from None
    found = function(**rows.arguments)
    if not isinstance(found, Iterable):
        raise RecipeError(f"{rows.function}: returned {type(found).__name__}, expected rows")
    for number, row in enumerate(found, start=1):
        yield number, row if isinstance(row, dict) else f"{type(row).__name__} {row!r:.40}, expected a dict"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: dict[str, Any] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "dataset": _dataset,
    "function": _function,
}
