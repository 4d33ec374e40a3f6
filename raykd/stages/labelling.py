"""The records of a labelling: the request, the schema of its prompts, and functions that read its pseudo-targets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raykd.data.examples import SAVED_ROWS, Example, Lineage
from raykd.data.sources import StoredSource
from raykd.recipe.generation import Payload
from raykd.recipe.roles import Student, Teacher
from raykd.recipe.training import Training
from raykd.run.manifests import StageAbout
from raykd.run.session import EVERY_ARM
from raykd.store.read import read_texts
from raykd.store.store import Store
from raykd.training.sources import is_from

TEACHER_LINEAGE = Lineage("teacher")
PROMPTS = pa.schema(
    [
        ("source", pa.string()),  # its name in LabellingRequest.sources
        ("id", pa.string()),
        ("input", pa.string()),
        ("key", pa.binary(16)),  # of the prompt's rows in the store
        ("prompt", pa.string()),
        ("target", pa.string()),  # the target that is scored; null where the model writes one
    ]
)


@dataclass(frozen=True)
class LabellingRequest:
    """A request that a model labels examples.

    name     the stage's name
    model    the model's folder or hub name; for an endpoint, the name of the model there
    role     the recipe's section teacher or student: prompt, decoding, engine
    sources  by name ("unlabelled", "test", "part-0", ...) a parquet file of examples, or a list of examples
    payload  recorded beside texts; None: the payload that `stages.label.recorded_payload` derives from the recipe
    score    the model writes nothing, but scores the examples' targets: log-probabilities and payload are stored
    about    arm, round and partition of the stage, for its manifest
    rejected_are_bad  an input that the model rejects is a bad row, which data.max_bad_rows must allow
    """

    name: str
    model: str
    role: Teacher | Student
    sources: Mapping[str, Path | list[Example]]
    payload: Payload | None = None
    score: bool = False
    rejected_are_bad: bool = True
    about: StageAbout = EVERY_ARM


def read_as(stored: StoredSource, training: Training) -> StoredSource:
    """The labelling with the payload that a training reads: token ids and payload if a loss reads them, else texts."""
    if training.reads_store():
        return stored
    return replace(stored, payload=None)


def read_samples(
    stored: StoredSource, source: str, lineage: Lineage, most_inputs: int | None = None
) -> list[list[Example]]:
    """A list for each input of a source: its pseudo-targets, with this lineage and their own scores.

    If an input has several samples, their ids end in #0, #1, ... Inputs that the model rejected are left out. With
    `most_inputs` only that many inputs are read. Raises StoreError for a damaged shard.
    """
    prompts: list[tuple[str, str, bytes]] = []  # id, input, key
    with pq.ParquetFile(stored.prompts) as file:
        for batch in file.iter_batches(SAVED_ROWS, columns=["source", "id", "input", "key"]):
            _, *columns = batch.filter(pa.array(is_from(batch["source"], (source,)))).columns
            prompts += zip(*(column.to_pylist() for column in columns), strict=True)
            if most_inputs is not None and len(prompts) >= most_inputs:
                break
    prompts = prompts[:most_inputs]
    texts = read_texts(Store(stored.store), [key for *_, key in prompts], stored.samples)
    by_input = []
    for name, text, key in prompts:
        samples = texts.get(key, [])
        names = [f"{name}#{i}" for i in range(len(samples))] if len(samples) > 1 else [name]
        by_input.append(
            [
                Example(sample_name, text, sample.text, lineage=replace(lineage, score=sample.mean_logprob))
                for sample_name, sample in zip(names, samples, strict=False)
            ]
        )
    return [samples for samples in by_input if samples]


def read_pseudo_targets(stored: StoredSource, source: str, lineage: Lineage = TEACHER_LINEAGE) -> list[Example]:
    """The pseudo-targets of `read_samples`, all in one list."""
    return list(itertools.chain.from_iterable(read_samples(stored, source, lineage)))
