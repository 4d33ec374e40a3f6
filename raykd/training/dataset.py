"""Encoded rows on disk: an Arrow stream, mapped into memory, and read while it is still written.

A record batch is a chunk of rows, of schema `encoded_schema`:

    id            string
    source        list<int32>              the student's prompt
    teacher       list<int32>              the teacher's prompt, where a teacher reads along; else empty
    targets       list<list<int32>>        the row's targets, with their end token
    gold          list<bool>               whether a target is gold
    weights       list<float>              the weight of each target in the loss
    <payload>     list<list<...>>          the payload of each target, its tokens' values in one list

Beside a finished stream there is `<name>.json`: {rows, bad_rows, cut, empty, missing}. bad_rows: {row, reason} of each
row that was left out; cut, empty: the numbers of targets that were cut or are empty; missing: the number of rows
without a target, because the teacher rejected their input.
"""

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
from raykd.store.ragged import Ragged

ENCODED_FORMAT = 2  # a stream of another format is not found under this one's name
ROW_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.list_(pa.int32())),
        ("teacher", pa.list_(pa.int32())),
        ("targets", pa.list_(pa.list_(pa.int32()))),
        ("gold", pa.list_(pa.bool_())),
        ("weights", pa.list_(pa.float32())),
    ]
)
# kind of payload -> its columns, with the type of their values
PAYLOAD_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "top_k": {"top_ids": pa.int32(), "top_logprobs": pa.float32(), "logprobs": pa.float32()},
    "sampled": {"sampled_ids": pa.int32(), "sampled_counts": pa.uint8(), "sampled_lengths": pa.uint8()},
    "hidden": {"hidden": pa.float16()},
    "text": {},
}


def encoded_schema(payload: dict[str, pa.DataType]) -> pa.Schema:
    """The schema of a stream with these payload columns, one of PAYLOAD_COLUMNS."""
    return pa.schema([*ROW_COLUMNS, *((name, pa.list_(pa.list_(kind))) for name, kind in payload.items())])


class Chunk:
    """The arrays of a record batch of R rows and V targets, as views of the mapped file.

    source, teacher  token ids by row
    target           token ids by target; payload  by its column's name, values by target
    first            (R + 1,) the number of a row's first target among the chunk's
    gold, weights    (V,)
    """

    def __init__(self, batch: pa.RecordBatch):
        self.ids, self.rows = batch["id"], batch.num_rows
        self.source, self.teacher = _view(batch["source"]), _view(batch["teacher"])
        self.first = batch["targets"].offsets.to_numpy()
        self.target = _view(batch["targets"].values)
        self.gold = batch["gold"].values.to_numpy(zero_copy_only=False).astype(bool)
        self.weights = batch["weights"].values.to_numpy()
        payload = [name for name in batch.schema.names if name not in ROW_COLUMNS.names]
        self.payload = {name: _view(batch[name].values) for name in payload}


def _view(lists: pa.ListArray) -> Ragged:
    values = lists.values.to_numpy(zero_copy_only=True) if len(lists.values) else np.zeros(0, np.int32)
    return Ragged(values, lists.offsets.to_numpy())


class ChunkReader:
    """Reads the chunks of a stream as they are written."""

    def __init__(self, path: Path, later: Path | None = None):
        """`later` is the file's name once it is finished, if it is then renamed."""
        self.path, self.later, self.at, self.at_end = path, later or path, 0, False
        self.schema: pa.Schema | None = None

    def more(self) -> list[Chunk]:
        """Chunks that were written since the last call; `at_end` becomes True when they include the last chunk."""
        if self.at_end:
            return []
        try:
            file = pa.memory_map(str(self.path if self.path.exists() else self.later))
        except (OSError, pa.ArrowInvalid):  # not there yet, or empty
            return []
        if file.size() <= self.at:
            return []
        chunks = []
        file.seek(self.at)
        while not self.at_end:
            try:
                message = pa.ipc.read_message(file)
            except EOFError:
                self.at_end = file.tell() - self.at == 8  # the mark of a stream's end, not half of a message
                break
            except (pa.ArrowInvalid, OSError):  # it is just being written
                break
            if self.schema is None:
                self.schema = pa.ipc.read_schema(message)
            else:
                chunks.append(Chunk(pa.ipc.read_record_batch(message, self.schema)))
            self.at = file.tell()
        return chunks

    def all(self, alive: Callable[[], None]) -> list[Chunk]:
        """The chunks that `more` has not returned yet; waits for the last chunk.

        `alive` is called while it waits, and raises if the last chunk will never come.
        """
        chunks = self.more()
        while not self.at_end:
            alive()
            time.sleep(0.02)
            chunks += self.more()
        return chunks


def stream_complete(path: Path) -> bool:
    """Whether there is a finished stream at this path."""
    return path.exists() and path.with_suffix(".json").exists()


def stream_summary(path: Path) -> dict[str, Any]:
    """The summary beside a finished stream. Raises StoreError if it is damaged."""
    try:
        return json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path.with_suffix('.json')}: damaged: {error}") from None


class EncodedDataset:
    """The R rows of some chunks, numbered from 0, and their V targets, numbered from 0 as well.

    source_lengths  (R,) tokens of each row's prompt; target_lengths  (V,) tokens of each target
    first           (R + 1,) the number of a row's first target; row_of  (V,) the row of each target
    gold, weights   (V,)
    """

    def __init__(self, chunks: Sequence[Chunk]):
        self.chunks = list(chunks)
        empty = np.zeros(0, np.int64)
        self.source_lengths = np.concatenate([empty, *(c.source.lengths() for c in chunks)])
        self.target_lengths = np.concatenate([empty, *(c.target.lengths() for c in chunks)])
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
        """The id of a row's example."""
        chunk, at = self._find(self._rows, row)
        return chunk.ids[at].as_py()

    def sources(self) -> Iterator[bytes]:
        """The bytes of each row's prompt token ids."""
        for chunk in self.chunks:
            values, offsets = chunk.source
            raw, places = values.tobytes(), (offsets * values.itemsize).tolist()
            yield from (raw[a:b] for a, b in itertools.pairwise(places))

    def source(self, row: int) -> np.ndarray:
        """(S,) token ids of the student's prompt."""
        chunk, at = self._find(self._rows, row)
        return chunk.source.row(at)

    def teacher(self, row: int) -> np.ndarray:
        """(S,) token ids of the teacher's prompt; empty where no teacher reads along."""
        chunk, at = self._find(self._rows, row)
        return chunk.teacher.row(at)

    def target(self, number: int) -> np.ndarray:
        """(T,) token ids of a target."""
        chunk, at = self._find(self._targets, number)
        return chunk.target.row(at)

    def payload(self, name: str, numbers: Iterable[int]) -> np.ndarray:
        """A payload column's values for some targets, one after the other, flat."""
        arrays = []
        for number in numbers:
            chunk, at = self._find(self._targets, number)
            arrays.append(chunk.payload[name].row(at))
        return np.concatenate(arrays)

    def _find(self, starts: np.ndarray, number: int) -> tuple[Chunk, int]:
        """The chunk of a row or target, and its number there; `starts` are the first numbers of the chunks."""
        chunk = int(np.searchsorted(starts, number, side="right")) - 1
        return self.chunks[chunk], int(number - starts[chunk])


class EncodedStream:
    """A source's stream of chunks: every worker reads it, and a thread of one worker writes it if it does not exist."""

    def __init__(self, path: Path, writes: bool, encode: Callable[[Path], Any], agree: Callable[[Any], Any]):
        """`writes`: this worker calls `encode(path)` to write it; `agree` returns the writing worker's value to all."""
        self.path, self.error = path, None
        self.part = agree(path if stream_complete(path) else path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
        self.thread = None
        if self.part != path and writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.thread = threading.Thread(target=self._write, args=(encode,), daemon=True)
            self.thread.start()
        self.reader = ChunkReader(self.part, path)

    def _write(self, encode: Callable[[Path], Any]) -> None:
        try:
            encode(self.part)
        except BaseException as error:
            self.error = error
            self.part.unlink(missing_ok=True)
            return
        self.part.with_suffix(".json").replace(self.path.with_suffix(".json"))
        self.part.replace(self.path)

    def alive(self) -> None:
        """Raise the error that ended the writing, if there was one."""
        if self.error:
            raise self.error

    def about(self) -> dict[str, Any]:
        """The stream's summary; waits until it is written. Raises the error that ended the writing, if any."""
        if self.thread:
            self.thread.join()
            self.alive()
        return stream_summary(self.path)
