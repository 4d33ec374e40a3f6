"""Encoding: a source's rows, tokenized for student and teacher, written as an Arrow stream (see `dataset`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raykd.data import prompts
from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource, StoredSource
from raykd.errors import DataError, TrainingError
from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
from raykd.store.ragged import list_array
from raykd.training.dataset import PAYLOAD_COLUMNS, encoded_schema
from raykd.training.sources import Row, Target, read_file, read_store


@dataclass(frozen=True)
class Limits:
    """What becomes of rows that do not fit, as in `recipe.Training`; and whose rows they are, for messages."""

    name: str
    input_tokens: int
    target_tokens: int
    long_targets: str
    empty_targets: str
    bad_rows: int  # tolerated


class _Prompts(NamedTuple):
    """Inputs as a model reads them."""

    texts: list[str]
    ids: list[list[int]]


class _EncodedTarget(NamedTuple):
    ids: Any  # (T,) token ids, or the numbers of an encoder's head; the reason where the target is unusable
    target: Target


class _EncodedRow(NamedTuple):
    id: str
    source: list[int]
    teacher: list[int]
    targets: list[_EncodedTarget]


def encode_source(
    path: Path,
    source: FileSource | tuple[StoredSource, ...],
    student: PromptEncoder,
    teacher: PromptEncoder | None,
    limits: Limits,
) -> dict[str, Any]:
    """Encode a source into the stream at `path`, chunk after chunk; returns the summary, also written as its `.json`.

    `teacher` is how a teacher that reads along makes its prompts. A text target becomes token ids with an end token;
    for a student with an encoder's head, the numbers of `raykd.models.task_heads`. A summary: {rows, bad_rows, cut,
    empty, missing}, see `dataset`.

    Raises DataError for more bad rows than tolerated, TrainingError where the disk is full or a pass that is followed
    has failed, StoreError for a damaged shard.
    """
    payload = None if isinstance(source, FileSource) else source[0].payload
    encoder = _Encoder(student, teacher, limits, PAYLOAD_COLUMNS[payload.kind if payload else "text"])
    if isinstance(source, FileSource):
        chunks = read_file(source)
    else:
        chunks = (chunk for stored in source for chunk in read_store(stored))
    try:
        with pa.OSFile(str(path), "wb") as file:
            out = pa.ipc.new_stream(file, encoder.schema)
            for chunk in chunks:
                out.write_batch(encoder.batch(chunk))
            out.close()  # only here: it writes the mark of the end
        summary = encoder.summary()
        path.with_suffix(".json").write_text(json.dumps(summary))
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror or error}") from None
    return summary


class _Encoder:
    """Turns chunks of rows into record batches, and counts what is cut, empty, missing or bad."""

    def __init__(
        self, student: PromptEncoder, teacher: PromptEncoder | None, limits: Limits, payload: dict[str, pa.DataType]
    ):
        self.limits, self.payload, self.prompt_encoder = limits, payload, student
        self.student, self.teacher = _prompt_function(student), _prompt_function(teacher) if teacher else None
        self.writes = student.task == "generation"
        self.tokenizer, self.causal = load_tokenizer(student.tokenizer, self.writes), not student.encoder
        self.rows = self.cut = self.empty = self.missing = 0
        self.bad_rows: list[dict[str, str]] = []
        self.schema = encoded_schema(payload)

    def summary(self) -> dict[str, Any]:
        """Counts of the rows so far, and the bad ones."""
        names = ("rows", "bad_rows", "cut", "empty", "missing")
        return {name: getattr(self, name) for name in names}

    def batch(self, chunk: list[Row]) -> pa.RecordBatch:
        """The good rows of a chunk. Raises DataError for more bad rows than tolerated."""
        rows = self._good_rows(chunk)
        self.rows += len(rows)
        payload = [
            _nested([[t.target.payload.get(name, ()) for t in row.targets] for row in rows], kind)
            for name, kind in self.payload.items()
        ]
        columns: list[pa.Array] = [
            pa.array([row.id for row in rows], pa.string()),
            _lists([row.source for row in rows], pa.int32()),
            _lists([row.teacher for row in rows], pa.int32()),
            _nested([[t.ids for t in row.targets] for row in rows], pa.int32()),
            pa.array([[t.target.gold for t in row.targets] for row in rows], pa.list_(pa.bool_())),
            pa.array([[t.target.weight for t in row.targets] for row in rows], pa.list_(pa.float32())),
            *payload,
        ]
        return pa.record_batch(columns, schema=self.schema)

    def _good_rows(self, chunk: list[Row]) -> list[_EncodedRow]:
        """The rows of a chunk that can be learnt, each with its targets that can be learnt."""
        inputs = [row.input for row in chunk]
        student = self.student(inputs)
        teacher_ids = self.teacher(inputs).ids if self.teacher else [[]] * len(chunk)
        target_ids = self._target_ids(chunk, student.texts)
        rows = []
        for row, source, teacher in zip(chunk, student.ids, teacher_ids, strict=True):
            targets = [_EncodedTarget(next(target_ids) if t.ids is None else t.ids, t) for t in row.targets]
            if not targets:
                self.missing += 1  # the teacher rejected its input, and its labelling reports that
                continue
            good = self._good_targets(row.id, source, targets)
            if good:
                rows.append(_EncodedRow(row.id, source, teacher, good))
        return rows

    def _target_ids(self, chunk: list[Row], prompt_texts: list[str]) -> Iterator[Any]:
        """For each target that comes as text, in order, its token ids or its head's numbers, or why it has none."""
        if self.writes:
            texts = [target.text for row in chunk for target in row.targets if target.ids is None]
            return iter(encode_targets(self.tokenizer, texts))
        return (
            self._head_numbers(prompt, target.text)
            for prompt, row in zip(prompt_texts, chunk, strict=True)
            for target in row.targets
            if target.ids is None
        )

    def _head_numbers(self, prompt: str, target: str) -> list[int] | str:
        """The numbers of a target for an encoder's head, or why it has none."""
        from raykd.models import task_heads

        encoder = self.prompt_encoder
        try:
            return task_heads.encode_target(encoder.task, encoder.labels, self.tokenizer, prompt, target)
        except ValueError as error:
            return str(error)

    def _good_targets(self, name: str, source: list[int], targets: list[_EncodedTarget]) -> list[_EncodedTarget]:
        """The targets that can be learnt, cut where the recipe says so; a row with any other is a bad row."""
        limits, reason, good = self.limits, "", []
        if len(source) > limits.input_tokens:
            reason = f"input of {len(source)} tokens, at most {limits.input_tokens}"
        elif not source and self.causal:
            reason = "input of no tokens"
        for encoded in targets if not reason else ():
            ids, text = encoded.ids, encoded.target.text
            if isinstance(ids, str):
                reason = ids
            elif len(ids) > limits.target_tokens and limits.long_targets == "refuse":
                reason = f"target of {len(ids)} tokens, at most {limits.target_tokens}"
            elif not len(ids) or (not text.strip() and limits.empty_targets == "refuse"):
                reason = "target is empty"
            else:
                self.empty += not text.strip()
                self.cut += len(ids) > limits.target_tokens
                good.append(_cut(encoded, limits.target_tokens))
        if reason:
            self.bad_rows.append({"row": name, "reason": reason})
            if len(self.bad_rows) > limits.bad_rows:
                counts = f"(bad row {len(self.bad_rows)}, {limits.bad_rows} tolerated)"
                raise DataError(f"{limits.name}: row {name}: {reason} {counts}")
        return good


def _cut(encoded: _EncodedTarget, most: int) -> _EncodedTarget:
    """A target's first `most` tokens, with the payload of these tokens."""
    ids, target = encoded
    if len(ids) <= most:
        return encoded
    payload = dict(target.payload)
    if "sampled_lengths" in payload:
        inside = int(np.asarray(payload["sampled_lengths"][:most], np.int64).sum())
        payload = {n: v[: most if n == "sampled_lengths" else inside] for n, v in payload.items()}
    else:
        payload = {n: v[: len(v) // len(ids) * most] for n, v in payload.items()}
    return _EncodedTarget(ids[:most], target._replace(payload=payload))


def _prompt_function(encoder: PromptEncoder) -> Callable[[list[str]], _Prompts]:
    """A function from inputs to their prompts."""
    tokenizer = load_tokenizer(encoder.tokenizer, encoder.task == "generation")
    render = prompts.renderer(encoder.prompt, encoder.shots, tokenizer)
    special_tokens = prompts.special_tokens(encoder.prompt)

    def to_prompts(inputs: list[str]) -> _Prompts:
        texts = render(inputs)
        return _Prompts(texts, encode_inputs(tokenizer, texts, encoder.encoder, special_tokens))

    return to_prompts


def _lists(rows: Sequence[Any], kind: pa.DataType) -> pa.ListArray:
    sizes = np.array([len(row) for row in rows], np.int64)
    values = np.concatenate([np.zeros(0, kind.to_pandas_dtype()), *(np.asarray(row) for row in rows)])
    return list_array("token ids", values, sizes, kind)


def _nested(rows: Sequence[Sequence[Any]], kind: pa.DataType) -> pa.ListArray:
    """Lists of lists: of each row its targets, of each target its values."""
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, _lists([values for row in rows for values in row], kind))
