"""Rows as token ids: encoded once, kept as an Arrow stream, mapped into memory, and read while it is still written.

A record batch is a chunk of rows:

    id            string
    source        list<int32>              the student's prompt
    teacher       list<int32>              the teacher's prompt, where a teacher reads along; else empty
    targets       list<list<int32>>        the row's targets, with their end token
    gold          list<bool>               whether a target is gold
    weights       list<float>              what a target counts for in the loss
    <payload>     list<list<...>>          what the store kept of each target, one after the other

Beside a finished stream there is `<name>.json`: {rows, bad_rows, cut, empty, missing}: targets that were
cut or are empty, and rows without a target because the teacher refused them.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd import models, payloads, prompts, remote
from raykd.data import Example, chunk_order
from raykd.errors import DataError, StoreError, TrainingError
from raykd.recipe import Payload, Prompt, Task
from raykd.store import ROW, Store

CHUNK = 1024  # rows of a chunk that comes from a file
POLL = 0.5  # seconds between looks at a store that is being written
KEPT_SHARDS = 8  # decoded, while chunks are made of them
TEXT = {"text": pa.string(), "finish_reason": pa.string()}
KINDS = {
    "top_k": {"top_ids": pa.int32(), "top_logprobs": pa.float32(), "logprobs": pa.float32()},
    "sampled": {"sampled_ids": pa.int32(), "sampled_counts": pa.uint8(), "sampled_lengths": pa.uint8()},
    "hidden": {"hidden": pa.float16()},
    "text": {},
}


@dataclass(frozen=True)
class Rows:
    """Rows of a JSONL file: {id, input, target, perhaps weight}; pseudo-targets of one input that follow each other
    are several targets of one row.
    """

    path: str


@dataclass(frozen=True)
class Stored:
    """Prompts and where their answers are, or will be.

    sources   which of the prompts' sources; n samples of each
    chunk     rows that the teacher pass asks for together, and seed, the order in which it does
    tokens    take the teacher's token ids as targets, and payload; else its texts
    follow    the store is still written
    gold      a parquet file of examples whose targets are further targets of the prompts with the same input
    """

    prompts: str
    store: str
    sources: tuple[int, ...]
    n: int
    chunk: int
    seed: int
    tokens: bool = False
    payload: Payload | None = None
    follow: bool = False
    gold: str | None = None


@dataclass(frozen=True)
class Reading:
    """How prompts are made and read: the tokenizer's folder, the prompt and its examples."""

    tokenizer: str
    prompt: Prompt
    shots: tuple[Example, ...] = ()
    encoder: bool = False  # an encoder-decoder, whose inputs end with an end token
    task: Task = "generation"
    labels: tuple[str, ...] | None = None  # the classes of a classification


@dataclass(frozen=True)
class Limits:
    """What becomes of rows that do not fit, as in `recipe.Training`; and whose rows they are, for messages."""

    name: str
    input_tokens: int
    target_tokens: int
    long_targets: str
    empty_targets: str
    bad_rows: int  # tolerated


class Target(NamedTuple):
    """A target as it is found: its text, or its token ids with what the store kept of them."""

    text: str
    ids: list[int] | np.ndarray | None = None
    gold: bool = False
    payload: dict[str, np.ndarray] = {}
    weight: float = 1.0


Row = tuple[str, str, list[Target]]  # id, input, targets


# ------------------------------------------------------------------------------------------------ writing


def write(
    path: Path,
    source: Rows | tuple[Stored, ...],
    student: Reading,
    teacher: Reading | None,
    limits: Limits,
) -> dict[str, Any]:
    """Encode a source into the stream at `path`, chunk after chunk; returns what is in its `.json`.

    Targets of an encoder's head are the numbers of `heads`. Raises DataError for more bad rows than tolerated,
    TrainingError where the disk is full.
    """
    payload = None if isinstance(source, Rows) else source[0].payload
    kind = payload.kind if payload else "text"
    encoder = _Encoder(student, teacher, limits, kind)
    found = _of_file(source) if isinstance(source, Rows) else (rows for one in source for rows in _of_store(one))
    try:
        with pa.OSFile(str(path), "wb") as file:
            out = pa.ipc.new_stream(file, encoder.schema)
            for rows in found:
                out.write_batch(encoder.batch(rows))
            out.close()  # only here: it writes the mark of the end
        about = {"rows": encoder.rows, "bad_rows": encoder.bad, "cut": encoder.cut}
        about |= {"empty": encoder.empty, "missing": encoder.missing}
        path.with_suffix(".json").write_text(json.dumps(about))
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror or error}") from None
    return about


class _Encoder:
    """Chunks of rows to record batches, and what was met on the way."""

    def __init__(self, student: Reading, teacher: Reading | None, limits: Limits, kind: str):
        self.limits, self.kinds, self.reading = limits, KINDS[kind], student
        self.student, self.teacher = _reader(student), _reader(teacher) if teacher else None
        self.writes = student.task == "generation"
        self.tokenizer, self.causal = models.load_tokenizer(student.tokenizer, self.writes), not student.encoder
        self.rows = self.cut = self.empty = self.missing = 0
        self.bad: list[str] = []
        fields = [("id", pa.string()), ("source", pa.list_(pa.int32())), ("teacher", pa.list_(pa.int32()))]
        fields += [("targets", pa.list_(pa.list_(pa.int32()))), ("gold", pa.list_(pa.bool_()))]
        fields += [("weights", pa.list_(pa.float32()))]
        fields += [(name, pa.list_(pa.list_(kind))) for name, kind in self.kinds.items()]
        self.schema = pa.schema(fields)

    def batch(self, rows: list[Row]) -> pa.RecordBatch:
        shown, sources = self.student([text for _, text, _ in rows])
        taught = self.teacher([text for _, text, _ in rows])[1] if self.teacher else [[]] * len(rows)
        texts = [t.text for _, _, targets in rows for t in targets if t.ids is None]
        if self.writes:
            read: Iterator[Any] = iter(models.encode_targets(self.tokenizer, texts))
        else:
            prompts = [prompt for prompt, (_, _, targets) in zip(shown, rows, strict=True) for _ in targets]
            read = iter([self._numbers(prompt, text) for prompt, text in zip(prompts, texts, strict=True)])
        kept: list[tuple[str, list[int], list[int], list[tuple[Any, Target]]]] = []
        for (name, _, targets), source, teacher in zip(rows, sources, taught, strict=True):
            encoded = [(next(read) if t.ids is None else t.ids, t) for t in targets]
            if not targets:
                self.missing += 1  # refused by the teacher, and reported there
                continue
            good = self._good(name, source, encoded)
            if good:
                kept.append((name, source, teacher, good))
        self.rows += len(kept)
        columns: list[pa.Array] = [
            pa.array([k[0] for k in kept], pa.string()),
            _lists([k[1] for k in kept], pa.int32()),
            _lists([k[2] for k in kept], pa.int32()),
            _nested([[ids for ids, _ in k[3]] for k in kept], pa.int32()),
            pa.array([[t.gold for _, t in k[3]] for k in kept], pa.list_(pa.bool_())),
            pa.array([[t.weight for _, t in k[3]] for k in kept], pa.list_(pa.float32())),
        ]
        for name, kind in self.kinds.items():
            columns.append(_nested([[t.payload.get(name, ()) for _, t in k[3]] for k in kept], kind))
        return pa.record_batch(columns, schema=self.schema)

    def _numbers(self, prompt: str, target: str) -> list[int] | str:
        """A target of an encoder's head, or what is wrong with it."""
        from raykd import heads

        try:
            return heads.numbers(self.reading.task, self.reading.labels, self.tokenizer, prompt, target)
        except ValueError as error:
            return str(error)

    def _good(self, name: str, source: list[int], targets: list[tuple[Any, Target]]) -> list[tuple[Any, Target]]:
        """The targets that can be learnt; others are bad rows, or are cut, as the recipe says."""
        limits, reason, good = self.limits, "", []
        if len(source) > limits.input_tokens:
            reason = f"input of {len(source)} tokens, at most {limits.input_tokens}"
        elif not source and self.causal:
            reason = "input of no tokens"
        for ids, target in targets if not reason else ():
            if isinstance(ids, str):
                reason = ids
            elif len(ids) > limits.target_tokens and limits.long_targets == "refuse":
                reason = f"target of {len(ids)} tokens, at most {limits.target_tokens}"
            elif not len(ids) or (not target.text.strip() and limits.empty_targets == "refuse"):
                reason = "target is empty"
            else:
                self.empty += not target.text.strip()
                self.cut += len(ids) > limits.target_tokens
                good.append(self._cut(ids, target) if len(ids) > limits.target_tokens else (ids, target))
        if reason:
            self.bad.append(f"row {name}: {reason}")
            if len(self.bad) > limits.bad_rows:
                counted = f"(bad row {len(self.bad)}, {limits.bad_rows} tolerated)"
                raise DataError(f"{limits.name}: {self.bad[-1]} {counted}")
        return good

    def _cut(self, ids: Any, target: Target) -> tuple[Any, Target]:
        """The first tokens alone, and what the store kept of them."""
        count, most = len(ids), self.limits.target_tokens
        payload = dict(target.payload)
        if "sampled_lengths" in payload:
            inside = int(np.asarray(payload["sampled_lengths"][:most], np.int64).sum())
            payload = {n: v[: most if n == "sampled_lengths" else inside] for n, v in payload.items()}
        else:
            payload = {n: v[: len(v) // count * most] for n, v in payload.items()}
        return ids[:most], target._replace(payload=payload)


def _reader(reading: Reading) -> Callable[[list[str]], tuple[list[str], list[list[int]]]]:
    """Inputs to their prompts, and to the prompts' token ids."""
    tokenizer = models.load_tokenizer(reading.tokenizer, reading.task == "generation")
    render, special = prompts.renderer(reading.prompt, reading.shots, tokenizer), prompts.special_tokens(reading.prompt)

    def read(texts: list[str]) -> tuple[list[str], list[list[int]]]:
        shown = render(texts)
        return shown, models.encode_inputs(tokenizer, shown, reading.encoder, special)

    return read


def _lists(rows: Sequence[Any], kind: pa.DataType) -> pa.ListArray:
    sizes = np.array([len(row) for row in rows], np.int64)
    values = np.concatenate([np.zeros(0, kind.to_pandas_dtype()), *(np.asarray(row) for row in rows)])
    return payloads.lists("token ids", values, sizes, kind)


def _nested(rows: Sequence[Sequence[Any]], kind: pa.DataType) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, _lists([one for row in rows for one in row], kind))


# ----------------------------------------------------------------------------------------------- sources


def _of_file(source: Rows) -> Iterator[list[Row]]:
    def asked(row: dict[str, Any]) -> Any:
        return row["input"] if "by" in row else object()  # which is equal to nothing else

    with open(source.path, encoding="utf-8") as file:
        found = (list(several) for _, several in itertools.groupby(map(json.loads, file), asked))
        while rows := list(itertools.islice(found, CHUNK)):
            yield [(some[0]["id"], some[0]["input"], [_given(row) for row in some]) for some in rows]


def _given(row: dict[str, Any]) -> Target:
    return Target(row["target"], weight=row.get("weight", 1.0))


def _of_store(source: Stored) -> Iterator[list[Row]]:
    """Chunks in the order of the teacher pass, each as soon as every answer of it is there or will never be."""
    store = Store(source.store, source.payload)
    names = ["text", *(["token_ids", *KINDS[store.wanted.kind]] if source.tokens else [])]
    gold = _gold(source.gold)
    index = _Index(store, source.follow, Path(source.prompts).with_name("pass.json"))
    with pq.ParquetFile(source.prompts) as file:
        for rows in chunks_of(source):
            asked = _read(file, rows)
            asked = asked.filter(pa.array(np.isin(asked["source"].to_numpy(), source.sources)))
            keys = asked["key"].to_pylist()
            wanted = np.zeros(len(keys) * source.n, ROW)
            wanted["key"] = np.repeat(np.array(keys, "S16"), source.n)
            wanted["sample"] = np.tile(np.arange(source.n), len(keys))
            answers = index.answers(wanted, names)
            found: list[Row] = []
            for at, (name, text) in enumerate(zip(asked["id"].to_pylist(), asked["input"].to_pylist(), strict=True)):
                targets = [_target(a, source.tokens) for a in answers[at * source.n : (at + 1) * source.n] if a]
                if text in gold:
                    targets.append(Target(gold[text], gold=True))
                found.append((name, text, targets))
            yield found


def _target(answer: dict[str, Any], tokens: bool) -> Target:
    if not tokens:
        return Target(answer["text"])
    payload = {name: values for name, values in answer.items() if name not in ("text", "token_ids")}
    return Target(answer["text"], answer["token_ids"], payload=payload)


def _gold(path: str | None) -> dict[str, str]:
    if path is None:
        return {}
    table = pq.read_table(path, columns=["input", "target"])
    return dict(zip(table["input"].to_pylist(), table["target"].to_pylist(), strict=True))


def _read(file: pq.ParquetFile, rows: range) -> pa.Table:
    """Consecutive rows of a file; only their row groups are read."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    first, last = np.searchsorted(ends, [rows.start, rows.stop - 1], side="right")
    found = file.read_row_groups(list(range(first, last + 1)), columns=["source", "id", "input", "key"])
    return found.slice(rows.start - int(ends[first] - sizes[first]), len(rows))


class _Index:
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


def chunks_of(source: Stored) -> list[range]:
    """Rows of the prompts' file that are read together, in the order of the teacher pass; of its sources alone."""
    of = pq.read_table(source.prompts, columns=["source"])["source"].to_numpy()
    wanted = np.isin(of, source.sources)
    chunks = chunk_order(len(of), source.chunk, source.seed)
    return [rows for rows in chunks if wanted[rows.start : rows.stop].any()]


# ----------------------------------------------------------------------------------------------- reading


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


class Reader:
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


def complete(path: Path) -> bool:
    """Whether a finished stream is there."""
    return path.exists() and path.with_suffix(".json").exists()


def about(path: Path) -> dict[str, Any]:
    """What is beside a finished stream. Raises StoreError where it is damaged."""
    try:
        return json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path.with_suffix('.json')}: damaged: {error}") from None


class Set:
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
