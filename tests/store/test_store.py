"""The store: whole shards, exact rows, payloads in few bytes, and refusal of all that is damaged or foreign."""

import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import stored_tables

from raykd import cli
from raykd.engines.engine import PseudoTarget
from raykd.errors import StoreError
from raykd.recipe.generation import HiddenPayload, SampledPayload, TextPayload, TopKPayload
from raykd.store import follow, payloads
from raykd.store.follow import PASS, StoreIndex
from raykd.store.open import open_store
from raykd.store.payloads import choose_payload
from raykd.store.ragged import ragged
from raykd.store.read import read_texts, sample_counts
from raykd.store.schema import ROW, shard_schema, shard_table
from raykd.store.store import Store
from raykd.store.verify import describe_store, verify_store
from raykd.store.write import shard_bytes, write_shard

PARTS = {"model": "abc", "prompt": "{input}", "engine": "vllm", "sampling": {"temperature": 1.0, "max_tokens": 8}}
TEXT, SAMPLED, HIDDEN = TextPayload(kind="text"), SampledPayload(kind="sampled"), HiddenPayload(kind="hidden")
TOP_4, TOP_8 = TopKPayload(kind="top_k", k=4), TopKPayload(kind="top_k", k=8)


def key(number):
    """A key; every fourth ends in zero bytes, which numpy's S16 would like to lose."""
    digest = hashlib.sha256(str(number).encode()).digest()[:16]
    return digest[:14] + b"\0\0" if number % 4 == 0 else digest


def recorded(payload, tokens, rng, vocabulary=152_000):
    """What an engine gives beside the text."""
    if payload.kind == "top_k":
        ids = np.array([rng.choice(vocabulary, payload.k, replace=False) for _ in range(tokens)], np.int32)
        logprobs = -np.sort(rng.exponential(3, (tokens, payload.k)), axis=1).astype(np.float32)
        return {"top_ids": ids.reshape(tokens, payload.k), "top_logprobs": logprobs}
    if payload.kind == "sampled":
        drawn = [np.unique(rng.integers(0, vocabulary, rng.integers(1, 51)), return_counts=True) for _ in range(tokens)]
        nothing = np.zeros(0, np.int32)
        return {
            "sampled_ids": np.concatenate([nothing, *(ids for ids, _ in drawn)]).astype(np.int32),
            "sampled_counts": np.concatenate([nothing, *(counts for _, counts in drawn)]).astype(np.uint8),
            "sampled_lengths": np.array([len(ids) for ids, _ in drawn], np.int32),
        }
    return {"hidden": rng.normal(size=(tokens, 16)).astype(np.float16)} if payload.kind == "hidden" else {}


def row_names_of(numbers, samples=range(2)):
    """(key, sample) of these rows."""
    return np.array([(key(n), s) for n in numbers for s in samples], ROW)


def texts(store, keys, n):
    return {name: [sample.text for sample in several] for name, several in read_texts(store, keys, n).items()}


def answer(text, payload=TEXT, tokens=5, seed=0):
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(1, tokens).astype(np.float32)
    ids = rng.integers(0, 152_000, tokens).astype(np.int32)
    return PseudoTarget(text, ids, logprobs, "stop", recorded(payload, tokens, rng))


def rows(numbers, samples=range(2), payload=TEXT):
    """A shard, with answers of 0 tokens and more in it."""
    answers = [[answer(f"{n}.{s}", payload, tokens=(n + s) % 7, seed=1000 * n + s) for s in samples] for n in numbers]
    return shard_table([key(n) for n in numbers], samples, answers, payload)


def lists(column):
    values, offsets = ragged(column)
    return [values[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]


def only(path):
    (shard,) = (path / "shards").glob("*.parquet")
    return shard


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path, PARTS, TEXT)


# ---------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("payload", [TEXT, TOP_8, SAMPLED, HIDDEN], ids=lambda p: p.kind)
def test_what_is_written_is_read(tmp_path, payload):
    store = open_store(tmp_path, PARTS, payload)
    answers = [[answer(f"{n}.{s}", payload, tokens=(n + s) % 7, seed=10 * n + s) for s in range(3)] for n in range(20)]
    write_shard(store, shard_table([key(n) for n in range(20)], range(3), answers, payload))
    again = pickle.loads(pickle.dumps(open_store(tmp_path, PARTS, payload)))
    names = ["key", "sample", "text", "token_ids", "logprobs", "finish_reason", *payloads.VALUES[payload.kind]]
    (read,) = stored_tables(again, names)
    assert read.column_names == names
    assert read["key"].to_pylist() == [key(n) for n in range(20) for _ in range(3)]
    assert read["sample"].to_pylist() == [0, 1, 2] * 20
    flat = [a for several in answers for a in several]
    for at, expected in enumerate(flat):
        assert read["text"][at].as_py() == expected.text
        np.testing.assert_array_equal(lists(read["token_ids"])[at], expected.token_ids)
        np.testing.assert_array_equal(lists(read["logprobs"])[at], expected.logprobs)
        for name, values in expected.payload.items():
            found = lists(read[name])[at].reshape(values.shape)
            if name == "top_logprobs":
                assert found.dtype == np.float32
                np.testing.assert_array_equal(found, values.astype(np.float16))
            else:
                np.testing.assert_array_equal(found, values)


def test_one_column_is_decoded_alone(tmp_path):
    for payload, name in ((TOP_8, "top_ids"), (TOP_8, "top_logprobs"), (SAMPLED, "sampled_ids")):
        store = open_store(tmp_path, PARTS, payload)
        write_shard(store, rows(range(9), payload=payload))
        (alone,), (whole,) = stored_tables(store, [name]), stored_tables(store, list(payloads.VALUES[payload.kind]))
        assert alone.column_names == [name]
        assert alone[name].equals(whole[name])


def test_logits_that_are_masked_stay_finite(tmp_path):
    store = open_store(tmp_path, PARTS, TOP_4)
    masked = {
        "top_ids": np.array([[7, 3, 5, 1]], np.int32),
        "top_logprobs": np.array([[-0.1, -3, -1e30, -np.inf]], np.float32),
    }
    one = PseudoTarget("x", np.array([7]), np.array([-0.1]), "stop", masked)
    write_shard(store, shard_table([key(1)], range(1), [[one]], TOP_4))
    (read,) = stored_tables(store, ["top_ids", "top_logprobs"])
    assert read["top_ids"].to_pylist()[0][:2] == [7, 3]
    assert np.isfinite(lists(read["top_logprobs"])[0]).all()


def test_the_same_work_twice_lands_once(tmp_path, store):
    write_shard(store, rows(range(3)))
    before = only(tmp_path / store.root).read_bytes()
    store.close()
    changed = rows(range(3)).set_column(2, "text", pa.array(["other"] * 6))
    write_shard(store, changed.take(pa.array([5, 4, 3, 2, 1, 0])))
    assert only(tmp_path / store.root).read_bytes() == before
    assert store.closed


def test_more_samples_are_more_rows(store):
    write_shard(store, rows(range(4), range(0, 2)))
    write_shard(store, rows(range(2, 4), range(2, 5)))
    write_shard(store, rows([3], range(6, 7)))
    write_shard(store, rows([9], range(1, 3)))
    keys, samples = sample_counts(store)
    held = {bytes(k).ljust(16, b"\0"): n for k, n in zip(keys, samples, strict=True)}
    assert held == {key(0): 2, key(1): 2, key(2): 5, key(3): 5, key(9): 0}
    assert samples.dtype == np.int32 and list(keys) == sorted(keys)
    assert texts(store, [key(3), key(7)], 4) == {key(3): ["3.0", "3.1", "3.2", "3.3"]}
    assert texts(store, [key(0)], 1) == {key(0): ["0.0"]}


def test_an_empty_store(store):
    keys, samples = sample_counts(store)
    assert len(keys) == len(samples) == 0
    assert stored_tables(store, ["text"]) == verify_store(store) == []
    assert describe_store(store)["rows"] == 0


def test_rows_of_another_payload_or_length_are_refused(tmp_path):
    store = open_store(tmp_path, PARTS, TOP_4)
    with pytest.raises(StoreError, match="its payload is top_k"):
        write_shard(store, rows(range(3)))
    whole = rows(range(3), payload=TOP_4)
    short = whole.set_column(4, "logprobs", pa.array([[]] * 5 + [[-0.5]], pa.list_(pa.float32())))
    with pytest.raises(StoreError, match="row 5: 1 logprobs for 3 tokens"):
        write_shard(store, short)
    assert store.shards() == []


# --------------------------------------------------------------------------------------- which store it is


def test_other_parts_are_another_store(tmp_path):
    one = open_store(tmp_path, PARTS, TEXT)
    assert one.path == open_store(tmp_path, dict(reversed(PARTS.items())), TEXT).path
    assert one.path != open_store(tmp_path, {**PARTS, "model": "abd"}, TEXT).path


def test_a_richer_store_serves_a_poorer_payload_and_never_the_other_way(tmp_path):
    eight = open_store(tmp_path, PARTS, TOP_8)
    write_shard(eight, rows(range(6), payload=TOP_8))
    four, text = open_store(tmp_path, PARTS, TOP_4), open_store(tmp_path, PARTS, TEXT)
    assert four.path == text.path == eight.path
    assert texts(text, [key(1)], 2) == {key(1): ["1.0", "1.1"]}
    assert four.payload == TOP_8
    (cut,), (whole,) = (
        stored_tables(four, ["top_ids", "top_logprobs"]),
        stored_tables(eight, ["top_ids", "top_logprobs"]),
    )
    for name in ("top_ids", "top_logprobs"):
        for short, long in zip(lists(cut[name]), lists(whole[name]), strict=True):
            np.testing.assert_array_equal(short.reshape(-1, 4), long.reshape(-1, 8)[:, :4])
    others = [SAMPLED, HIDDEN, TopKPayload(kind="top_k", k=9), SampledPayload(kind="sampled", draws=20)]
    paths = {open_store(tmp_path, PARTS, payload).path for payload in others}
    assert len(paths) == 4 and eight.path not in paths


def test_an_exact_store_is_preferred(tmp_path):
    text = open_store(tmp_path, PARTS, TEXT)
    assert open_store(tmp_path, PARTS, HIDDEN).path != text.path
    assert open_store(tmp_path, PARTS, TEXT).path == text.path


def test_a_store_by_path_is_made_there_or_refused_with_every_difference(tmp_path):
    path = tmp_path / "mine"
    write_shard(open_store(tmp_path / "stores", PARTS, TOP_4, path), rows(range(2), payload=TOP_4))
    assert not (tmp_path / "stores").exists()
    assert texts(open_store(tmp_path / "stores", PARTS, TEXT, path), [key(0)], 1) == {key(0): ["0.0"]}
    other = {**PARTS, "prompt": "Say: {input}", "sampling": {"temperature": 0.5, "max_tokens": 8}}
    with pytest.raises(StoreError) as error:
        open_store(tmp_path / "stores", other, TOP_8, path)
    said = str(error.value)
    assert said.startswith(f"{path}: written with another prompt: '{{input}}', expected 'Say: {{input}}'; another ")
    assert "another sampling.temperature: 1.0, expected 0.5" in said
    assert "another payload: {'kind': 'top_k', 'k': 4}, expected {'kind': 'top_k', 'k': 8} or richer" in said
    assert "max_tokens" not in said and "\n" not in said


def test_an_unknown_format_is_refused(tmp_path, store):
    about = tmp_path / store.root / "store.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "format": 7}))
    said = f"{store.path}: format 7, this raykd reads 1 and 2"
    assert verify_store(Store(store.path)) == [said]
    with pytest.raises(StoreError) as error:
        open_store(tmp_path, PARTS, TEXT, store.path)
    assert str(error.value) == said
    about.write_text('{"format"')
    with pytest.raises(StoreError, match="store.json: cannot be read"):
        open_store(tmp_path, PARTS, TEXT)


def format_1(path, sampling):
    """A store as raykd wrote it before: hex keys, n among the parts, shards of 24 digits."""
    (path / "shards").mkdir(parents=True)
    (path / "store.json").write_text(json.dumps({"format": 1, "parts": {**PARTS, "sampling": sampling}}))
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("sample", pa.int32()),
            ("text", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("logprobs", pa.list_(pa.float32())),
            ("finish_reason", pa.string()),
        ]
    )
    for first in (0, 2):
        old = [
            {"key": key(n).hex(), "sample": s, "text": f"{n}.{s}", "token_ids": [n, s], "logprobs": [-1.0, -2.0]}
            for n in (first, first + 1)
            for s in range(2)
        ]
        shard = pa.Table.from_pylist([{**row, "finish_reason": "stop"} for row in old], schema=schema)
        pq.write_table(shard, path / "shards" / f"{first:024x}.parquet", compression="zstd")


def test_a_store_of_format_1_is_migrated(tmp_path):
    path = tmp_path / "old"
    format_1(path, {**PARTS["sampling"], "n": 2})
    with pytest.raises(StoreError, match="another model: 'abc', expected 'abd'"):
        open_store(tmp_path, {**PARTS, "model": "abd"}, TEXT, path)
    with pytest.raises(StoreError, match="another payload"):
        open_store(tmp_path, PARTS, TOP_4, path)
    with pytest.raises(StoreError, match="format 1; a run with it as teachers.NAME.store"):
        describe_store(Store(path))
    assert json.loads((path / "store.json").read_text())["format"] == 1  # a refusal changes nothing
    for _ in range(2):
        store = open_store(tmp_path, PARTS, TEXT, path)
        assert texts(store, map(key, range(4)), 2) == {key(n): [f"{n}.0", f"{n}.1"] for n in range(4)}
        assert verify_store(store) == [] and store.closed
        assert len(list((path / "shards").iterdir())) == 2
    read = pa.concat_tables(stored_tables(store, ["key", "sample", "token_ids"]))
    assert {(k, s): t for k, s, t in zip(*(read[c].to_pylist() for c in read.column_names), strict=True)} == {
        (key(n), s): [n, s] for n in range(4) for s in range(2)
    }


def test_a_migration_that_was_killed_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "old"
    format_1(path, {**PARTS["sampling"], "n": 2})
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_about", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_store(tmp_path, PARTS, TEXT, path)
    store = open_store(tmp_path, PARTS, TEXT, path)
    assert describe_store(store)["rows"] == 8 and verify_store(store) == []


# ------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("payload", [TEXT, TOP_4], ids=lambda p: p.kind)
def test_every_flip_and_every_cut_is_found(tmp_path, payload):
    store = open_store(tmp_path, PARTS, payload)
    write_shard(store, rows(range(2), payload=payload))
    shard = only(tmp_path / store.root)
    whole = shard.read_bytes()
    flips = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    cuts = [whole[:at] for at in range(0, len(whole), 97)] + [whole + b"\0"]
    for damaged in flips + cuts:
        shard.write_bytes(damaged)
        (line,) = verify_store(store)
        assert line.startswith(f"{store.path}/shards/{shard.name}: damaged shard: ")
        with pytest.raises(StoreError, match=f"{shard.name}: damaged shard: "):
            stored_tables(store, ["text"])
        with pytest.raises(StoreError, match=f"{shard.name}: damaged shard: "):
            texts(store, [key(0)], 1)
    for damaged in cuts[:-1]:
        shard.write_bytes(damaged)
        with pytest.raises(StoreError, match="damaged shard"):
            sample_counts(store)
    shard.write_bytes(whole)
    assert verify_store(store) == []


def test_a_half_written_shard_is_not_seen(tmp_path, store):
    (tmp_path / store.root / "shards").mkdir()
    (tmp_path / store.root / "shards" / f".{'0' * 16}-{'0' * 16}.parquet.1.2").write_bytes(b"PAR1")
    assert store.shards() == verify_store(store) == [] and len(sample_counts(store)[0]) == 0


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, store, monkeypatch, broken):
    write_shard(store, rows(range(2)))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        with pytest.raises(StoreError, match="cannot be written: No space left on device") as error:
            write_shard(store, rows(range(2, 4)))
    assert "\n" not in str(error.value)
    assert len(list((tmp_path / store.root / "shards").iterdir())) == 1
    write_shard(store, rows(range(2, 4)))
    assert len(store.shards()) == 2


def landed(store, name, content):
    """A shard as no `write` would land it."""
    data = shard_bytes(content)
    store.put(f"shards/{name * 16}-{hashlib.sha256(data).hexdigest()[:16]}.parquet", data)


def test_of_duplicate_rows_the_first_by_name_counts(tmp_path, store):
    for name in "fa0":
        said = pa.array([f"{name}{at}" for at in range(6)])
        landed(store, name, rows([1, 2, ord(name)]).set_column(2, "text", said))
    assert texts(store, [key(1), key(2)], 2) == {key(1): ["00", "01"], key(2): ["02", "03"]}
    found = StoreIndex(store, False, tmp_path / PASS).lookup(row_names_of([1, 2, *map(ord, "0af")]), ["text"])
    assert [row["text"] for row in found] == ["00", "01", "02", "03", "04", "05", "a4", "a5", "f4", "f5"]
    keys, samples = sample_counts(store)
    assert len(keys) == 5 and set(samples) == {2}
    assert [line.split(": ", 1)[1] for line in verify_store(store)] == [
        "4 duplicate rows: (key, sample) was there before"
    ] * 2


def test_verify_names_what_is_missing_or_cannot_be_right(tmp_path):
    store = open_store(tmp_path, PARTS, SAMPLED)
    write_shard(store, rows(range(4), payload=SAMPLED))
    store.close()
    shard = only(tmp_path / store.root)
    shard.rename(shard.with_name("elsewhere"))
    assert verify_store(store) == [f"{store.path}/shards/{shard.name}: missing: closed.json names it"]
    shard.with_name("elsewhere").rename(shard)
    assert verify_store(store) == []
    landed(store, "0", rows([7]))
    counts = [[1]] + lists(rows([8], payload=SAMPLED)["sampled_counts"])[1:]
    at = rows([8], payload=SAMPLED).column_names.index("sampled_counts")
    wrong = rows([8], payload=SAMPLED).set_column(at, "sampled_counts", pa.array(counts, pa.list_(pa.uint8())))
    landed(store, "1", wrong)
    lines = verify_store(store)
    assert len(lines) == 2
    assert "wrong schema" in lines[0] and "row 0: 1 sampled_counts for 1 tokens, expected" in lines[1]
    whole = rows([9], range(1), payload=SAMPLED)
    whole = whole.set_column(3, "token_ids", pa.array([[5]], pa.list_(pa.int32())))
    landed(store, "3", whole)
    assert "row 0: 2 sampled_lengths for 1 tokens, expected 1" in verify_store(store)[3]
    store = open_store(tmp_path, PARTS, TOP_4)
    whole = rows([4], payload=TOP_4)
    short = [ids[:-1] if len(ids) else ids for ids in lists(whole["top_ids"])]
    at = whole.column_names.index("top_ids")
    landed(store, "2", whole.set_column(at, "top_ids", pa.array(short, pa.list_(pa.int32()))))
    assert any("top_ids for 4 tokens" in line or "top_logprobs for 4 tokens" in line for line in verify_store(store))


# ----------------------------------------------------------------------------- elsewhere, and while it grows


def test_a_store_at_a_url(tmp_path):
    folder = f"memory://{tmp_path.name}"
    store = open_store(folder, PARTS, TOP_8)
    assert store.path.startswith(folder)
    write_shard(store, rows(range(3), payload=TOP_8))
    store.close()
    again = pickle.loads(pickle.dumps(open_store(folder, PARTS, TOP_4)))
    assert again.path == store.path and again.closed and verify_store(again) == []
    assert len(sample_counts(again)[0]) == 3 and texts(again, [key(2)], 1) == {key(2): ["2.0"]}
    assert stored_tables(again, ["top_ids"])[0].num_rows == 6
    assert describe_store(again)["state"] == "closed"


def test_a_full_bucket_is_one_line(tmp_path, monkeypatch):
    store = open_store(f"memory://{tmp_path.name}", PARTS, TEXT)

    def full(*_, **__):
        raise OSError("quota exceeded")

    monkeypatch.setattr(type(store.fs), "pipe_file", full)
    with pytest.raises(StoreError, match="cannot be written: quota exceeded"):
        write_shard(store, rows(range(3)))


def test_a_write_opens_a_closed_store(store):
    write_shard(store, rows(range(2)))
    assert not store.closed
    store.close()
    assert Store(store.path).closed
    write_shard(store, rows(range(2, 4)))
    assert not store.closed


def test_a_reader_follows_until_the_store_is_closed(tmp_path, store, monkeypatch):
    monkeypatch.setattr(follow, "POLL", 0.01)
    opened, read = [], Store.read_shard
    monkeypatch.setattr(Store, "read_shard", lambda self, name, *rest: opened.append(name) or read(self, name, *rest))
    write_shard(store, rows([100]))
    order = [3, 1, 4, 0, 2]
    seen: list[str] = []

    def work():
        other = Store(store.path)
        for number in order:
            while f"{number}.0" not in seen and len(seen) < 2 * (1 + order.index(number)):
                time.sleep(0.005)  # until the reader has what landed before
            write_shard(other, rows([number]))
        other.close()

    writer = threading.Thread(target=work)
    writer.start()
    index = StoreIndex(store, True, tmp_path / PASS)
    for number in [100, *order]:
        seen += [row["text"] for row in index.lookup(row_names_of([number]), ["text"])]
    assert index.lookup(row_names_of([7]), ["text"]) == [None, None]  # once the store is closed, not before
    writer.join()
    assert seen == [f"{n}.{s}" for n in [100, *order] for s in range(2)]
    assert sorted(opened) == store.shards()  # each once


# --------------------------------------------------------------------------------------------------- sizes


def distribution(rng, vocabulary=152_000):
    """Log-probabilities like a teacher's: a bell of logits, and some tokens that fit far better."""
    logits = rng.normal(0, rng.uniform(2.5, 3.0), vocabulary)
    logits[rng.integers(0, vocabulary, 60)] += rng.uniform(6, 12, 60)
    return (logits - np.logaddexp.reduce(logits)).astype(np.float32)


def test_bytes_per_token_at_a_large_vocabulary(tmp_path):
    rng, tokens = np.random.default_rng(0), 250
    ids, logprobs, drawn = [], [], []
    for _ in range(tokens):
        all_logprobs = distribution(rng)
        best = np.argsort(-all_logprobs)[:64]
        ids.append(best), logprobs.append(all_logprobs[best])
        probabilities = np.exp(all_logprobs.astype(np.float64))
        draws = rng.choice(len(probabilities), 50, p=probabilities / probabilities.sum())
        drawn.append(np.unique(draws, return_counts=True))
    assert 8 < np.mean([len(i) for i, _ in drawn]) < 30  # "about a dozen": neither too easy nor no language
    top = {"top_ids": np.array(ids, np.int32), "top_logprobs": np.array(logprobs)}
    sampled = {
        "sampled_ids": np.concatenate([i for i, _ in drawn]).astype(np.int32),
        "sampled_counts": np.concatenate([c for _, c in drawn]).astype(np.uint8),
        "sampled_lengths": np.array([len(i) for i, _ in drawn], np.int32),
    }
    for payload, arrays, most in ((TopKPayload(kind="top_k", k=64), top, 225), (SAMPLED, sampled, 50)):
        store = open_store(tmp_path, PARTS, payload)
        one = PseudoTarget("x", np.zeros(tokens, np.int32), np.zeros(tokens, np.float32), "stop", arrays)
        write_shard(store, shard_table([key(1)], range(1), [[one]], payload))
        found = describe_store(store)["bytes_per_token_of"]
        # the bars are 300 and 60; these are what was measured, and a little
        took = sum(found[name] for name in arrays)
        assert took <= most


def test_held_is_small_in_memory(tmp_path, store):
    keys, shards = 200_000, 10
    digests = np.frombuffer(np.random.default_rng(0).bytes(16 * keys), "S16").reshape(shards, -1)
    for part in digests:
        count = len(part)
        columns = {
            "key": pa.Array.from_buffers(pa.binary(16), count, [None, pa.py_buffer(part.tobytes())]),
            "sample": pa.array(np.zeros(count, np.int32)),
            "text": pa.array([""] * count),
            "token_ids": pa.array([[]] * count, pa.list_(pa.int32())),
            "logprobs": pa.array([[]] * count, pa.list_(pa.float32())),
            "finish_reason": pa.array(["stop"] * count),
        }
        write_shard(store, pa.table(columns, schema=shard_schema(TEXT)))
    tracemalloc.start()
    held, samples = sample_counts(store)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held) == keys and (samples == 1).all()
    assert size < 30 * keys and peak < 80 * keys
    np.testing.assert_array_equal(held, np.sort(digests.ravel()))


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "student", "kind"),
    [
        (40, 64, 1_000_000, "top_k"),
        (152_000, 4096, 600_000_000, "sampled"),
        (152_000, 4096, 40_000_000_000, "sampled"),  # 8 KB per token is no archive
        (32_000, 128, 10_000_000, "sampled"),  # small, and 14 % more to compute
        (32_000, 128, 100_000_000, "hidden"),
    ],
)
def test_the_payload_is_chosen_by_arithmetic(vocabulary, hidden, student, kind):
    payload, why = choose_payload(vocabulary, hidden, student)
    assert payload.kind == kind and why.startswith(kind)
    if kind in ("sampled", "hidden"):
        assert str(2 * hidden) in why and f"{100 * hidden * vocabulary / (3 * student):.1f} %" in why


# -------------------------------------------------------------------------------------------- command line


def test_the_command_line_shows_and_verifies(tmp_path, store, capsys):
    write_shard(store, rows(range(3)))
    store.close()
    assert cli.main(["store", "show", store.path]) == 0
    shown = capsys.readouterr().out
    assert "rows: 6\n" in shown and "state: closed\n" in shown and "prompt: '{input}'\n" in shown
    assert cli.main(["store", "verify", store.path]) == 0
    assert capsys.readouterr().out == "sound: 6 rows in 1 shards\n"
    shard = only(tmp_path / store.root)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert cli.main(["store", "verify", store.path]) == 1
    assert f"{shard.name}: damaged shard: " in capsys.readouterr().out
    assert cli.main(["store", "show", str(tmp_path / "none")]) == 1
    assert "none: no store there" in capsys.readouterr().err


def test_looking_after_a_store_needs_neither_torch_nor_ray(store):
    code = (
        "import sys; from raykd import cli; cli.main(['store', 'verify', sys.argv[1]]);"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sound: 0 rows in 0 shards\n"
