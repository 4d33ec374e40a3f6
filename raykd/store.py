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

from raykd import payloads
from raykd.engines import Answer
from raykd.errors import StoreError
from raykd.recipe import HiddenPayload, Payload, SampledPayload, TopKPayload
from raykd.run import fingerprint, put

FORMAT = 2
SHARD = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.parquet")
SHARD_1 = re.compile(r"[0-9a-f]{24}\.parquet")  # of format 1
ROW = np.dtype([("key", "S16"), ("sample", ">i4")])  # sorts as its bytes do
SPAN = np.dtype([("key", "S16"), ("start", ">i4"), ("stop", ">i4")])


def schema(payload: Payload) -> pa.Schema:
    """Columns of a shard."""
    columns = [
        ("key", pa.binary(16)),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),  # of token_ids, natural log; empty where the engine gives none
        ("finish_reason", pa.string()),  # stop | length
    ]
    return pa.schema([*columns, *((name, pa.list_(kind)) for name, kind in payloads.VALUES[payload.kind].items())])


def table(keys: list[bytes], samples: range, answers: list[list[Answer]], payload: Payload) -> pa.Table:
    """Rows of `schema(payload)`: for each key its answers, which are the samples of these numbers in order."""
    for several in answers:
        if len(several) != len(samples):
            raise ValueError(f"{len(several)} answers for {len(samples)} samples")
    flat = [answer for several in answers for answer in several]

    def joined(name: str, kind: pa.DataType) -> pa.ListArray:
        arrays = [np.asarray(getattr(answer, name), kind.to_pandas_dtype()) for answer in flat]
        return payloads.lists(name, np.concatenate([np.zeros(0), *arrays]), np.array([len(a) for a in arrays]), kind)

    columns = {
        "key": pa.array([key for key in keys for _ in samples], pa.binary(16)),
        "sample": pa.array(np.tile(np.arange(samples.start, samples.stop), len(keys)), pa.int32()),
        "text": pa.array([answer.text for answer in flat], pa.string()),
        "token_ids": joined("token_ids", pa.int32()),
        "logprobs": joined("logprobs", pa.float32()),
        "finish_reason": pa.array([answer.finish_reason for answer in flat], pa.string()),
    }
    return pa.table({**columns, **payloads.encode(flat, payload)}, schema=schema(payload))


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
        if not rows.schema.equals(schema(self.payload)):
            raise StoreError(f"{self.path}: its payload is {self.payload.kind}, not that of {rows.column_names}")
        wrong = payloads.faults(rows)
        if wrong:
            raise StoreError(f"{self.path}: rows that cannot be right: {wrong[0]}")
        named = hashlib.sha256(np.unique(_names(rows)).tobytes()).hexdigest()[:16]
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
        found = [_spans(self.names(name)) for name in self.shards()]
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
        return _names(self._columns(shard))

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
            names = _names(rows)
            rows = rows.filter(pa.array(np.isin(names["key"], wanted) & (names["sample"] < n)))
            means = _means(*payloads.flat(rows["logprobs"]))
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
        unknown = [name for name in columns if name not in schema(self.payload).names]
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
                fresh = _fresh(_names(rows), seen)
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
            lines, expected, named = [], schema(self.payload), (self._json("closed.json") or {"shards": {}})["shards"]
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
            twice = int((~_fresh(_names(rows), seen)).sum())
            if twice:
                lines.append(f"{self._shown(name)}: {twice} duplicate rows: (key, sample) was there before")
        return lines

    def describe(self) -> dict[str, Any]:
        """What the store is and how large, for a person; sizes in bytes as compressed."""
        tokens, rows, columns = 0, 0, dict.fromkeys(schema(self.payload).names, 0)
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
            return pq.ParquetFile(pa.BufferReader(_native(data))).read(columns)

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


def choose_payload(vocabulary: int, hidden: int, student_parameters: int, drawn: bool = True) -> tuple[Payload, str]:
    """What payload `auto` stands for where a loss needs the teacher's distribution, and why, in one sentence.

    Exact forms win where they cost no more than the top 64: the whole distribution of a small vocabulary; hidden
    states of a narrow teacher, if its head (2 H V FLOP per token) is below 5 % of the student's step (6 FLOP per
    parameter). Else draws, which are unbiased and smallest (arXiv 2503.16870), where the losses can do with them
    (`drawn`), and the top 64 where not.
    """
    if vocabulary <= 64:
        why = f"top_k of {vocabulary}: that is the whole vocabulary, at {6 * vocabulary} bytes per token at most"
        return TopKPayload(kind="top_k", k=vocabulary), why
    extra = 2 * hidden * vocabulary / (6 * student_parameters)
    sizes = f"{2 * hidden} bytes per token of hidden states against 384 of top 64 and about 60 of draws"
    cost = f"the teacher's head would add {100 * extra:.1f} % to the student's compute"
    if extra < 0.05 and 2 * hidden <= 384:
        return HiddenPayload(kind="hidden"), f"hidden: exact; {sizes}; {cost}"
    if not drawn:
        return TopKPayload(kind="top_k"), f"top_k of 64: draws serve soft_cross_entropy alone; {sizes}; {cost}"
    return SampledPayload(kind="sampled"), f"sampled: unbiased and smallest; {sizes}; {cost}"


def _names(rows: pa.Table) -> np.ndarray:
    """(key, sample) of each row as an array of ROW."""
    names = np.empty(rows.num_rows, ROW)
    keys = rows["key"].combine_chunks()
    start = 16 * keys.offset
    names["key"] = np.frombuffer(keys.buffers()[1] or b"", "S16", offset=0)[start // 16 : start // 16 + len(keys)]
    names["sample"] = rows["sample"].to_numpy()
    return names


def _native(data: bytes) -> pa.Buffer:
    """The same bytes in Arrow's own memory.

    Arrow's threads let go of what they read some time after they have read it. If Python has ended by then, letting go
    of bytes of its own aborts the process.
    """
    buffer = pa.allocate_buffer(len(data))
    np.frombuffer(buffer, np.uint8)[:] = np.frombuffer(data, np.uint8)
    return buffer


def _means(values: np.ndarray, offsets: np.ndarray) -> list[float | None]:
    """The mean of each list; None of an empty one."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])[offsets]
    counts = np.diff(offsets)
    return [s / c if c else None for s, c in zip(np.diff(sums).tolist(), counts.tolist(), strict=True)]


def _fresh(names: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """Which rows are in no block of `seen` and not twice among themselves; adds them to `seen`.

    Blocks are sorted, and joined when they are alike in size, so that there are few: 20 bytes per row.
    """
    names = names.view("S20")
    fresh = np.zeros(len(names), bool)
    unique, first = np.unique(names, return_index=True)
    fresh[first] = True
    for block in seen:
        at = np.minimum(np.searchsorted(block, names), len(block) - 1)
        fresh &= block[at] != names
    if len(unique):
        seen.append(unique)
    while len(seen) > 1 and len(seen[-2]) <= 2 * len(seen[-1]):
        seen.append(np.sort(np.concatenate([seen.pop(), seen.pop()])))
    return fresh


def _spans(names: np.ndarray) -> np.ndarray:
    """Rows as spans of samples: (key, start, stop) for each run of numbers without a gap."""
    names = np.sort(names.view("S20")).view(ROW)
    key, sample = names["key"], names["sample"]
    starts = np.ones(len(names), bool)
    starts[1:] = (key[1:] != key[:-1]) | (sample[1:] != sample[:-1] + 1)
    first = np.flatnonzero(starts)
    spans = np.empty(len(first), SPAN)
    spans["key"], spans["start"] = key[first], sample[first]
    spans["stop"] = sample[np.append(first, len(names))[1:] - 1] + 1
    return spans


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
            rows = rows.set_column(0, "key", keys).cast(schema(_payload(new)))
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
