"""Run folders at a URL that fsspec knows, such as s3://bucket/runs: each machine works in a copy of its own.

A file has the same path in the copy of every machine, so workers get paths as they do without a URL. A process sends
files that it wrote, and fetches files that it needs. Paths outside of these copies are left alone, so callers need not
know which kind of path they have.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from raykd.errors import RunError, first_line

COPIES = Path(f"/tmp/raykd-{os.getuid()}")  # the same on every machine
STAYING = ("logs", "checkpoints")  # folders that are not copied: Ray's output, and what Ray Train itself keeps there


def folder(output: str) -> Path:
    """The folder to work in for a recipe's `output`, a folder or a URL. Raises RunError for a URL without a bucket."""
    protocol, _, path = output.partition("://")
    if protocol == "file" and path:
        return Path(path)
    if path.startswith("/"):
        raise RunError(f"{output}: expected a URL with a bucket or host, such as s3://bucket/runs")
    return COPIES / protocol / path if path else Path(output)


def url(path: str | Path) -> str | None:
    """The URL of a file or folder in a copy; None for a path outside of copies."""
    if not Path(path).is_relative_to(COPIES):
        return None
    protocol, *parts = Path(path).relative_to(COPIES).parts
    return f"{protocol}://{'/'.join(parts)}"


def shown(path: str | Path) -> str:
    """A path as the user knows it: its URL if it has one."""
    return url(path) or str(path)


def machine() -> str:
    """A random name of this machine, the same for all processes that work in the same copies."""
    file = COPIES / ".machine"
    COPIES.mkdir(parents=True, exist_ok=True)
    own = COPIES / f".machine.{os.getpid()}"
    own.write_text(secrets.token_hex(8))
    with suppress(FileExistsError):
        os.link(own, file)
    own.unlink()
    return file.read_text()


def send(*paths: str | Path) -> None:
    """Copy files, and all files of folders, to their URLs, if they have changed. Raises RunError."""
    for path, address in _with_url(paths):
        with _system(address) as (system, root):
            stamps = _stamps(system, root)
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            for file in files:
                parts = file.relative_to(path).parts
                target = "/".join([root, *parts])
                if file.is_dir() or _stays(parts) or stamps.get(target) == _stamp(file):
                    continue
                system.put_file(str(file), target)
                system.invalidate_cache()
                _set_time(file, system.modified(target).timestamp())


def fetch(*paths: str | Path) -> set[Path]:
    """Copy files, and all files of folders, from their URLs, if they differ; returns those that exist at the URLs.

    A file that does not exist there is no error: whoever reads it says so. Raises RunError.
    """
    files = set()
    for path, address in _with_url(paths):
        with _system(address) as (system, root):
            for source, stamp in _stamps(system, root).items():
                parts = [part for part in source[len(root) :].split("/") if part]
                file = path.joinpath(*parts)
                files.add(file)
                if not file.exists() or _stamp(file) != stamp:
                    part = file.with_name(f".{file.name}.{os.getpid()}")
                    part.parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(source, str(part))
                    _set_time(part, stamp[1])
                    os.replace(part, file)
    return files


def tail(path: str | Path, offset: int) -> bytes | None:
    """The bytes of a file from an offset on, at its URL if it has one; None where it is shorter, or does not exist."""
    address = url(path)
    with suppress(FileNotFoundError):
        if address is None:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(offset)
                return file.read() if size >= offset else None
        with _system(address) as (system, root):
            data = system.cat_file(root) if system.exists(root) else b""
            return data[offset:] if len(data) >= max(1, offset) else None
    return None


def remove(path: Path) -> None:
    """Delete a file, and at its URL if it has one."""
    path.unlink(missing_ok=True)
    for _, address in _with_url((path,)):
        with _system(address) as (system, root):
            if system.exists(root):
                system.rm_file(root)


def _with_url(paths: tuple[str | Path, ...]) -> Iterator[tuple[Path, str]]:
    """(path, URL) of the paths that are in a copy."""
    for path in paths:
        address = url(path)
        if address:
            yield Path(path), address


def _stays(parts: Any) -> bool:
    return any(part.startswith(".") or part in STAYING for part in parts)


def _stamp(file: Path) -> tuple[int, float]:
    """(size, time) of a local file."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime


def _set_time(file: Path, time: float) -> None:
    os.utime(file, (time, time))


def _stamps(system: Any, root: str) -> dict[str, tuple[int, float]]:
    """(size, time) by path of the file at a path of a file system, or of all files below it."""
    try:
        infos = system.find(root, detail=True)
    except FileNotFoundError:
        return {}
    stamps = {}
    for name, info in infos.items():
        if not _stays(name[len(root) :].split("/")):
            with suppress(FileNotFoundError):  # taken away meanwhile
                stamps[name] = (info["size"], system.modified(name).timestamp())
    return stamps


@contextmanager
def _system(address: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it. Raises RunError, in one line, for any error in the block."""
    try:
        system, root = url_to_fs(address)
        system.invalidate_cache()  # others write too
        yield system, root.rstrip("/")
    except Exception as error:  # of as many kinds as there are file systems
        raise RunError(f"{address}: {first_line(error)}") from None
