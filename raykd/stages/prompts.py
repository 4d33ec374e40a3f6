"""The prompts of a labelling are rendered, written, and compared with the samples in the store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from raykd.data import prompts
from raykd.data.examples import SAVED_ROWS, Example, batched, chunk_order, load_examples, save_rows
from raykd.data.rows import BadRows, read_examples
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.generation import EndpointEngine
from raykd.recipe.prompts import Chat
from raykd.recipe.roles import Student, Teacher
from raykd.run.files import fingerprint
from raykd.run.session import Session
from raykd.stages.labelling import PROMPTS, LabellingRequest
from raykd.stages.rows import counted
from raykd.store.read import sample_counts
from raykd.store.store import Store

KEY_PART = 2**16  # about how many prompts' keys are compared with the store's at once


class PromptRows(NamedTuple):
    """Rows of a file of prompts that lack the same samples in the store."""

    rows: np.ndarray  # (N,) int64, rising
    samples: range


class Missing(NamedTuple):
    """The samples that a store lacks, and the number of prompts of which it holds all samples."""

    parts: list[PromptRows]
    complete: int

    def count(self) -> int:
        """The number of prompts that lack samples in the store."""
        return sum(len(part.rows) for part in self.parts)


def prompt_parts(role: Teacher | Student) -> Any:
    """The settings of a role's prompt that decide its pseudo-targets, as JSON; shots are a hash of their content."""
    if isinstance(role.prompt, str):
        return role.prompt
    settings = role.prompt.shots.model_dump(mode="json", exclude={"rows"}) if role.prompt.shots else {}
    shots = fingerprint([[[e.input, e.target] for e in prompt_shots(role)], settings])
    return {**role.prompt.model_dump(mode="json", exclude={"shots"}), "shots": shots}


def prompt_shots(role: Teacher | Student) -> list[Example]:
    """The examples of the prompt, or the candidates from which the examples for each input are selected."""
    shots = None if isinstance(role.prompt, str) else role.prompt.shots
    if shots is None:
        return []
    examples = read_examples(shots.rows, BadRows(0), need_target=True)
    return list(itertools.islice(examples, shots.count) if shots.choose == "first" else examples)


def _renderer(role: Teacher | Student, folder: str | Path) -> Callable[[list[str]], list[str]]:
    endpoint = isinstance(role.engine, EndpointEngine)
    chat = isinstance(role.prompt, Chat) and not endpoint
    return prompts.renderer(role.prompt, prompt_shots(role), load_tokenizer(folder) if chat else None, endpoint)


def write_prompts(session: Session, request: LabellingRequest, folder: Path, path: Path, keys: IO[bytes]) -> int:
    """Write the rendered prompts of a request to a parquet file of schema PROMPTS; returns the number of prompts.

    Rows are in the order of the sources, then of their examples. `folder` is the model's, for its chat template. Their
    keys are also written, 16 bytes each, to the binary file `keys`.
    """
    render = _renderer(request.role, folder)

    def rows() -> Iterator[tuple]:
        for name, source in request.sources.items():
            examples = load_examples(source) if isinstance(source, Path) else source
            for batch in batched(examples, SAVED_ROWS):
                for example, prompt in zip(batch, render([e.input for e in batch]), strict=True):
                    target = example.target if request.score else None
                    key = prompts.key(prompt, target)
                    keys.write(key)
                    yield name, example.id, example.input, key, prompt, target

    with session.console.bar(f"{request.name}: prompts", None, "rows") as update:
        return save_rows(path, counted(rows(), update), PROMPTS)


def missing_samples(store: Store, keys: IO[bytes], count: int, samples: int) -> Missing:
    """Which of the first `samples` samples of each prompt the store lacks; prompts that are equal count once.

    `keys` holds the keys of `count` prompts, 16 bytes each. They are compared in several parts, selected by the key's
    first byte, so that little memory is needed. Raises StoreError for a damaged shard.
    """
    stored = sample_counts(store)
    present = np.full(count, samples, np.int32)  # later rows of the same prompt stay as if the store held them
    parts, complete = min(64, 1 + count // KEY_PART), 0
    for part in range(parts):
        rows, part_keys = _keys(keys, part, parts)
        unique, first = np.unique(part_keys, return_index=True)
        in_store = np.zeros(len(unique), np.int32)
        if len(stored.keys):
            place = np.minimum(np.searchsorted(stored.keys, unique), len(stored.keys) - 1)
            in_store = np.where(stored.keys[place] == unique, np.minimum(stored.samples[place], samples), 0)
        present[rows[first]] = in_store
        complete += int((in_store == samples).sum())
    starts = [start for start in range(samples) if (present == start).any()]
    return Missing([PromptRows(np.flatnonzero(present == start), range(start, samples)) for start in starts], complete)


def _keys(keys: IO[bytes], part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, keys), int64 and S16, of the prompts whose key has a first byte that belongs to this part."""
    rows, part_keys, before = [], [], 0
    keys.seek(0)
    while read := keys.read(2**20):
        raw = np.frombuffer(read, np.uint8).reshape(-1, 16)
        matches = np.flatnonzero(raw[:, 0] % parts == part)
        rows.append(matches + before)
        part_keys.append(raw[matches])
        before += len(raw)
    return np.concatenate(rows), np.concatenate(part_keys).reshape(-1).view("S16")


def in_chunk_order(rows: np.ndarray, chunk: int, seed: int) -> np.ndarray:
    """Rising row numbers in the order of `chunk_order`'s chunks, in which a student that follows reads them."""
    last = int(rows[-1]) // chunk + 1
    rank = np.empty(last, np.int64)
    starts = [part.start // chunk for part in chunk_order(last * chunk, chunk, seed)]
    rank[starts] = np.arange(last)
    return rows[np.argsort(rank[rows // chunk], kind="stable")]


def rejected_rows(name: str, prompts_file: Path, rejected: dict[bytes, str]) -> list[dict]:
    """A bad row {file, line, reason, row} for each prompt that the model rejected; `rejected` maps keys to reasons."""
    if not rejected:
        return []
    rows = pq.read_table(prompts_file, columns=["id", "key"])
    bad_rows = []
    for row, key in zip(rows["id"].to_pylist(), rows["key"].to_pylist(), strict=True):
        if key in rejected:
            bad_rows.append({"file": name, "line": None, "reason": rejected[key], "row": row})
    return bad_rows
