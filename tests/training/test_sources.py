"""The rows of a training: which lines of a file, and which prompts of a labelling, become which rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import write_rows

from raykd.data import prompts
from raykd.data.examples import chunk_order, save_rows
from raykd.data.sources import FileSource, StoredSource
from raykd.engines.engine import PseudoTarget
from raykd.recipe.generation import TextPayload
from raykd.stages.labelling import PROMPTS
from raykd.store.open import open_store
from raykd.store.schema import shard_table
from raykd.store.write import write_shard
from raykd.training.sources import chunks_of, read_file, read_store

NAMES = ["part-0"] * 20 + ["part-1"] * 20 + ["test"] * 7 + ["gold"] * 3


@pytest.fixture
def stored(tmp_path) -> StoredSource:
    """A labelling of 50 inputs of four sources, two samples each."""
    keys = [prompts.key(f"input {i}") for i in range(len(NAMES))]
    lines = ((name, f"r{i}", f"input {i}", keys[i], f"input {i}", None) for i, name in enumerate(NAMES))
    save_rows(tmp_path / "prompts.parquet", lines, PROMPTS)
    store = open_store(tmp_path / "stores", {}, TextPayload(kind="text"))
    nothing = np.zeros(0, np.int32)
    written = [
        [PseudoTarget(f"{i}.{s}", nothing, nothing.astype(np.float32), "stop") for s in range(2)]
        for i in range(len(NAMES))
    ]
    write_shard(store, shard_table(keys, range(2), written, store.payload))
    store.close()
    return StoredSource(
        prompts=str(tmp_path / "prompts.parquet"), store=store.path, sources=(), samples=2, chunk=8, seed=3
    )


@pytest.mark.parametrize("sources", [("part-0",), ("part-1",), ("gold", "part-0"), ("gold",), tuple(set(NAMES))])
def test_only_the_named_sources_are_read_in_the_order_of_the_teacher_pass(stored, sources):
    source = replace(stored, sources=sources)
    order = [
        [i for i in rows if NAMES[i] in sources]
        for rows in chunk_order(len(NAMES), 8, 3)
        if any(NAMES[i] in sources for i in rows)
    ]
    assert len(chunks_of(source)) == len(order)
    read = [[(row.id, [target.text for target in row.targets]) for row in chunk] for chunk in read_store(source)]
    assert read == [[(f"r{i}", [f"{i}.0", f"{i}.1"]) for i in chunk] for chunk in order]


def test_a_source_of_no_such_name_has_no_rows(stored):
    assert list(read_store(replace(stored, sources=("unlabelled",)))) == []


def test_pseudo_targets_of_one_input_are_targets_of_one_row_and_gold_rows_stay_apart(tmp_path):
    lines = [
        {"id": "a#0", "input": "a", "target": "A", "pseudo_target": True, "by": "teacher"},
        {"id": "a#1", "input": "a", "target": "B", "pseudo_target": True, "weight": 0.5},
        {"id": "b#0", "input": "b", "target": "C", "pseudo_target": True},
        {"id": "a#2", "input": "a", "target": "D", "pseudo_target": True},
        {"id": "g1", "input": "a", "target": "E"},
        {"id": "g2", "input": "a", "target": "F", "by": "teacher"},
    ]
    (chunk,) = read_file(FileSource(str(write_rows(tmp_path / "rows.jsonl", lines))))
    assert [(row.id, row.input, [(t.text, t.weight) for t in row.targets]) for row in chunk] == [
        ("a#0", "a", [("A", 1.0), ("B", 0.5)]),
        ("b#0", "b", [("C", 1.0)]),
        ("a#2", "a", [("D", 1.0)]),
        ("g1", "a", [("E", 1.0)]),
        ("g2", "a", [("F", 1.0)]),
    ]
