"""The stages of a distillation: each a function from folder to folder, done once and then known as done.

Pipelines call these in the order of their paper's algorithm; what a stage needs of Ray it asks `raykd.cluster` for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from raykd.data import prompts
from raykd.data.examples import (
    SAVED_ROWS,
    Example,
    batched,
    chunk_order,
    load_examples,
    save_rows,
)
from raykd.data.rows import BadRows, read_examples
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.generation import EndpointEngine
from raykd.recipe.prompts import Chat
from raykd.recipe.roles import Student, Teacher
from raykd.run.files import fingerprint
from raykd.run.folder import Run

if TYPE_CHECKING:
    from raykd.store.store import Store

from raykd.stages.labelling import PROMPTS
from raykd.stages.rows import counted


def prompt_parts(side: Teacher | Student) -> Any:
    """What of a prompt decides the answers, its examples by content."""
    if isinstance(side.prompt, str):
        return side.prompt
    shown = side.prompt.shots.model_dump(mode="json", exclude={"rows"}) if side.prompt.shots else {}
    shots = fingerprint([[[e.input, e.target] for e in prompt_shots(side)], shown])
    return {**side.prompt.model_dump(mode="json", exclude={"shots"}), "shots": shots}


def prompt_shots(side: Teacher | Student) -> list[Example]:
    """The examples that the prompt shows, or among which those of each input are chosen."""
    shots = None if isinstance(side.prompt, str) else side.prompt.shots
    if shots is None:
        return []
    found = read_examples(shots.rows, BadRows(0), need_target=True)
    return list(itertools.islice(found, shots.count) if shots.choose == "first" else found)


def _renderer(side: Teacher | Student, folder: str | Path) -> Callable[[list[str]], list[str]]:
    served = isinstance(side.engine, EndpointEngine)
    chat = isinstance(side.prompt, Chat) and not served
    return prompts.renderer(side.prompt, prompt_shots(side), load_tokenizer(folder) if chat else None, served)


def write_prompts(
    run: Run,
    name: str,
    path: Path,
    keys: IO[bytes],
    side: Teacher | Student,
    folder: Path,
    sources: Sequence[Path | list[Example]],
    score: bool,
) -> int:
    """Write every rendered prompt, in order, and its key once more to a file of its own; returns how many."""
    render = _renderer(side, folder)

    def rows() -> Iterator[tuple]:
        for number, source in enumerate(sources):
            found = load_examples(source) if isinstance(source, Path) else source
            for some in batched(found, SAVED_ROWS):
                for example, prompt in zip(some, render([e.input for e in some]), strict=True):
                    target = example.target if score else None
                    key = prompts.key(prompt, target)
                    keys.write(key)
                    yield number, example.id, example.input, key, prompt, target

    with run.console.bar(f"{name}: prompts", None, "rows") as update:
        return save_rows(path, counted(rows(), update), PROMPTS)


def missing_samples(store: Store, keys: IO[bytes], count: int, n: int) -> tuple[list[tuple[np.ndarray, range]], int]:
    """Rows whose samples the store lacks, each prompt once, by which samples; and how many prompts it holds whole.

    Of `count` rows the keys are in a file. They are looked at in parts, by their first byte, to need little memory.
    """
    held, counts = store.held()
    have = np.full(count, n, np.int32)  # of a prompt's later rows, as if the store held it
    parts, reused = min(64, 1 + count // 2**16), 0
    for part in range(parts):
        rows, named = _keys(keys, part, parts)
        unique, first = np.unique(named, return_index=True)
        found = np.zeros(len(unique), np.int32)
        if len(held):
            place = np.minimum(np.searchsorted(held, unique), len(held) - 1)
            found = np.where(held[place] == unique, np.minimum(counts[place], n), 0)
        have[rows[first]] = found
        reused += int((found == n).sum())
    lacking = [number for number in range(n) if (have == number).any()]
    return [(np.flatnonzero(have == number), range(number, n)) for number in lacking], reused


def _keys(keys: IO[bytes], part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, keys) whose key's first byte is of this part, int64 and S16."""
    rows, found, before = [], [], 0
    keys.seek(0)
    while read := keys.read(2**20):
        raw = np.frombuffer(read, np.uint8).reshape(-1, 16)
        chosen = np.flatnonzero(raw[:, 0] % parts == part)
        rows.append(chosen + before)
        found.append(raw[chosen])
        before += len(raw)
    return np.concatenate(rows), np.concatenate(found).reshape(-1).view("S16")


def in_chunk_order(rows: np.ndarray, chunk: int, seed: int) -> np.ndarray:
    """Rising rows in the order of their chunks, which a student that follows has as well."""
    last = int(rows[-1]) // chunk + 1
    rank = np.empty(last, np.int64)
    starts = [part.start // chunk for part in chunk_order(last * chunk, chunk, seed)]
    rank[starts] = np.arange(last)
    return rows[np.argsort(rank[rows // chunk], kind="stable")]


def rejected_rows(name: str, asked: Path, refused: dict[bytes, str]) -> list[dict]:
    """Bad rows of refused prompts, by the ids of their examples."""
    if not refused:
        return []
    rows = pq.read_table(asked, columns=["id", "key"])
    bad = []
    for row, key in zip(rows["id"].to_pylist(), rows["key"].to_pylist(), strict=True):
        if key in refused:
            bad.append({"file": name, "line": None, "reason": f"row {row}: {refused[key]}"})
    return bad
