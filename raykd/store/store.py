"""The store of pseudo-targets: it keeps what a model wrote, so that the model never has to write it twice.

    <store>/store.json        {"format", "parts", "payload"}: all that decides a pseudo-target, and its payload
    <store>/shards/<hash of its (key, sample) set>-<hash of its bytes>.parquet
                              rows of `schema.shard_schema`; a shard appears whole or not at all
    <store>/closed.json       {"shards": {name: {"rows", "bytes"}}}; exists while no pass writes

A row is named by (key, sample): the hash of its rendered prompt and the number of the sample. The number of samples
is not part of a store's name: more samples are more rows. If two shards hold the same row, which happens only in a
race of two passes, the shard whose name sorts first counts. A store is in a local folder or at any URL of fsspec.

`open` finds or makes a store, `write` adds a shard, `read` and `follow` look rows up, `verify` looks for damage.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import TypeAdapter

from raykd.errors import StoreError, first_line
from raykd.recipe.generation import Payload
from raykd.run.files import put
from raykd.store.schema import FORMAT, SHARD


class Store:
    """The files of a store, and its state. Many processes may write at once, each its own shards. Can be pickled."""

    def __init__(self, path: str | Path, wanted: Payload | None = None):
        """`path` is a folder or URL. `wanted` is the payload to read, which the store's must serve; None: the same."""
        self.path = str(path).rstrip("/")
        self.fs, self.root = url_to_fs(self.path)
        self._wanted = wanted

    @cached_property
    def about(self) -> dict[str, Any]:
        """The content of store.json. Raises StoreError if it is missing or of another format."""
        about = self.read_json("store.json")
        if about is None:
            raise StoreError(f"{self.path}: no store there")
        if about.get("format") == 1:
            raise StoreError(f"{self.path}: format 1; a run with it as teachers.NAME.store brings it to {FORMAT}")
        return checked_format(self.path, about)

    @property
    def payload(self) -> Payload:
        """The payload of the store's pseudo-targets."""
        return payload_of(self.about)

    @property
    def wanted(self) -> Payload:
        """The payload that readers decode: the constructor's `wanted`, or the store's own."""
        return self._wanted or self.payload

    def write_about(self, parts: dict[str, Any], payload: Payload) -> None:
        """Write store.json. Raises StoreError if that fails."""
        about = {"format": FORMAT, "parts": parts, "payload": payload.model_dump(mode="json")}
        self.put("store.json", (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())

    # -------------------------------------------------------------------------------- whether a pass writes

    def begin(self) -> None:
        """Open the store for a pass: from now on, readers that follow wait for its rows."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/closed.json")

    def close(self) -> None:
        """Close the store after a pass: readers that follow no longer wait."""
        shards = {name: {"rows": self.metadata(name).num_rows, "bytes": self.size(name)} for name in self.shards()}
        self.put("closed.json", json.dumps({"shards": shards}, indent=1).encode())

    @property
    def closed(self) -> bool:
        """Whether no pass writes."""
        self.fs.invalidate_cache()  # others write too
        return self.fs.exists(f"{self.root}/closed.json")

    # ------------------------------------------------------------------------------------------------ shards

    def shards(self, pattern: re.Pattern = SHARD) -> list[str]:
        """Names of the shards that have landed, sorted."""
        self.fs.invalidate_cache()  # others write too
        try:
            paths = self.fs.ls(f"{self.root}/shards", detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for name in (path.rsplit("/", 1)[-1] for path in paths) if pattern.fullmatch(name))

    def shard_path(self, shard: str) -> str:
        """A shard's path in the store's file system."""
        return f"{self.root}/shards/{shard}"

    def shown(self, shard: str) -> str:
        """A shard's path or URL, for messages."""
        return f"{self.path}/shards/{shard}"

    def size(self, shard: str) -> int:
        """Bytes of a shard's file."""
        return self.fs.size(self.shard_path(shard))

    def metadata(self, shard: str) -> pq.FileMetaData:
        """A shard's footer. Raises StoreError if the shard is damaged."""
        with damage(self.shown(shard)), self.fs.open(self.shard_path(shard), "rb") as file:
            return pq.read_metadata(file)

    def read_shard(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Columns of a shard as stored, not decoded. Raises StoreError if its bytes do not fit the hash in its name."""
        with damage(self.shown(shard)):
            data = self.fs.cat_file(self.shard_path(shard))
            if hashlib.sha256(data).hexdigest()[:16] != shard[17:33]:
                raise ValueError(f"its {len(data)} bytes are not those that were written")
            return pq.ParquetFile(pa.BufferReader(_native_buffer(data))).read(columns)

    # ------------------------------------------------------------------------------------------------- files

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file of the store; None if there is none. Raises StoreError if it cannot be read."""
        try:
            content = json.loads(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path}/{name}: cannot be read: {error}") from None
        if not isinstance(content, dict):
            raise StoreError(f"{self.path}/{name}: cannot be read: no mapping")
        return content

    def put(self, name: str, data: bytes) -> None:
        """Write a file so that it is either whole or as it was. Raises StoreError."""
        path = f"{self.root}/{name}"
        try:
            if isinstance(self.fs, LocalFileSystem):
                put(Path(path), data)
            else:
                self.fs.pipe_file(path, data)  # object stores put a file whole
        except OSError as error:
            raise StoreError(f"{self.path}: {name} cannot be written: {error.strerror or error}") from None


def payload_of(about: dict[str, Any]) -> Payload:
    """The payload that a store.json names."""
    return TypeAdapter(Payload).validate_python(about["payload"])


def checked_format(path: str, about: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a store.json unchanged. Raises StoreError if its format is not FORMAT."""
    if about.get("format") != FORMAT:
        raise StoreError(f"{path}: format {about.get('format')}, this raykd reads 1 and {FORMAT}")
    return about


@contextmanager
def damage(shard: str) -> Iterator[None]:
    """A context that turns errors of pyarrow and the file system about a broken file into a StoreError of one line."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StoreError(f"{shard}: damaged shard: {first_line(error)}") from None


def _native_buffer(data: bytes) -> pa.Buffer:
    """The same bytes in Arrow's own memory.

    Arrow's threads release a buffer some time after they have read it. If Python has ended by then, releasing memory
    that belongs to Python aborts the process.
    """
    buffer = pa.allocate_buffer(len(data))
    np.frombuffer(buffer, np.uint8)[:] = np.frombuffer(data, np.uint8)
    return buffer
