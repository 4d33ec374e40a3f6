"""TODO: docstring."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raykd.data.examples import (
    SAVED_ROWS,
    Example,
    Lineage,
)
from raykd.recipe.generation import Payload
from raykd.recipe.training import StoredOutputs, Training

if TYPE_CHECKING:
    from raykd.training.sources import StoredSource


PASS = "pass.json"  # of a labelling, beside its prompts
SPENT = "spent.json"  # there as well: what it took so far
TEACHER_LINEAGE = Lineage("teacher")
PROMPTS = pa.schema(
    [
        ("source", pa.int32()),
        ("id", pa.string()),
        ("input", pa.string()),
        ("key", pa.binary(16)),
        ("prompt", pa.string()),
        ("target", pa.string()),  # where it is given, and only to be read
    ]
)


@dataclass(frozen=True)
class Labelling:
    """A labelling: the file of its prompts, the store of the answers, samples per prompt.

    mark names what was asked; payload is what was asked for beside texts; chunk, seed: the order of the asking.
    `gold`, a parquet file of examples, gives further targets. `follow`: it may still go on.
    """

    prompts: Path
    store: str
    n: int
    mark: str
    payload: Payload
    chunk: int
    seed: int
    sources: tuple[int, ...] = (0,)
    gold: Path | None = None
    follow: bool = False

    def source(self, training: Training) -> StoredSource:
        """As rows that a student learns."""
        from raykd.training.sources import StoredSource

        tokens = training.needs_teacher() and isinstance(training.teacher, StoredOutputs)
        return StoredSource(
            str(self.prompts),
            self.store,
            self.sources,
            self.n,
            self.chunk,
            self.seed,
            tokens,
            self.payload if tokens else None,
            self.follow,
            str(self.gold) if self.gold else None,
        )

    def answers(self, source: int, lineage: Lineage, most: int | None = None) -> list[list[Example]]:
        """Of each input of a source the model's answers as targets: pseudo-targets, with this lineage and their score.

        Ids of several samples end in #0, #1, ...; an input the model refused is left out. `most`: of the first inputs.
        """
        from raykd.store.store import Store

        asked: list[tuple[str, str, bytes]] = []
        with pq.ParquetFile(self.prompts) as file:
            for batch in file.iter_batches(SAVED_ROWS, columns=["source", "id", "input", "key"]):
                _, *columns = batch.filter(pa.array(batch["source"].to_numpy() == source)).columns
                asked += zip(*(column.to_pylist() for column in columns), strict=True)
                if most is not None and len(asked) >= most:
                    break
        asked = asked[:most]
        texts = Store(self.store).texts([key for *_, key in asked], self.n)
        labelled = []
        for name, text, key in asked:
            found = texts.get(key, [])
            labelled.append(
                [
                    Example(
                        f"{name}#{i}" if len(found) > 1 else name, text, answer, lineage=replace(lineage, score=score)
                    )
                    for i, (answer, score) in enumerate(found)
                ]
            )
        return [several for several in labelled if several]

    def examples(self, source: int = 0, lineage: Lineage = TEACHER_LINEAGE) -> list[Example]:
        """`answers`, all in one list."""
        return sum(self.answers(source, lineage), [])
