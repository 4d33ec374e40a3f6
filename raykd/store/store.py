"""The store of pseudo-targets: what a model answered, kept so that nothing is ever asked twice.

    <store>/store.json        {"format", "parts", "payload"}: all that decides an answer, and what is kept of it
    <store>/shards/<hash of its (key, sample) set>-<hash of its bytes>.parquet
                              rows of `schema(payload)`; a shard appears whole or not at all
    <store>/closed.json       {"shards": {name: {"rows", "bytes"}}}; there while no pass writes

A row is named by (key, sample): the hash of its rendered prompt and the number of the sample. The number of samples
is no part of a store: more of them are more rows. Where two shards hold the same row, which only a lost race can do,
the shard that comes first by name counts. A store is at any URL of fsspec, or in a local folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
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

from raykd.errors import StoreError
from raykd.recipe.generation import Payload
from raykd.run.files import fingerprint, put
from raykd.store import payloads
from raykd.store.names import list_means, native_buffer, new_rows, row_names, sample_spans
from raykd.store.schema import FORMAT, SHARD, SHARD_1, SPAN, shard_schema


class Store:
    """A store; many may write into it at once, each its own shards. `path` as it was given; can be pickled."""

    def __init__(self, path: str | Path, wanted: Payload | None = None):
        """`wanted` is the payload to read, which the store's must serve; default: the store's own."""
        self.path = str(path).rstrip("/")
        self.fs, self.root = url_to_fs(self.path)
        self._wanted = wanted

    @classmethod
    def open(cls, folder: str | Path, parts: dict[str, Any], payload: Payload, path: str | Path | None = None) -> Store:
        """The store at `path`, or the one below `folder` that serves; made if it is not there.

        What is written into it must have its `payload`, which may be richer than the one asked for. Raises
        StoreError where the one at `path` holds other answers, and migrates it where it is of format 1.
        """
        parts = json.loads(json.dumps(parts))
        store = cls(path, payload) if path else _find(folder, parts, payload)
        about = store._json("store.json")
        if about is None:
            store._make(parts, payload)
            return store
        old = about.get("format") == 1
        wrong = _differences(_about_from_1(about) if old else _checked(store.path, about), parts, payload)
        if wrong:
            raise StoreError(f"{store.path}: written with another {'; another '.join(wrong)}")
        if old:
            _from_1(store, about)
        return store

    @cached_property
    def about(self) -> dict[str, Any]:
        """What store.json holds. Raises StoreError where it is missing or of another format."""
        about = self._json("store.json")
        if about is None:
            raise StoreError(f"{self.path}: no store there")
        if about.get("format") == 1:
            raise StoreError(f"{self.path}: format 1; a run with teacher.store: {self.path} brings it to {FORMAT}")
        return _checked(self.path, about)

    @property
    def payload(self) -> Payload:
        """What is kept of each answer."""
        return _payload(self.about)

    @property
    def wanted(self) -> Payload:
        """What `answers` gives of each."""
        return self._wanted or self.payload

    # ------------------------------------------------------------------------------------------ writing

    def write(self, rows: pa.Table) -> None:
        """Land one shard, whole or not at all; nothing where the same (key, sample) set has landed.

        Opens a closed store. Raises StoreError for rows that are not of the store's payload, or a full disk.
        """
        if not rows.schema.equals(shard_schema(self.payload)):
            raise StoreError(f"{self.path}: its payload is {self.payload.kind}, not that of {rows.column_names}")
        wrong = payloads.faults(rows)
        if wrong:
            raise StoreError(f"{self.path}: rows that cannot be right: {wrong[0]}")
        named = hashlib.sha256(np.unique(row_names(rows)).tobytes()).hexdigest()[:16]
        if any(name.startswith(named) for name in self.shards()):
            return
        data = payloads.encoded(rows)
        if self.closed:
            self.begin()
        self._put(f"shards/{named}-{hashlib.sha256(data).hexdigest()[:16]}.parquet", data)

    def begin(self) -> None:
        """Say that a pass writes: readers that follow wait for what is to come."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/closed.json")

    def close(self) -> None:
        """Say that no pass writes: readers that follow come to their end."""
        shards = {}
        for name in self.shards():
            found = self._metadata(name)
            shards[name] = {"rows": found.num_rows, "bytes": self.fs.size(self._at(name))}
        self._put("closed.json", json.dumps({"shards": shards}, indent=1).encode())

    @property
    def closed(self) -> bool:
        self.fs.invalidate_cache()
        return self.fs.exists(f"{self.root}/closed.json")

    # ------------------------------------------------------------------------------------------ reading

    def shards(self) -> list[str]:
        """Names of the shards that have landed, sorted."""
        return self._named(SHARD)

    def held(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys, samples): keys that have landed, S16, sorted and unique; and how many samples of each, int32.

        Samples count from 0 to the first that is missing. Only two columns are read. numpy drops zero bytes at the
        end of a single S16: compare arrays, or take bytes by keys.tobytes().
        """
        found = [sample_spans(self.names(name)) for name in self.shards()]
        spans = np.concatenate([np.zeros(0, SPAN), *found])
        del found
        spans.view("S24").sort()  # in place: a store has many keys
        firsts = np.ones(len(spans), bool)
        firsts[1:] = spans["key"][1:] != spans["key"][:-1]
        keys, at = spans["key"][firsts], np.cumsum(firsts, dtype=np.int32) - 1
        held = np.zeros(len(keys), np.int32)
        while True:  # as many times as a key's samples came in pieces
            before = held.copy()
            joins = spans["start"] <= held[at]
            np.maximum.at(held, at[joins], spans["stop"][joins])
            if np.array_equal(held, before):
                return keys, held

    def names(self, shard: str) -> np.ndarray:
        """(key, sample) of a shard's rows, as an array of ROW; only these columns are read."""
        return row_names(self._columns(shard))

    def rows(self, shard: str, columns: Iterable[str]) -> pa.Table:
        """Columns of a shard, decoded as `payloads.decode` says. Raises StoreError where it is damaged."""
        columns = list(columns)
        read = {need: None for name in columns for need in payloads.NEEDS.get(name, [name])}
        return payloads.decode(self._read(shard, list(read)), self.wanted).select(columns)

    def texts(self, keys: Iterable[bytes], n: int) -> dict[bytes, list[tuple[str, float | None]]]:
        """(text, mean log-probability of its tokens) of the first n samples of these keys, in their order.

        A key without a row is left out; without log-probabilities their mean is None.
        """
        wanted = np.unique(np.array(list(keys), "S16"))
        found: dict[bytes, dict[int, tuple[str, float | None]]] = {}
        for name in self.shards():
            if len(found) == len(wanted) and all(len(texts) == n for texts in found.values()):
                break
            rows = self._read(name, ["key", "sample", "text", "logprobs"])
            names = row_names(rows)
            rows = rows.filter(pa.array(np.isin(names["key"], wanted) & (names["sample"] < n)))
            means = list_means(*payloads.flat(rows["logprobs"]))
            columns = (rows[name].to_pylist() for name in ("key", "sample", "text"))
            for key, sample, text, mean in zip(*columns, means, strict=True):
                found.setdefault(key, {}).setdefault(sample, (text, mean))
        return {key: [texts[i] for i in sorted(texts)] for key, texts in found.items()}

    def answers(self, columns: Iterable[str], follow: bool = False, poll: float = 1.0) -> Iterator[pa.Table]:
        """Rows shard by shard, each once, with these columns, decoded as `payloads.decode` says.

        With follow it looks again every `poll` seconds for shards that have landed since, until the store is closed;
        of a row in two shards it then gives the one that it saw first. Raises StoreError for a damaged shard.
        """
        columns = list(columns)
        unknown = [name for name in columns if name not in shard_schema(self.payload).names]
        if unknown:
            raise StoreError(f"{self.path}: no column {unknown[0]} in a store of payload {self.payload.kind}")
        read = {need: None for name in ("key", "sample", *columns) for need in payloads.NEEDS.get(name, [name])}
        done: set[str] = set()
        seen: list[np.ndarray] = []
        while True:
            last = self.closed or not follow  # asked before looking: what lands in between is seen
            for name in [name for name in self.shards() if name not in done]:
                done.add(name)
                rows = self._read(name, list(read))
                fresh = new_rows(row_names(rows), seen)
                rows = rows if fresh.all() else rows.filter(pa.array(fresh))
                if rows.num_rows:
                    yield payloads.decode(rows, self.wanted).select(columns)
            if last:
                return
            time.sleep(poll)

    # ------------------------------------------------------------------------------------------ looking after

    def verify(self) -> list[str]:
        """One line per damage; empty if the store is sound. Every byte is read."""
        try:
            lines, expected, named = (
                [],
                shard_schema(self.payload),
                (self._json("closed.json") or {"shards": {}})["shards"],
            )
        except StoreError as error:
            return [str(error)]
        shards, seen = self.shards(), []
        lines += [f"{self.path}/shards/{name}: missing: closed.json names it" for name in named if name not in shards]
        for name in shards:
            try:
                rows = self._read(name)
            except StoreError as error:
                lines.append(str(error))
                continue
            if not rows.schema.equals(expected):
                lines.append(f"{self._shown(name)}: wrong schema: {rows.column_names}")
                continue
            lines += [f"{self._shown(name)}: {fault}" for fault in payloads.faults(rows)]
            twice = int((~new_rows(row_names(rows), seen)).sum())
            if twice:
                lines.append(f"{self._shown(name)}: {twice} duplicate rows: (key, sample) was there before")
        return lines

    def describe(self) -> dict[str, Any]:
        """What the store is and how large, for a person; sizes in bytes as compressed."""
        tokens, rows, columns = 0, 0, dict.fromkeys(shard_schema(self.payload).names, 0)
        shards = self.shards()
        for name in shards:
            found = self._metadata(name)
            tokens, rows = tokens + int(found.metadata[b"tokens"]), rows + found.num_rows
            for group in map(found.row_group, range(found.num_row_groups)):
                for column in map(group.column, range(group.num_columns)):
                    columns[column.path_in_schema.split(".")[0]] += column.total_compressed_size
        keys, samples = self.held()
        size = sum(self.fs.size(self._at(name)) for name in shards)
        return {
            "name": self.root.rsplit("/", 1)[-1],
            **self.about,
            "state": "closed" if self.closed else "open",
            "shards": len(shards),
            "rows": rows,
            "keys": len(keys),
            "samples_per_key": {"min": int(samples.min()), "max": int(samples.max())} if len(keys) else None,
            "tokens": tokens,
            "bytes": size,
            "bytes_per_token": round(size / max(1, tokens), 2),
            "bytes_per_token_of": {name: round(total / max(1, tokens), 2) for name, total in columns.items()},
        }

    # ------------------------------------------------------------------------------------------ files

    def _at(self, shard: str) -> str:
        return f"{self.root}/shards/{shard}"

    def _shown(self, shard: str) -> str:
        return f"{self.path}/shards/{shard}"

    def _named(self, pattern: re.Pattern) -> list[str]:
        self.fs.invalidate_cache()  # others write too
        try:
            found = self.fs.ls(f"{self.root}/shards", detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for name in (path.rsplit("/", 1)[-1] for path in found) if pattern.fullmatch(name))

    def _columns(self, name: str) -> pa.Table:
        """Key and sample of a shard, without reading the rest of it; pages are checked by their checksums."""
        with _damage(self._shown(name)), self.fs.open(self._at(name), "rb") as file:
            found = pq.ParquetFile(file, page_checksum_verification=True)
            return found.read(["key", "sample"], use_threads=False)  # a file of Python's, see _native

    def _metadata(self, name: str) -> pq.FileMetaData:
        with _damage(self._shown(name)), self.fs.open(self._at(name), "rb") as file:
            return pq.read_metadata(file)

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Columns of a shard whose bytes are those that its name says. Raises StoreError."""
        with _damage(self._shown(name)):
            data = self.fs.cat_file(self._at(name))
            if hashlib.sha256(data).hexdigest()[:16] != name[17:33]:
                raise ValueError(f"its {len(data)} bytes are not those that were written")
            return pq.ParquetFile(pa.BufferReader(native_buffer(data))).read(columns)

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path}/{name}: cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise StoreError(f"{self.path}/{name}: cannot be read: no mapping")
        return found

    def _make(self, parts: dict[str, Any], payload: Payload) -> None:
        about = {"format": FORMAT, "parts": parts, "payload": payload.model_dump(mode="json")}
        self._put("store.json", (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())

    def _put(self, name: str, data: bytes) -> None:
        """Write a file so that it is either whole or as it was. Raises StoreError."""
        path = f"{self.root}/{name}"
        try:
            if isinstance(self.fs, LocalFileSystem):
                put(Path(path), data)
            else:
                self.fs.pipe_file(path, data)  # object stores put a file whole
        except OSError as error:
            raise StoreError(f"{self.path}: {name} cannot be written: {error.strerror or error}") from None


def _find(folder: str | Path, parts: dict[str, Any], payload: Payload) -> Store:
    """The store below `folder` that serves, an exact one first; else the one to be made."""
    named = fingerprint({"format": FORMAT, **parts, "payload": payload.model_dump(mode="json")})
    exact = Store(f"{folder}/{named}", payload)
    if exact._json("store.json") is not None:
        return exact
    fs, root = url_to_fs(str(folder))
    fs.invalidate_cache()
    for path in sorted(fs.ls(root, detail=False)) if fs.exists(root) else []:
        store = Store(f"{folder}/{path.rstrip('/').rsplit('/', 1)[-1]}", payload)
        about = store._json("store.json") if fs.isdir(path) else None
        if about and about.get("format") == FORMAT and not _differences(about, parts, payload):
            return store
    return exact


def _checked(path: str, about: dict[str, Any]) -> dict[str, Any]:
    if about.get("format") != FORMAT:
        raise StoreError(f"{path}: format {about.get('format')}, this raykd reads 1 and {FORMAT}")
    return about


def _payload(about: dict[str, Any]) -> Payload:
    return TypeAdapter(Payload).validate_python(about["payload"])


def _differences(about: dict[str, Any], parts: dict[str, Any], payload: Payload) -> list[str]:
    """What keeps a store from serving, as `name: found, expected ...`."""
    missing = object()

    def compared(name: str, old: Any, new: Any) -> list[str]:
        if isinstance(old, dict) and isinstance(new, dict):
            names = [*old, *(key for key in new if key not in old)]
            inner = ((f"{name}.{key}" if name else key, old.get(key, missing), new.get(key, missing)) for key in names)
            return [line for found in inner for line in compared(*found)]
        shown = ["nothing" if value is missing else repr(value) for value in (old, new)]
        return [] if old == new else [f"{name}: {shown[0]}, expected {shown[1]}"]

    lines = compared("", about["parts"], parts)
    if not payloads.serves(_payload(about), payload):
        lines += [f"payload: {about['payload']}, expected {payload.model_dump(mode='json')} or richer"]
    return lines


def _about_from_1(about: dict[str, Any]) -> dict[str, Any]:
    """What store.json of format 1 says in format 2: n is no part of it any more, and all it kept was text."""
    parts = {**about["parts"], "sampling": {k: v for k, v in about["parts"]["sampling"].items() if k != "n"}}
    return {"format": FORMAT, "parts": parts, "payload": {"kind": "text"}}


def _from_1(store: Store, about: dict[str, Any]) -> None:
    """Bring a store of format 1, whose keys were hex digits, to format 2. May be killed and begun again."""
    old = store._named(SHARD_1)
    store.about = new = _about_from_1(about)
    for name in old:
        with _damage(store._shown(name)):
            rows = pq.read_table(pa.BufferReader(store.fs.cat_file(store._at(name))))
            keys = pa.array([bytes.fromhex(key) for key in rows["key"].to_pylist()], pa.binary(16))
            rows = rows.set_column(0, "key", keys).cast(shard_schema(_payload(new)))
        store.write(rows)
    store._make(new["parts"], _payload(new))
    store.close()
    for name in old:  # last: until here the store is still whole in its old form
        store.fs.rm_file(store._at(name))


@contextmanager
def _damage(shard: str) -> Iterator[None]:
    """Whatever a broken file makes pyarrow say, as one line."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"{shard}: damaged shard: {first}") from None
