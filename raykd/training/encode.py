"""TODO: docstring."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raykd.data import prompts
from raykd.data.prompts import PromptEncoder
from raykd.errors import DataError, TrainingError
from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
from raykd.store import payloads
from raykd.training.sources import PAYLOAD_COLUMNS, FileSource, Row, StoredSource, Target, read_file, read_store


@dataclass(frozen=True)
class Limits:
    """What becomes of rows that do not fit, as in `recipe.Training`; and whose rows they are, for messages."""

    name: str
    input_tokens: int
    target_tokens: int
    long_targets: str
    empty_targets: str
    bad_rows: int  # tolerated


def encode_source(
    path: Path,
    source: FileSource | tuple[StoredSource, ...],
    student: PromptEncoder,
    teacher: PromptEncoder | None,
    limits: Limits,
) -> dict[str, Any]:
    """Encode a source into the stream at `path`, chunk after chunk; returns what is in its `.json`.

    Targets of an encoder's head are the numbers of `heads`. Raises DataError for more bad rows than tolerated,
    TrainingError where the disk is full.
    """
    payload = None if isinstance(source, FileSource) else source[0].payload
    kind = payload.kind if payload else "text"
    encoder = _Encoder(student, teacher, limits, kind)
    found = (
        read_file(source) if isinstance(source, FileSource) else (rows for one in source for rows in read_store(one))
    )
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

    def __init__(self, student: PromptEncoder, teacher: PromptEncoder | None, limits: Limits, kind: str):
        self.limits, self.kinds, self.reading = limits, PAYLOAD_COLUMNS[kind], student
        self.student, self.teacher = _reader(student), _reader(teacher) if teacher else None
        self.writes = student.task == "generation"
        self.tokenizer, self.causal = load_tokenizer(student.tokenizer, self.writes), not student.encoder
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
            read: Iterator[Any] = iter(encode_targets(self.tokenizer, texts))
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
        from raykd.models import task_heads

        try:
            return task_heads.numbers(self.reading.task, self.reading.labels, self.tokenizer, prompt, target)
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


def _reader(reading: PromptEncoder) -> Callable[[list[str]], tuple[list[str], list[list[int]]]]:
    """Inputs to their prompts, and to the prompts' token ids."""
    tokenizer = load_tokenizer(reading.tokenizer, reading.task == "generation")
    render, special = prompts.renderer(reading.prompt, reading.shots, tokenizer), prompts.special_tokens(reading.prompt)

    def read(texts: list[str]) -> tuple[list[str], list[list[int]]]:
        shown = render(texts)
        return shown, encode_inputs(tokenizer, shown, reading.encoder, special)

    return read


def _lists(rows: Sequence[Any], kind: pa.DataType) -> pa.ListArray:
    sizes = np.array([len(row) for row in rows], np.int64)
    values = np.concatenate([np.zeros(0, kind.to_pandas_dtype()), *(np.asarray(row) for row in rows)])
    return payloads.lists("token ids", values, sizes, kind)


def _nested(rows: Sequence[Sequence[Any]], kind: pa.DataType) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, _lists([one for row in rows for one in row], kind))
