"""Run folders at a URL that fsspec knows, such as s3://bucket/runs: each machine works in a copy of its own.

A file has the same path in the copy of every machine, so workers are told paths as ever. Who wrote files sends them,
who needs them fetches them. Any path that is in no copy is left alone: nobody who calls this needs to ask.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from raykd.errors import RunError

COPIES = Path(f"/tmp/raykd-{os.getuid()}")  # the same on every machine
STAYING = ("logs", "checkpoints")  # folders that are not copied: Ray's chatter, and what Ray Train itself keeps there


def folder(output: str) -> Path:
    """Where to work on what is kept at `output`, a URL or a folder. Raises RunError for a URL without a bucket."""
    protocol, _, path = output.partition("://")
    if protocol == "file" and path:
        return Path(path)
    if path.startswith("/"):
        raise RunError(f"{output}: expected a URL with a bucket or host, such as s3://bucket/runs")
    return COPIES / protocol / path if path else Path(output)


def url(path: str | Path) -> str | None:
    """Where a file or folder of a copy is kept; None of all others."""
    if not Path(path).is_relative_to(COPIES):
        return None
    protocol, *parts = Path(path).relative_to(COPIES).parts
    return f"{protocol}://{'/'.join(parts)}"


def shown(path: str | Path) -> str:
    """What to call a path before a user."""
    return url(path) or str(path)


def machine() -> str:
    """What all processes that work in the same copies have in common, and no others."""
    file = COPIES / ".machine"
    COPIES.mkdir(parents=True, exist_ok=True)
    mine = COPIES / f".machine.{os.getpid()}"
    mine.write_text(secrets.token_hex(8))
    with suppress(FileExistsError):
        os.link(mine, file)
    mine.unlink()
    return file.read_text()


def send(*paths: str | Path) -> None:
    """Put files, and all files of folders, where they are kept, if they have changed. Raises RunError."""
    for path, at in _kept(paths):
        with _system(at) as (system, root):
            there = _listed(system, root)
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            for file in files:
                parts = file.relative_to(path).parts
                target = "/".join([root, *parts])
                if file.is_dir() or _stays(parts) or there.get(target) == _stamp(file):
                    continue
                system.put_file(str(file), target)
                system.invalidate_cache()
                _stamped(file, system.modified(target).timestamp())


def fetch(*paths: str | Path) -> set[Path]:
    """Bring files, and all files of folders, from where they are kept, if they differ; returns those that are there.

    What is kept nowhere is no error: whoever reads it says so. Raises RunError.
    """
    found = set()
    for path, at in _kept(paths):
        with _system(at) as (system, root):
            for source, stamp in _listed(system, root).items():
                parts = [part for part in source[len(root) :].split("/") if part]
                file = path.joinpath(*parts)
                found.add(file)
                if not file.exists() or _stamp(file) != stamp:
                    part = file.with_name(f".{file.name}.{os.getpid()}")
                    part.parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(source, str(part))
                    _stamped(part, stamp[1])
                    os.replace(part, file)
    return found


def tail(path: str | Path, offset: int) -> bytes | None:
    """What a file holds from a byte on, as it is kept; None where it has fewer bytes, or is not there."""
    at = url(path)
    with suppress(FileNotFoundError):
        if at is None:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(offset)
                return file.read() if size >= offset else None
        with _system(at) as (system, root):
            data = system.cat_file(root) if system.exists(root) else b""
            return data[offset:] if len(data) >= max(1, offset) else None
    return None


def remove(path: Path) -> None:
    """Take a file away, here and where it is kept."""
    path.unlink(missing_ok=True)
    for _, at in _kept((path,)):
        with _system(at) as (system, root):
            if system.exists(root):
                system.rm_file(root)


def _kept(paths: tuple[str | Path, ...]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        at = url(path)
        if at:
            yield Path(path), at


def _stays(parts: Any) -> bool:
    return any(part.startswith(".") or part in STAYING for part in parts)


def _stamp(file: Path) -> tuple[int, float]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime


def _stamped(file: Path, time: float) -> None:
    os.utime(file, (time, time))


def _listed(system: Any, root: str) -> dict[str, tuple[int, float]]:
    """(size, time) of what is kept at a path, of a file or of all files below a folder."""
    try:
        found = system.find(root, detail=True)
    except FileNotFoundError:
        return {}
    kept = {}
    for name, info in found.items():
        if not _stays(name[len(root) :].split("/")):
            with suppress(FileNotFoundError):  # taken away meanwhile
                kept[name] = (info["size"], system.modified(name).timestamp())
    return kept


@contextmanager
def _system(at: str) -> Iterator[tuple[Any, str]]:
    """The file system and the path in it; whatever goes wrong there, of which there are many kinds, in one line."""
    try:
        system, root = url_to_fs(at)
        system.invalidate_cache()  # others write too
        yield system, root.rstrip("/")
    except Exception as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{at}: {text}") from None
