"""Files that are whole or absent: writing, replacing, and short hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raykd.errors import RunError


def fingerprint(value: Any) -> str:
    """A short hash (12 hex digits) of anything JSON can hold; equal values, equal hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def put(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or as it was, also after a power cut. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """`put` of a text. Raises RunError, in one line."""
    try:
        put(path, text.encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def replaced(folder: Path):
    """A new empty folder beside `folder` that takes its place, whole, when the block ends without an error."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
