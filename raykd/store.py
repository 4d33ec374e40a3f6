"""The store of pseudo-targets: what a model answered, kept so that nothing is ever asked twice.

    <stores>/<name>/store.json          format version, and what wrote it: the parts of the fingerprint
    <stores>/<name>/shards/*.parquet    rows of SCHEMA; a shard appears whole or not at all

A row is named by (key, sample): the hash of its rendered prompt and the number of the sample. A store's name is the
hash of everything that decides an answer, so that other weights, another template or other sampling is another store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raykd.errors import StoreError
from raykd.run import fingerprint, write_json

FORMAT = 1
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),  # of token_ids, natural log; empty where the engine gives none
        ("finish_reason", pa.string()),  # stop | length
    ]
)


class Store:
    """A store on disk; many may write into it at once, each its own shards."""

    def __init__(self, path: Path):
        self.path = Path(path)

    @classmethod
    def open(cls, folder: Path, parts: dict[str, Any]) -> Store:
        """The store below `folder` that holds the answers of exactly `parts`; made if it is not there."""
        store = cls(folder / fingerprint({"format": FORMAT, **parts}))
        about = store.path / "store.json"
        if about.exists():
            found = json.loads(about.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise StoreError(f"{about}: format {found['format']}, expected {FORMAT}")
            wrong = [k for k in parts if found["parts"].get(k) != json.loads(json.dumps(parts[k]))]
            if wrong:
                raise StoreError(f"{about}: written with another {wrong[0]}: {found['parts'].get(wrong[0])!r}")
        else:
            write_json(about, {"format": FORMAT, "parts": parts})
        (store.path / "shards").mkdir(exist_ok=True)
        return store

    def shards(self) -> list[Path]:
        return sorted((self.path / "shards").glob("*.parquet"))

    def write(self, rows: pa.Table) -> None:
        """Land one shard, atomically. It is named by its keys: the same work done twice lands once."""
        named = hashlib.sha256("".join(sorted(set(rows["key"].to_pylist()))).encode()).hexdigest()[:24]
        part = self.path / "shards" / f".{named}.{os.getpid()}"
        try:
            with open(part, "wb") as file:
                pq.write_table(rows.cast(SCHEMA), file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, part.with_name(f"{named}.parquet"))
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StoreError(f"{self.path}: a shard cannot be written: {error.strerror}") from None

    def keys(self) -> set[str]:
        """Keys that have landed."""
        return set(self._read(["key"])["key"].to_pylist())

    def texts(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """Texts of these keys, in the order of their samples; a key without a row is left out."""
        wanted = set(keys)
        rows = self._read(["key", "sample", "text"]).sort_by([("key", "ascending"), ("sample", "ascending")])
        found: dict[str, list[str]] = {}
        for key, text in zip(rows["key"].to_pylist(), rows["text"].to_pylist(), strict=True):
            if key in wanted:
                found.setdefault(key, []).append(text)
        return found

    def _read(self, columns: list[str]) -> pa.Table:
        tables = []
        for shard in self.shards():
            try:
                tables.append(pq.read_table(shard, columns=columns))
            except (pa.ArrowException, OSError) as error:
                raise StoreError(f"{shard}: damaged shard: {str(error).splitlines()[0]}") from None
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table().select(columns)
