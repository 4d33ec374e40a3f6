"""Examples: inputs with their known targets and references; their parquet files and chunks."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 8192  # rows of parquet and of data sets decoded at once
SAVED_ROWS = 1024  # rows of a row group, the smallest part of a file that can be read
EXAMPLES = pa.schema(
    [("id", pa.string()), ("input", pa.string()), ("target", pa.string()), ("references", pa.list_(pa.string()))]
)


@dataclass(frozen=True)
class Lineage:
    """The origin of a pseudo-target.

    by         "teacher", or the name of the training whose student wrote it; after a vote, several joined by +
    round      the round of MCKD; 0 for the teacher
    partition  the partition that its input is in
    score      mean natural log-probability of its tokens by the model that wrote it; None if not known
    agreement  0 to 1: its share of the votes, or its score in the consistency filter; None if it had neither
    """

    by: str
    round: int = 0
    partition: int | None = None
    score: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Example:
    """An input with its correct target, if one is known. `references` are further correct targets, for scoring only.

    An example whose target is a pseudo-target has a lineage. `weight` is its weight in the loss.
    """

    id: str
    input: str
    target: str | None = None
    references: tuple[str, ...] = ()
    weight: float = 1.0
    lineage: Lineage | None = None

    def references_with_target(self) -> list[str]:
        """The target, then the references, without duplicates; empty if there are none."""
        texts = (self.target, *self.references)
        return list(dict.fromkeys(text for text in texts if text is not None))


def save_rows(path: Path, rows: Iterable[tuple], schema: pa.Schema) -> int:
    """Write rows, tuples in the schema's order, to a parquet file, which appears whole or not at all.

    Rows are written as the iterable yields them. Returns the number of rows.
    """
    part = path.with_name(f".{path.name}.part")
    count = 0
    with pq.ParquetWriter(part, schema, compression="zstd") as file:
        for batch in batched(rows, SAVED_ROWS):
            columns = [pa.array(cells, kind.type) for cells, kind in zip(zip(*batch, strict=True), schema, strict=True)]
            file.write_batch(pa.record_batch(columns, schema=schema), SAVED_ROWS)
            count += len(batch)
    os.replace(part, path)
    return count


def save_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples to a parquet file, as `save_rows`; returns how many. Weights and lineages are not in it."""
    return save_rows(path, ((e.id, e.input, e.target, list(e.references)) for e in examples), EXAMPLES)


def load_examples(path: Path) -> Iterator[Example]:
    """The examples that `save_examples` wrote."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            for id_, input_, target, references in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                yield Example(id=id_, input=input_, target=target, references=tuple(references))


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def chunk_order(count: int, size: int, seed: int) -> list[range]:
    """Chunks of `size` consecutive rows, in the order in which the teacher labels them and a student follows."""
    starts = np.random.default_rng([seed, 31]).permutation(math.ceil(count / size)) * size
    return [range(start, min(start + size, count)) for start in starts.tolist()]
