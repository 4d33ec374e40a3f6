"""TODO: docstring."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raykd.errors import StoreError


class Chunk:
    """The arrays of a record batch, as views of the mapped file.

    source, teacher  (values, offsets) by row;  first (R + 1,), a row's first target among the chunk's
    target           (values, offsets) by target;  gold, weights (V,);  payload  (values, offsets) by target, by name
    """

    def __init__(self, batch: pa.RecordBatch):
        self.ids, self.rows = batch["id"], batch.num_rows
        self.source, self.teacher = _views(batch["source"]), _views(batch["teacher"])
        self.first = batch["targets"].offsets.to_numpy()
        self.target = _views(batch["targets"].values)
        self.gold = batch["gold"].values.to_numpy(zero_copy_only=False).astype(bool)
        self.weights = batch["weights"].values.to_numpy()
        self.payload = {n: _views(batch[n].values) for n in batch.schema.names[6:]}


def _views(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return lists.values.to_numpy(zero_copy_only=True) if len(lists.values) else np.zeros(0, np.int32), (
        lists.offsets.to_numpy()
    )


class ChunkReader:
    """Chunks of a stream, as they come to be there."""

    def __init__(self, path: Path, later: Path | None = None):
        """`later` is the file's name once it is finished, where that is another."""
        self.path, self.later, self.at, self.over = path, later or path, 0, False
        self.schema: pa.Schema | None = None

    def more(self) -> list[Chunk]:
        """Chunks that are there since the last call; `over` says whether these were the last."""
        if self.over:
            return []
        try:
            file = pa.memory_map(str(self.path if self.path.exists() else self.later))
        except (OSError, pa.ArrowInvalid):  # not there yet, or empty
            return []
        if file.size() <= self.at:
            return []
        found = []
        file.seek(self.at)
        while not self.over:
            try:
                message = pa.ipc.read_message(file)
            except EOFError:
                self.over = file.tell() - self.at == 8  # the mark of a stream's end, and no half of a message
                break
            except (pa.ArrowInvalid, OSError):  # it is just being written
                break
            if self.schema is None:
                self.schema = pa.ipc.read_schema(message)
            else:
                found.append(Chunk(pa.ipc.read_record_batch(message, self.schema)))
            self.at = file.tell()
        return found

    def all(self, alive: Callable[[], None]) -> list[Chunk]:
        """Every chunk, waited for; `alive` raises where they will never come."""
        found = self.more()
        while not self.over:
            alive()
            time.sleep(0.02)
            found += self.more()
        return found


def stream_complete(path: Path) -> bool:
    """Whether a finished stream is there."""
    return path.exists() and path.with_suffix(".json").exists()


def stream_summary(path: Path) -> dict[str, Any]:
    """What is beside a finished stream. Raises StoreError where it is damaged."""
    try:
        return json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path.with_suffix('.json')}: damaged: {error}") from None


class EncodedDataset:
    """Rows of some chunks, numbered from 0, and their targets, numbered as well.

    source_lengths (R,), target_lengths (V,), first (R + 1,): a row's first target, gold and weights (V,)
    """

    def __init__(self, chunks: Sequence[Chunk]):
        self.chunks = list(chunks)
        empty = np.zeros(0, np.int64)
        self.source_lengths = np.concatenate([empty, *(np.diff(c.source[1]) for c in chunks)])
        self.target_lengths = np.concatenate([empty, *(np.diff(c.target[1]) for c in chunks)])
        counts = np.concatenate([empty, *(np.diff(c.first) for c in chunks)])
        self.first = np.concatenate([[0], np.cumsum(counts)])
        self.gold = np.concatenate([np.zeros(0, bool), *(c.gold for c in chunks)])
        self.weights = np.concatenate([np.zeros(0, np.float32), *(c.weights for c in chunks)])
        self._rows = np.cumsum([0, *(c.rows for c in chunks)])
        self._targets = np.cumsum([0, *(len(c.gold) for c in chunks)])
        self.row_of = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        return len(self.source_lengths)

    def id(self, row: int) -> str:
        chunk, at = self._find(self._rows, row)
        return chunk.ids[at].as_py()

    def sources(self) -> Iterator[bytes]:
        """Of each row the bytes of its input's token ids."""
        for chunk in self.chunks:
            values, offsets = chunk.source
            raw, places = values.tobytes(), (offsets * values.itemsize).tolist()
            yield from (raw[a:b] for a, b in itertools.pairwise(places))

    def source(self, row: int) -> np.ndarray:
        chunk, at = self._find(self._rows, row)
        values, offsets = chunk.source
        return values[offsets[at] : offsets[at + 1]]

    def teacher(self, row: int) -> np.ndarray:
        chunk, at = self._find(self._rows, row)
        values, offsets = chunk.teacher
        return values[offsets[at] : offsets[at + 1]]

    def target(self, number: int) -> np.ndarray:
        chunk, at = self._find(self._targets, number)
        values, offsets = chunk.target
        return values[offsets[at] : offsets[at + 1]]

    def payload(self, name: str, numbers: Iterable[int]) -> np.ndarray:
        """What the store kept of some targets, one after the other, flat."""
        found = []
        for number in numbers:
            chunk, at = self._find(self._targets, number)
            values, offsets = chunk.payload[name]
            found.append(values[offsets[at] : offsets[at + 1]])
        return np.concatenate(found)

    def _find(self, starts: np.ndarray, number: int) -> tuple[Chunk, int]:
        chunk = int(np.searchsorted(starts, number, side="right")) - 1
        return self.chunks[chunk], int(number - starts[chunk])


class EncodedStream:
    """A source's stream of chunks: made by the first worker's thread unless it is there, read by every worker."""

    def __init__(self, path: Path, first: bool, make: Callable[[Path], Any], agree: Callable[[Any], Any]):
        self.path, self.error = path, None
        self.part = agree(path if stream_complete(path) else path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
        self.thread = None
        if self.part != path and first:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.thread = threading.Thread(target=self._make, args=(make,), daemon=True)
            self.thread.start()
        self.reader = ChunkReader(self.part, path)

    def _make(self, make: Callable[[Path], Any]) -> None:
        try:
            make(self.part)
        except BaseException as error:
            self.error = error
            self.part.unlink(missing_ok=True)
            return
        self.part.with_suffix(".json").replace(self.path.with_suffix(".json"))
        self.part.replace(self.path)

    def alive(self) -> None:
        """Raises what ended the making."""
        if self.error:
            raise self.error

    def about(self) -> dict[str, Any]:
        """What was met on the way, once all of it is there."""
        if self.thread:
            self.thread.join()
            self.alive()
        return stream_summary(self.path)
