"""The store: whole shards, exact keys, refusal of what was written by something else."""

import json

import pytest

from raykd.cluster.generate import to_rows
from raykd.engines import Answer, Refusal
from raykd.errors import StoreError
from raykd.store import SCHEMA, Store

PARTS = {"model": "abc", "prompt": "{input}", "sampling": {"n": 2}}


def rows(**texts):
    return to_rows(
        list(texts), [[Answer(t, [1, 2], [-0.5, -0.1], "stop") for t in several] for several in texts.values()]
    )


def test_what_is_written_is_read(tmp_path):
    store = Store.open(tmp_path, PARTS)
    store.write(rows(a=["x", "y"], b=["z", "w"]))
    again = Store.open(tmp_path, PARTS)
    assert again.path == store.path
    assert again.keys() == {"a", "b"}
    assert again.texts(["a", "c"]) == {"a": ["x", "y"]}


def test_the_same_work_twice_lands_once(tmp_path):
    store = Store.open(tmp_path, PARTS)
    store.write(rows(a=["x", "y"], b=["z", "w"]))
    before = store.shards()[0].read_bytes()
    store.write(rows(a=["x", "y"], b=["z", "w"]))
    assert [p.read_bytes() for p in store.shards()] == [before]


def test_other_parts_are_another_store(tmp_path):
    assert Store.open(tmp_path, PARTS).path != Store.open(tmp_path, {**PARTS, "model": "abd"}).path


def test_a_store_written_by_something_else_is_refused(tmp_path):
    store = Store.open(tmp_path, PARTS)
    about = store.path / "store.json"
    found = json.loads(about.read_text())
    found["parts"]["model"] = "other"
    about.write_text(json.dumps(found))
    with pytest.raises(StoreError, match="another model: 'other'"):
        Store.open(tmp_path, PARTS)
    about.write_text(json.dumps({**found, "format": 99}))
    with pytest.raises(StoreError, match="format 99, expected 1"):
        Store.open(tmp_path, PARTS)


def test_a_shard_cut_short_is_named(tmp_path):
    store = Store.open(tmp_path, PARTS)
    store.write(rows(a=["x", "y"]))
    shard = store.shards()[0]
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(StoreError, match=f"{shard.name}: damaged shard"):
        store.keys()


def test_a_half_written_shard_is_not_seen(tmp_path):
    store = Store.open(tmp_path, PARTS)
    (store.path / "shards" / ".abc.1").write_bytes(b"PAR1")
    assert store.keys() == set()


def test_refused_prompts_have_no_row():
    table = to_rows(["a", "b"], [Refusal("too long"), [Answer("x", [], [], "stop")]])
    assert table.schema == SCHEMA
    assert table["key"].to_pylist() == ["b"]
