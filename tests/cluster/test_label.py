"""The teacher pass: what is asked, what is found, what survives."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import pairs, stored_tables

from raykd.cluster.generate import cut_pieces, read_prompts
from raykd.data.examples import Example
from raykd.errors import EngineError, StoreError
from raykd.models.load import load_model
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.generation import TopKPayload
from raykd.recipe.load import load_recipe
from raykd.recipe.models import Checkpoint
from raykd.run.session import Session
from raykd.stages.label import label_inputs
from raykd.stages.labelling import PROMPTS, LabellingRequest, read_pseudo_targets
from raykd.store.store import Store
from raykd.store.verify import verify_store

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("ray_session")]
SCRIPTED = {"kind": "scripted", "function": "answers:numbered"}
SAMPLED = {"n": 4, "temperature": 1.0, "max_tokens": 4}


def examples(count: int) -> list[Example]:
    return [Example(p["id"], p["input"]) for p in pairs(count)]


def pseudo_targets(labels):
    return read_pseudo_targets(labels, "unlabelled")


def labelled(folder: Path, model: Path, count: int, actors: dict | None = None, score=False, **teacher) -> tuple:
    """A pass of its own run, all of which share their stores: its labels, and the manifest's stats."""
    rows = [replace(e, target=e.input.upper()) for e in examples(count)]
    name = f"run-{len(list(folder.glob('runs/run-*')))}"
    tree = {
        "name": name,
        "output": str(folder / "runs"),
        "method": {"kind": "distill"},
        "data": {"unlabelled": {"kind": "jsonl", "path": "x.jsonl"}, "max_bad_rows": 1},
        "tokenizer": {"kind": "words"},
        "teachers": {
            "main": {
                "model": {"kind": "checkpoint", "path": str(model)},
                "prompt": "{input} =>",
                "engine": {"kind": "transformers"},
                "shard_rows": 64,
                "passes": {"pseudo_targets": teacher.pop("sampling", {})},
                **teacher,
            },
        },
        "student": {
            "model": {"kind": "config", "model_type": "t5"},
            "training": {"learning_rate": 0.1, "max_steps": 1},
        },
        "cluster": {"teacher": actors or {}},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    run = Session(load_recipe(file))
    request = LabellingRequest(
        name="teacher/labels",
        model=str(model),
        role=run.recipe.teacher,
        sources={"unlabelled": rows},
        score=score,
    )
    with run:
        labels = label_inputs(run, request)
    return labels, json.loads((run.path / "teacher/labels/manifest.json").read_text())["stats"]


def test_more_samples_ask_for_those_that_are_missing(tmp_path, tiny_models):
    first, took = labelled(tmp_path, tiny_models["llama"], 100, sampling=SAMPLED)
    assert (took["new_rows"], took["reused_rows"]) == (100, 0)
    more, again = labelled(tmp_path, tiny_models["llama"], 100, sampling={**SAMPLED, "n": 8})
    assert more.store == first.store and (again["new_rows"], again["reused_rows"]) == (100, 0)
    four, eight = pseudo_targets(first), pseudo_targets(more)
    assert [len(four), len(eight)] == [400, 800] and again["output_tokens"] <= 400 * 4
    assert [e.target for e in eight if int(e.id[-1]) < 4] == [e.target for e in four]
    assert sum(e.target != f.target for e, f in zip(eight[4::8], eight[::8], strict=True)) > 50  # not the same again
    fewer, nothing = labelled(tmp_path, tiny_models["llama"], 100, sampling={**SAMPLED, "n": 2})
    assert (nothing["new_rows"], nothing["reused_rows"], nothing["output_tokens"]) == (0, 100, 0)
    assert [e.target for e in pseudo_targets(fewer)] == [e.target for e in four if int(e.id[-1]) < 2]


def test_more_inputs_ask_for_those_that_are_missing(tmp_path, tiny_models):
    first, took = labelled(tmp_path, tiny_models["llama"], 1000, engine=SCRIPTED)
    more, again = labelled(tmp_path, tiny_models["llama"], 2000, engine=SCRIPTED)
    assert more.store == first.store and (again["new_rows"], again["reused_rows"]) == (1000, 1000)
    tokens = sum(len(e.input.split()) + 2 for e in examples(2000)[1000:])
    assert again["output_tokens"] == tokens < took["output_tokens"] * 2
    assert [(e.id, e.target) for e in pseudo_targets(more)] == [
        (e.id, f"{e.input.upper()} => 0") for e in examples(2000)
    ]


def test_fewer_of_the_most_likely_are_read_from_the_store(tmp_path, tiny_models):
    sampling = {"max_tokens": 4}
    first, took = labelled(tmp_path, tiny_models["llama"], 60, sampling=sampling, payload={"kind": "top_k", "k": 8})
    fewer, again = labelled(tmp_path, tiny_models["llama"], 60, sampling=sampling, payload={"kind": "top_k", "k": 4})
    assert fewer.store == first.store and took["new_rows"] == 60 and again["new_rows"] == 0
    text, nothing = labelled(tmp_path, tiny_models["llama"], 60, sampling=sampling)
    assert text.store == first.store and nothing["output_tokens"] == 0
    rows = stored_tables(Store(fewer.store, TopKPayload(kind="top_k", k=4)), ["token_ids", "top_ids"])[0]
    assert [len(ids) * 4 for ids in rows["token_ids"].to_pylist()] == [len(ids) for ids in rows["top_ids"].to_pylist()]
    wider, more = labelled(tmp_path, tiny_models["llama"], 60, sampling=sampling, payload={"kind": "top_k", "k": 9})
    assert wider.store != first.store and more["new_rows"] == 60


def test_a_named_store_of_something_else_is_refused(tmp_path, tiny_models):
    store = str(tmp_path / "answers")
    kept = {"engine": SCRIPTED, "store": store}
    labelled(tmp_path, tiny_models["llama"], 10, **kept)
    _, again = labelled(tmp_path, tiny_models["llama"], 10, **kept)
    assert again["new_rows"] == 0
    with pytest.raises(StoreError, match="answers: written with another prompt: '{input} =>', expected 'Say {input}'"):
        labelled(tmp_path, tiny_models["llama"], 10, prompt="Say {input}", **kept)
    for name in ("model.safetensors", "tokenizer.json"):
        other = tmp_path / f"other-{name}"
        shutil.copytree(tiny_models["llama"], other)
        data = bytearray((other / name).read_bytes())
        data[-8] ^= 1
        (other / name).write_bytes(data)
        with pytest.raises(StoreError, match="answers: written with another model: '[0-9a-f]{16}', expected"):
            labelled(tmp_path, other, 10, **kept)


def test_a_damaged_shard_is_found_by_the_reader(tmp_path, tiny_models):
    labels, _ = labelled(tmp_path, tiny_models["llama"], 100, engine=SCRIPTED)
    shard = sorted(Path(labels.store).glob("shards/*.parquet"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=f"{shard.name}: damaged shard"):
        pseudo_targets(labels)
    shard.unlink()  # as the documentation says: remove it, and the pass does its rows again
    mended, took = labelled(tmp_path, tiny_models["llama"], 100, engine=SCRIPTED)
    assert 0 < took["new_rows"] <= 64 and len(pseudo_targets(mended)) == 100


@pytest.mark.parametrize("function", ["dies", "takes_its_actor_along"])
def test_a_dead_engine_and_a_dead_actor_are_replaced(tmp_path, tiny_models, function):
    engine, flag = {"kind": "scripted", "function": f"answers:{function}"}, tmp_path / "happened"
    labels, took = labelled(tmp_path, tiny_models["llama"], 300, engine=engine, prompt=f"{{input}} => {flag}")
    assert took["new_rows"] == 300 and took["engine_deaths"] == (function == "dies")
    assert [e.target for e in pseudo_targets(labels)] == [f"{e.input} => {flag}".upper() + " 0" for e in examples(300)]
    assert flag.exists()
    assert verify_store(Store(labels.store)) == [] and Store(labels.store).closed


def test_an_engine_that_always_dies_ends_the_pass(tmp_path, tiny_models):
    with pytest.raises(EngineError, match=r"it died \(3 times, 2 tolerated\)"):
        engine = {"kind": "scripted", "function": "answers:dies_again"}
        labelled(tmp_path, tiny_models["llama"], 10, {"max_failures": 2}, engine=engine)


def test_a_refused_input_is_a_bad_row_and_the_rest_is_answered(tmp_path, tiny_models):
    engine = {"kind": "scripted", "function": "answers:refuse"}
    labels, took = labelled(tmp_path, tiny_models["llama"], 100, engine=engine)
    assert took["failed_rows"] == 1 and len(pseudo_targets(labels)) == 99
    listed = [json.loads(line) for line in (tmp_path / "runs/run-0/bad_rows.jsonl").read_text().splitlines()]
    assert listed == [{"file": "teacher/labels", "line": None, "reason": "too long", "row": "r7"}]


def test_given_targets_are_read_instead(tmp_path, tiny_models):
    """What the teacher thinks of gold: its log-probabilities, those of the transformers model itself."""
    import torch

    labels, took = labelled(
        tmp_path, tiny_models["llama"], 50, score=True, payload={"kind": "top_k", "k": 4}, sampling=SAMPLED
    )
    assert took["samples"] == 1 and took["output_tokens"] == 0 and took["new_rows"] == 50
    assert [e.target for e in pseudo_targets(labels)] == [e.input.upper() for e in examples(50)]
    found = {}
    for rows in stored_tables(Store(labels.store), ["text", "token_ids", "logprobs", "top_ids"]):
        for text, ids, logprobs, top in zip(*(c.to_pylist() for c in rows.columns), strict=True):
            found[text] = (ids, logprobs, top)
    tokenizer = load_tokenizer(tiny_models["llama"])
    model = load_model(Checkpoint(kind="checkpoint", path=str(tiny_models["llama"])), tokenizer).eval()
    for example in examples(3):
        ids, logprobs, top = found[example.input.upper()]
        prompt = tokenizer(f"{example.input} =>").input_ids
        with torch.no_grad():
            all_TV = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        np.testing.assert_allclose(logprobs, all_TV.gather(1, torch.tensor(ids)[:, None])[:, 0], atol=1e-4)
        assert top == all_TV.topk(4).indices.flatten().tolist()
    _, again = labelled(
        tmp_path, tiny_models["llama"], 60, score=True, payload={"kind": "top_k", "k": 4}, sampling=SAMPLED
    )
    assert (again["new_rows"], again["reused_rows"]) == (10, 50)


def test_several_replicas_share_the_work(tmp_path, tiny_models):
    labels, took = labelled(
        tmp_path, tiny_models["llama"], 2000, {"replicas": [0, 3], "resources": {"CPU": 0.5}}, engine=SCRIPTED
    )
    assert len(pseudo_targets(labels)) == 2000 and took["replicas"] == [0, 3]


def test_pieces_shrink_where_several_replicas_could_wait_for_one():
    rows = np.arange(10_000)
    alone = [len(p.rows) for p in cut_pieces(rows, range(1), 1024, 1)]
    assert alone == [1024] * 9 + [784]
    shared = [len(p.rows) for p in cut_pieces(rows, range(1), 1024, 4)]
    assert shared[0] == 1024 and max(shared[-4:]) <= 128 and shared == sorted(shared, reverse=True)
    assert np.array_equal(np.concatenate([p.rows for p in cut_pieces(rows, range(1), 1024, 4)]), rows)


def test_rows_are_read_from_their_row_groups_alone(tmp_path):
    from raykd.data import prompts
    from raykd.data.examples import save_rows

    texts = [f"prompt {i}" for i in range(5000)]
    rows = (("unlabelled", str(i), text, prompts.key(text), text, None) for i, text in enumerate(texts))
    save_rows(tmp_path / "p.parquet", rows, PROMPTS)
    for wanted in ([0], [4999], [1023, 1024, 3000], list(range(900, 2100, 7))):
        keys, found, _ = read_prompts(str(tmp_path / "p.parquet"), np.array(wanted))
        assert found == [texts[i] for i in wanted] and keys == [prompts.key(t) for t in found]
