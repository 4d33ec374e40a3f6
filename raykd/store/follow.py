"""Lookup of rows in a store that may still be written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raykd.errors import TrainingError
from raykd.run import remote
from raykd.store.ragged import Ragged, ragged
from raykd.store.read import read_names, read_rows
from raykd.store.store import Store

PASS = "pass.json"  # beside a labelling's prompts: {"refused": keys as hex digits, "failed": a reason or None}
POLL = 0.5  # seconds between looks at a store that is being written
DECODED_SHARDS = 8  # decoded shards that stay in memory


class StoreIndex:
    """An index of a store's rows. With `follow`, a lookup waits for rows while the store is written."""

    def __init__(self, store: Store, follow: bool, pass_file: Path):
        """`pass_file` is the file PASS of the labelling pass that writes the store."""
        self.store, self.follow, self.pass_file = store, follow, pass_file
        self.shards: list[str] = []
        self.names = np.zeros(0, "S20")  # (key, sample) of every row as bytes, sorted
        self.places = np.zeros((0, 2), np.int32)  # for each name the number of its shard, and its row there
        self.decoded: dict[str, dict[str, list[Any] | Ragged]] = {}  # shard -> column -> cells

    def lookup(self, row_names: np.ndarray, columns: list[str]) -> list[dict[str, Any] | None]:
        """The columns of each row of `row_names`, an array of ROW; None for a row that the store does not hold.

        With `follow` it returns when the store holds all rows, or is closed, or the model has rejected the prompts of
        the missing ones. Raises TrainingError if the pass has failed, StoreError for a damaged shard.
        """
        names = row_names.view("S20")
        while True:
            closed = not self.follow or self.store.closed  # before the look: rows may land between the two
            self._add_new_shards()
            at = np.minimum(np.searchsorted(self.names, names), max(0, len(self.names) - 1))
            present = self.names[at] == names if len(self.names) else np.zeros(len(names), bool)
            if closed or present.all() or self._all_rejected(row_names[~present]):
                break
            time.sleep(POLL)
        rows: list[dict[str, Any] | None] = [None] * len(names)
        for shard in np.unique(self.places[at[present], 0]) if present.any() else ():
            cells = self._decoded_shard(self.shards[shard], columns)
            for i in np.flatnonzero(present):
                if self.places[at[i], 0] == shard:
                    rows[i] = {name: _cell(cells[name], int(self.places[at[i], 1])) for name in columns}
        return rows

    def _all_rejected(self, missing: np.ndarray) -> bool:
        """Whether the model rejected the prompts of all these rows. Raises TrainingError if the pass has failed."""
        text = remote.tail(self.pass_file, 0)
        state = json.loads(text) if text else {"refused": [], "failed": None}
        if state["failed"]:
            raise TrainingError(f"the teacher, which is followed, stopped: {state['failed']}")
        rejected = np.array([bytes.fromhex(key) for key in state["refused"]], "S16")
        return bool(np.isin(missing["key"], rejected).all())

    def _add_new_shards(self) -> None:
        """Add the rows of shards that have landed since the last call."""
        indexed = set(self.shards)
        new_shards = [shard for shard in self.store.shards() if shard not in indexed]
        if not new_shards:
            return
        names, places = [self.names], [self.places]
        for shard in new_shards:
            rows = read_names(self.store, shard)
            names.append(rows.view("S20"))
            places.append(np.stack([np.full(len(rows), len(self.shards)), np.arange(len(rows))], 1).astype(np.int32))
            self.shards.append(shard)
        all_names, all_places = np.concatenate(names), np.concatenate(places)
        order = np.argsort(all_names, kind="stable")  # stable: if a row is in two shards, the first counts
        self.names, self.places = all_names[order], all_places[order]

    def _decoded_shard(self, shard: str, columns: list[str]) -> dict[str, list[Any] | Ragged]:
        if shard not in self.decoded:
            while len(self.decoded) >= DECODED_SHARDS:
                del self.decoded[next(iter(self.decoded))]
            table = read_rows(self.store, shard, columns)
            self.decoded[shard] = {name: _cells(table[name]) for name in columns}
        return self.decoded[shard]


def _cells(column: pa.ChunkedArray) -> list[Any] | Ragged:
    return column.to_pylist() if pa.types.is_string(column.type) else ragged(column)


def _cell(cells: list[Any] | Ragged, row: int) -> Any:
    return cells.row(row) if isinstance(cells, Ragged) else cells[row]
