"""TODO: docstring."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raykd.errors import TrainingError
from raykd.run import remote
from raykd.store import payloads
from raykd.store.store import Store

POLL = 0.5  # seconds between looks at a store that is being written
KEPT_SHARDS = 8  # decoded, while chunks are made of them


class StoreIndex:
    """Where the rows of a store are: looked up as they are asked for, waited for while the store is written."""

    def __init__(self, store: Store, follow: bool, said: Path):
        """`said` is where the pass says what it refused; see `stages.label`."""
        self.store, self.follow, self.said = store, follow, said
        self.shards: list[str] = []
        self.names = np.zeros(0, "S20")
        self.places = np.zeros((0, 2), np.int32)
        self.decoded: dict[str, tuple[pa.Table, dict[str, tuple[np.ndarray, np.ndarray]]]] = {}

    def answers(self, wanted: np.ndarray, columns: list[str]) -> list[dict[str, Any] | None]:
        """Of each (key, sample) its columns; None where there is no answer."""
        names = wanted.view("S20")
        while True:
            closed = not self.follow or self.store.closed  # asked before looking
            self._look()
            at = np.minimum(np.searchsorted(self.names, names), max(0, len(self.names) - 1))
            there = self.names[at] == names if len(self.names) else np.zeros(len(names), bool)
            if closed or there.all() or self._never(wanted[~there]):
                break
            time.sleep(POLL)
        found: list[dict[str, Any] | None] = [None] * len(names)
        for shard in np.unique(self.places[at[there], 0]) if there.any() else ():
            table = self._shard(self.shards[shard], columns)
            for i in np.flatnonzero(there):
                if self.places[at[i], 0] == shard:
                    found[i] = {name: _cell(table[name], int(self.places[at[i], 1])) for name in columns}
        return found

    def _never(self, missing: np.ndarray) -> bool:
        """Whether the teacher refused all that is missing. Raises TrainingError where it gave up."""
        held = remote.tail(self.said, 0)
        said = json.loads(held) if held else {"refused": [], "failed": None}
        if said["failed"]:
            raise TrainingError(f"the teacher, which is followed, stopped: {said['failed']}")
        refused = np.array([bytes.fromhex(key) for key in said["refused"]], "S16")
        return bool(np.isin(missing["key"], refused).all())

    def _look(self) -> None:
        """Learn what has landed since."""
        new = [name for name in self.store.shards() if name not in set(self.shards)]
        if not new:
            return
        names, places = [self.names], [self.places]
        for name in new:
            rows = self.store.names(name)
            names.append(rows.view("S20"))
            places.append(np.stack([np.full(len(rows), len(self.shards)), np.arange(len(rows))], 1).astype(np.int32))
            self.shards.append(name)
        together, where = np.concatenate(names), np.concatenate(places)
        order = np.argsort(together, kind="stable")
        self.names, self.places = together[order], where[order]

    def _shard(self, name: str, columns: list[str]) -> Any:
        if name not in self.decoded:
            while len(self.decoded) >= KEPT_SHARDS:
                del self.decoded[next(iter(self.decoded))]
            table = self.store.rows(name, columns)
            self.decoded[name] = {c: _column(table[c]) for c in columns}  # type: ignore[assignment]
        return self.decoded[name]


def _column(column: pa.ChunkedArray) -> Any:
    return column.to_pylist() if pa.types.is_string(column.type) else payloads.flat(column)


def _cell(column: Any, row: int) -> Any:
    if isinstance(column, list):
        return column[row]
    values, offsets = column
    return values[offsets[row] : offsets[row + 1]]
