"""The sources of a training's rows: a file, or a labelling with its store. `raykd.training.sources` reads them."""

from __future__ import annotations

from dataclasses import dataclass

from raykd.recipe.generation import Payload


@dataclass(frozen=True)
class FileSource:
    """Rows of a JSONL file: {id, input, target, perhaps weight, perhaps pseudo_target}.

    Lines that follow each other with the same input and `pseudo_target: true` are several targets of one row. Any
    other line is a row of its own, even where its input is that of the line before.
    """

    path: str


@dataclass(frozen=True)
class StoredSource:
    """A labelling: a parquet file of prompts, and the store that holds their pseudo-targets, or will hold them.

    prompts   the file, of schema `raykd.stages.labelling.PROMPTS`
    store     the store's folder or URL
    sources   names of the prompts' sources that are read; `samples` pseudo-targets of each prompt
    chunk     number of consecutive rows that the teacher pass labels together; seed: of the order of these chunks
    payload   read with the teacher's token ids; None: only the texts are read
    mark      fingerprint of all that decides the pseudo-targets
    follow    the store is still being written: readers wait for missing rows
    gold      a parquet file of examples whose targets are further targets of the prompts with the same input
    """

    prompts: str
    store: str
    sources: tuple[str, ...]
    samples: int
    chunk: int
    seed: int
    payload: Payload | None = None
    mark: str = ""
    follow: bool = False
    gold: str | None = None
