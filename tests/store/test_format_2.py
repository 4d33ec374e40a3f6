"""A store made by raykd at commit 4bc49fe, before its modules were moved, is found and read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import pairs

from raykd.data.examples import Example
from raykd.recipe.load import load_recipe
from raykd.run.session import Session
from raykd.stages.label import label_inputs
from raykd.stages.labelling import LabellingRequest, read_pseudo_targets
from raykd.store.store import Store
from raykd.store.verify import verify_store

FIXTURE = Path(__file__).parent / "format_2"
NAME = "74f7b0877695"


def label_with_old_store(folder: Path, count: int, n: int, name: str = "new") -> tuple:
    """The fixture's teacher labels inputs, in a run whose stores are a copy of the fixture's: labels, stats."""
    if not (folder / "runs").exists():
        shutil.copytree(FIXTURE, folder / "runs")
    shots = {"kind": "jsonl", "path": str(FIXTURE / "shots.jsonl"), "columns": {"input": "input", "target": "target"}}
    tree = {
        "name": name,
        "output": str(folder / "runs"),
        "seed": 3,
        "method": {"kind": "distill"},
        "data": {"unlabelled": {"kind": "jsonl", "path": "rows.jsonl"}},
        "tokenizer": {"kind": "words"},
        "teachers": {
            "main": {
                "model": {"kind": "checkpoint", "path": str(FIXTURE / "model")},
                "prompt": {"kind": "completion", "template": "{input} =>", "shots": {"rows": shots, "count": 2}},
                "engine": {"kind": "scripted", "function": "answers:numbered"},
                "passes": {"pseudo_targets": {"n": n, "temperature": 0.7, "max_tokens": 8}},
                "shard_rows": 4,
            },
        },
        "student": {
            "model": {"kind": "config", "model_type": "t5"},
            "training": {"learning_rate": 0.1, "max_steps": 1},
        },
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    with Session(load_recipe(file)) as session:
        request = LabellingRequest(
            name="teacher/labels",
            model=str(FIXTURE / "model"),
            role=session.recipe.teacher,
            sources={"unlabelled": [Example(row["id"], row["input"]) for row in pairs(count)]},
        )
        stored = label_inputs(session, request)
    return stored, json.loads((session.path / "teacher/labels/manifest.json").read_text())["stats"]


def written(count: int, n: int) -> list[tuple[str, str]]:
    """Ids and pseudo-targets, as the scripted engine writes them."""
    shots = "X 0 => X 0\n\nX 1 => X 1\n\n"
    return [
        (f"{row['id']}#{sample}", f"{shots}{row['input'].upper()} => {sample}")
        for row in pairs(count)
        for sample in range(n)
    ]


def test_an_old_store_is_found_by_the_same_recipe_and_read(tmp_path):
    stored, stats = label_with_old_store(tmp_path, 6, 2)
    assert stored.store == str(tmp_path / "runs/stores" / NAME)
    assert (stats["new_rows"], stats["reused_rows"]) == (0, 6)
    assert [(e.id, e.target) for e in read_pseudo_targets(stored, "unlabelled")] == written(6, 2)
    assert verify_store(Store(stored.store)) == []
    assert [path.name for path in (tmp_path / "runs/stores").iterdir()] == [NAME]


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_session")
def test_an_old_store_is_extended_by_what_it_lacks(tmp_path):
    stored, stats = label_with_old_store(tmp_path, 9, 2)
    assert stored.store == str(tmp_path / "runs/stores" / NAME)
    assert (stats["new_rows"], stats["reused_rows"]) == (3, 6)
    assert [(e.id, e.target) for e in read_pseudo_targets(stored, "unlabelled")] == written(9, 2)
    more, stats = label_with_old_store(tmp_path, 9, 3, "more")
    assert more.store == stored.store and (stats["new_rows"], stats["reused_rows"]) == (9, 0)
    assert [(e.id, e.target) for e in read_pseudo_targets(more, "unlabelled")] == written(9, 3)
    assert verify_store(Store(stored.store)) == []  # finds duplicates, too
    old = {path.name for path in FIXTURE.glob("stores/*/shards/*")}
    assert old < set(Store(stored.store).shards())
