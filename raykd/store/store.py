"""The store of pseudo-targets: what a model wrote is kept, so that it never has to write it twice.

    <store>/store.json        {"format", "parts", "payload"}: all that decides a pseudo-target, and what is kept of it
    <store>/shards/<hash of its (key, sample) set>-<hash of its bytes>.parquet
                              rows of `schema.shard_schema`; a shard appears whole or not at all
    <store>/closed.json       {"shards": {name: {"rows", "bytes"}}}; there while no pass writes

A row is named by (key, sample): the hash of its rendered prompt and the number of the sample. The number of samples
is no part of a store's name: more of them are more rows. Where two shards hold the same row, which only a lost race
can do, the shard that comes first by name counts. A store is at any URL of fsspec, or in a local folder.

`open` finds or makes a store, `write` lands a shard, `read` and `follow` look rows up, `verify` looks for damage.
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
    """The files of a store, and its state. Many may write into it at once, each its own shards. Can be pickled."""

    def __init__(self, path: str | Path, wanted: Payload | None = None):
        """`path` is a folder or URL. `wanted` is the payload to read; the store's own must serve it; None: its own."""
        self.path = str(path).rstrip("/")
        self.fs, self.root = url_to_fs(self.path)
        self._wanted = wanted

    @cached_property
    def about(self) -> dict[str, Any]:
        """The content of store.json. Raises StoreError where it is missing or of another format."""
        about = self.read_json("store.json")
        if about is None:
            raise StoreError(f"{self.path}: no store there")
        if about.get("format") == 1:
            raise StoreError(f"{self.path}: format 1; a run with teacher.store: {self.path} brings it to {FORMAT}")
        return checked_format(self.path, about)

    @property
    def payload(self) -> Payload:
        """What the store keeps of each pseudo-target beside its text."""
        return payload_of(self.about)

    @property
    def wanted(self) -> Payload:
        """The payload that readers decode: the constructor's `wanted`, or the store's own."""
        return self._wanted or self.payload

    def write_about(self, parts: dict[str, Any], payload: Payload) -> None:
        """Write store.json. Raises StoreError where that is not possible."""
        about = {"format": FORMAT, "parts": parts, "payload": payload.model_dump(mode="json")}
        self.put("store.json", (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())

    # -------------------------------------------------------------------------------- whether a pass writes

    def begin(self) -> None:
        """Note that a pass writes: readers that follow wait for its rows."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/closed.json")

    def close(self) -> None:
        """Note that no pass writes: readers that follow do not wait any longer."""
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
        """A shard's footer. Raises StoreError where it is damaged."""
        with damage(self.shown(shard)), self.fs.open(self.shard_path(shard), "rb") as file:
            return pq.read_metadata(file)

    def read_shard(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Columns of a shard as stored. Raises StoreError where its bytes are not those that its name promises."""
        with damage(self.shown(shard)):
            data = self.fs.cat_file(self.shard_path(shard))
            if hashlib.sha256(data).hexdigest()[:16] != shard[17:33]:
                raise ValueError(f"its {len(data)} bytes are not those that were written")
            return pq.ParquetFile(pa.BufferReader(_native_buffer(data))).read(columns)

    # ------------------------------------------------------------------------------------------------- files

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the store; None where it is not there. Raises StoreError where it cannot be read."""
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
    """The same content of a store.json. Raises StoreError where its format is not FORMAT."""
    if about.get("format") != FORMAT:
        raise StoreError(f"{path}: format {about.get('format')}, this raykd reads 1 and {FORMAT}")
    return about


@contextmanager
def damage(shard: str) -> Iterator[None]:
    """Turns any error of pyarrow or the file system about a broken file into a StoreError of one line."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StoreError(f"{shard}: damaged shard: {first_line(error)}") from None


def _native_buffer(data: bytes) -> pa.Buffer:
    """The same bytes in Arrow's own memory.

    Arrow's threads let go of what they read some time after they have read it. If Python has ended by then, letting go
    of bytes of its own aborts the process.
    """
    buffer = pa.allocate_buffer(len(data))
    np.frombuffer(buffer, np.uint8)[:] = np.frombuffer(data, np.uint8)
    return buffer
