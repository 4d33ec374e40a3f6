"""The lines of a data file, plain or gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from raykd.errors import DataError


def read_lines(path: str) -> Iterator[bytes]:
    """The lines of a plain file or a gzip, with their ends. Raises DataError for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def row_id(path: str, line: int) -> str:
    """The id of a row: its file's name up to the first dot, and its line."""
    return f"{Path(path).name.partition('.')[0]}:{line}"
