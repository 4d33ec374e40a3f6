"""Where sequences and the teacher's outputs come from: every source gives the loop the same, as far as it can."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import LLAMA, pairs, write_rows

from raykd.data import prompts
from raykd.data.examples import Example, save_examples, save_rows
from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource, StoredSource
from raykd.engines.engine import EngineConfig, open_engine
from raykd.errors import ModelError, RecipeError, TrainingError
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.generation import (
    HiddenPayload,
    SampledPayload,
    Sampling,
    TextPayload,
    TopKPayload,
    TransformersEngine,
)
from raykd.recipe.losses import TeacherMse
from raykd.recipe.models import FromConfig
from raykd.recipe.training import Sequences, Training
from raykd.stages.labelling import PROMPTS
from raykd.store.open import open_store
from raykd.store.schema import shard_table
from raykd.store.store import Store
from raykd.store.write import write_shard
from raykd.training import loop
from raykd.training.dataset import ChunkReader, EncodedDataset
from raykd.training.encode import Limits, encode_source
from raykd.training.job import MarkedSource, TrainingSpec
from raykd.training.loop import train
from raykd.training.sequences import targets_of_epoch
from raykd.training.teachers import InProcessTeacher

BERT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
RULES = {"name": "t", "input_tokens": 99, "target_tokens": 99, "bad_rows": 0}
RULES |= {"long_targets": "refuse", "empty_targets": "keep"}
PAYLOADS = {
    "top_k": TopKPayload(kind="top_k", k=20),  # all the tokens there are
    "hidden": HiddenPayload(kind="hidden"),
    "sampled": SampledPayload(kind="sampled", draws=250),
    "text": TextPayload(kind="text"),
}


@pytest.fixture(scope="module")
def answered(tiny_models, tmp_path_factory):
    """By payload: (keys, answers of a tiny llama, two samples each)."""
    found = {}
    rendered = [f"{row['input']} =>" for row in pairs(60)]
    for name, payload in PAYLOADS.items():
        sampling = Sampling(n=2, temperature=1.0, max_tokens=6)
        engine = open_engine(
            EngineConfig(
                engine=TransformersEngine(kind="transformers"),
                model=str(tiny_models["llama"]),
                sampling=sampling,
                seed=0,
                threads=1,
                payload=payload,
            )
        )
        found[name] = engine.generate(rendered, range(2))
        engine.close()
    return [prompts.key(text) for text in rendered], found


def stored(folder: Path, answered, kind: str, rows: slice = slice(None), close: bool = True) -> StoredSource:
    """A store that holds the answers to some of the prompts, in shards of 16."""
    keys, answers = answered
    payload = PAYLOADS[kind]
    texts = [row["input"] for row in pairs(60)]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [("unlabelled", f"r{i}", t, k, f"{t} =>", None) for i, (t, k) in enumerate(zip(texts, keys, strict=True))]
    save_rows(folder / "prompts.parquet", lines, PROMPTS)
    store = open_store(folder, {}, payload, folder / "store")
    mine = list(zip(keys, answers[kind], strict=True))[rows]
    for at in range(0, len(mine), 16):
        part = mine[at : at + 16]
        write_shard(store, shard_table([k for k, _ in part], range(2), [a for _, a in part], payload))
    if close:
        store.close()
    else:
        store.begin()
    return StoredSource(
        prompts=str(folder / "prompts.parquet"),
        store=store.path,
        sources=("unlabelled",),
        samples=2,
        chunk=16,
        seed=3,
        payload=None if kind == "text" else payload,
    )


def training_spec(folder: Path, tokenizer, model, source, **changes) -> TrainingSpec:
    settings = {
        "learning_rate": 0.01,
        "max_steps": 4,
        "batch_tokens": 400,
        "evaluate_every": 2,
        "holdout": 0.2,
        "empty_targets": "keep",  # the tiny teacher often says nothing
    } | changes
    (folder / "train").mkdir(parents=True, exist_ok=True)
    return TrainingSpec(
        name="train",
        model=FromConfig(kind="config", model_type="llama", settings=LLAMA),
        tokenizer=str(tokenizer),
        training=Training(**settings),
        rows=MarkedSource((source,), "store"),
        student=PromptEncoder(str(tokenizer), "{input} =>"),
        teacher=PromptEncoder(str(model), "{input} =>"),
        folder=str(folder / "train"),
        tokens=str(folder / "tokens"),
        seed=1,
        threads=1,
    )


def log(spec: TrainingSpec) -> list[dict]:
    lines = [json.loads(line) for line in (Path(spec.folder) / "log.jsonl").read_text().splitlines()]
    for line in lines:
        [line.pop(name, None) for name in ("seconds", "tokens_per_second")]
    return lines


def test_what_is_stored_teaches_as_the_teacher_itself_does(
    tmp_path, shared_tokenizer, tiny_models, answered, monkeypatch
):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    teacher, found = tiny_models["llama"], {}
    for name in ("top_k", "hidden", "sampled"):
        losses = {"soft_cross_entropy": {}} if name == "sampled" else {"forward_kl": {}, "reverse_kl": {"weight": 0.5}}
        for side in ("store", "in_process"):
            own = tmp_path / name / side
            where = {"kind": side} | ({"dtype": "float32"} if side == "in_process" else {})
            spec = training_spec(
                own, shared_tokenizer, teacher, stored(own, answered, name), losses=losses, teacher=where
            )
            train(spec, lambda metrics, folder: None)
            found[name, side] = np.array([[line.get("loss", line.get("dev_loss"))] for line in log(spec)])
    for name, first, later in (("top_k", 1e-3, 0.05), ("hidden", 1e-3, 0.05), ("sampled", 0.05, 0.2)):
        stored_one, itself = found[name, "store"], found[name, "in_process"]
        np.testing.assert_allclose(stored_one[0], itself[0], rtol=first)
        np.testing.assert_allclose(stored_one, itself, rtol=later)  # Adam makes much of half precision's rounding
    assert not np.allclose(found["top_k", "store"], found["sampled", "store"], rtol=0.05)


class Scorer:
    """As actors are, in this process."""

    def __init__(self, teacher, shared_vocab_size, k):
        self.teacher = InProcessTeacher(PromptEncoder(str(teacher), ""), "float32", "cpu", shared_vocab_size)
        self.k = k

    def ask(self, tensors):
        return self.teacher.top_k(tensors, self.k)

    def wait(self, request):
        return request


def test_a_scorer_teaches_as_well(tmp_path, shared_tokenizer, tiny_models, answered):
    teacher, found = tiny_models["llama"], []
    for side in ("remote", "in_process"):
        own, where = tmp_path / side, {"kind": side, "dtype": "float32"}
        losses = {"forward_kl": {"temperature": 2.0}, "dkd": {}}
        spec = training_spec(
            own, shared_tokenizer, teacher, stored(own, answered, "text"), losses=losses, teacher=where
        )
        scorer = Scorer(teacher, 20, 100) if side == "remote" else None
        train(spec, lambda metrics, folder: None, scorer=scorer)
        found.append([line["dev_loss"] for line in log(spec) if "dev_loss" in line])
    assert found[0] == pytest.approx(found[1], rel=1e-5) and any(found[0])


def test_what_the_store_lacks_is_one_line(tmp_path, shared_tokenizer, tiny_models, answered):
    source = stored(tmp_path, answered, "text")
    spec = training_spec(tmp_path, shared_tokenizer, tiny_models["llama"], source, losses={"forward_kl": {}})
    with pytest.raises(RecipeError, match="train: losses.forward_kl needs the teacher's side, and the rows are texts"):
        train(spec, lambda metrics, folder: None)
    with pytest.raises(ModelError, match="losses.forward_kl needs a teacher"):
        train(replace(spec, teacher=None), lambda metrics, folder: None)
    alone = spec.training.model_copy(update={"losses": {"teacher_mse": TeacherMse(kind="teacher_mse")}})
    student = replace(spec.student, task="regression")
    spec = replace(spec, model=FromConfig(kind="config", model_type="bert", settings=BERT), student=student)
    with pytest.raises(RecipeError, match="train: losses.teacher_mse needs the teacher's side, and the rows are texts"):
        train(replace(spec, training=alone), lambda metrics, folder: None)


def test_a_student_follows_a_store_that_is_still_written(tmp_path, shared_tokenizer, tiny_models, answered):
    """The trajectory is that of a finished store, whatever lands when; one prompt is refused."""
    keys, answers = answered
    teacher, logs = tiny_models["llama"], []
    changes = {"losses": {"forward_kl": {}}, "max_steps": None, "epochs": 2, "batch_tokens": 120}
    for slowly in (False, True):
        own = tmp_path / str(slowly)
        there = slice(1, 60) if not slowly else slice(40, 60)
        source = replace(stored(own, answered, "top_k", there, close=not slowly), follow=True)
        (own / "pass.json").write_text(json.dumps({"refused": [keys[0].hex()], "failed": None}))

        def land(source=source):
            store = Store(source.store)
            for first in (24, 8, 1, 32, 16):
                time.sleep(0.4)
                rows = slice(first, min(first + (7 if first == 1 else 8), 40))
                write_shard(store, shard_table(keys[rows], range(2), answers["top_k"][rows], PAYLOADS["top_k"]))
            store.close()

        writer = threading.Thread(target=land)
        if slowly:
            writer.start()
        spec = training_spec(own, shared_tokenizer, teacher, source, **changes)
        result = train(spec, lambda metrics, folder: None)
        if slowly:
            writer.join()
        assert result["stats"]["rows"] + result["stats"]["dev_rows"] == 59
        logs.append(log(spec))
    assert logs[0] == logs[1] and logs[0][-1]["step"] > 10
    assert logs[0][-2]["epoch"] == pytest.approx(2)


def test_a_teacher_that_stops_ends_who_follows_it(tmp_path, shared_tokenizer, tiny_models, answered):
    source = replace(stored(tmp_path, answered, "top_k", slice(0, 20), close=False), follow=True)
    (tmp_path / "pass.json").write_text(json.dumps({"refused": [], "failed": "the engine died"}))
    spec = training_spec(tmp_path, shared_tokenizer, tiny_models["llama"], source, losses={"forward_kl": {}})
    with pytest.raises(TrainingError, match="the teacher, which is followed, stopped: the engine died"):
        train(spec, lambda metrics, folder: None)


ALL_SAMPLES = {"pass": "pseudo_targets", "samples": "all"}
# four rows: two samples; two samples and gold; gold alone; one sample
ROWS: object = SimpleNamespace(
    first=np.array([0, 2, 5, 6, 7]), gold=np.array([False, False, False, False, True, True, False])
)


@pytest.mark.parametrize(
    ("sequences", "epoch", "targets"),
    [
        (["pseudo_targets"], 0, [0, 2, 5, 6]),
        (["pseudo_targets"], 1, [1, 3, 5, 6]),
        (["pseudo_targets"], 2, [0, 2, 5, 6]),
        ([ALL_SAMPLES], 3, [0, 1, 2, 3, 5, 6]),
        (["gold"], 0, [0, 4, 5, 6]),
        (["gold", "pseudo_targets"], 1, [1, 3, 4, 5, 6]),
        ([ALL_SAMPLES, "gold"], 1, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_which_target_is_taught(sequences, epoch, targets):
    union = Sequences.model_validate({"union": sequences})
    of_epoch = targets_of_epoch(ROWS, np.arange(4), union, 1, epoch)  # type: ignore[arg-type]
    assert of_epoch.numbers.tolist() == targets and not of_epoch.sampled.any()


def test_shares_of_rows_are_kept():
    count = 4000
    both = SimpleNamespace(first=np.arange(count + 1) * 2, gold=np.tile([False, True], count))
    taught = {}
    for by in ("row", "ratio"):
        shares = Sequences.model_validate({"shares": {"gold": 0.3, "pseudo_targets": 0.7}, "by": by})
        found = [both.gold[targets_of_epoch(both, np.arange(count), shares, 1, epoch).numbers] for epoch in (0, 1)]  # type: ignore[arg-type]
        assert not np.array_equal(*found)
        taught[by] = [one.mean() for one in found]
    assert taught["ratio"] == [0.3, 0.3]
    assert taught["row"] == pytest.approx([0.3, 0.3], abs=0.03) and taught["row"][0] != 0.3


def test_gold_is_a_further_target_of_the_same_input(tmp_path, shared_tokenizer, tiny_models, answered):
    gold = tmp_path / "gold.parquet"
    save_examples(gold, [Example(r["id"], r["input"], r["target"]) for r in pairs(60)])
    source = replace(stored(tmp_path, answered, "text"), gold=str(gold))
    reading = PromptEncoder(str(shared_tokenizer), "{input} =>")
    limits = Limits(**RULES | {"name": "train"})
    encode_source(tmp_path / "s.arrow", (source,), reading, None, limits)
    found = EncodedDataset(ChunkReader(tmp_path / "s.arrow").more())
    tokenizer = load_tokenizer(str(shared_tokenizer))
    assert len(found) == 60 and np.diff(found.first).tolist() == [3] * 60 and found.gold.sum() == 60
    row = 17
    text = tokenizer.decode(found.source(row)).removesuffix(" =>")
    assert tokenizer.decode(found.target(int(found.first[row]) + 2), skip_special_tokens=True) == text.upper()


def test_rows_that_do_not_fit(tmp_path, shared_tokenizer):
    rows = [{"id": "a", "input": "a b", "target": "A B C D E"}, {"id": "b", "input": "a", "target": " "}, pairs(1)[0]]
    source = FileSource(str(write_rows(tmp_path / "rows.jsonl", rows)))
    reading = PromptEncoder(str(shared_tokenizer), "{input}", encoder=True)

    def written(**rules):
        about = encode_source(tmp_path / "s.arrow", source, reading, None, Limits(**RULES | rules))
        return about, EncodedDataset(ChunkReader(tmp_path / "s.arrow").more())

    about, found = written(input_tokens=9, target_tokens=6, empty_targets="refuse", bad_rows=1)
    assert (
        about
        == {"rows": 2, "bad_rows": [{"row": "b", "reason": "target is empty"}], "cut": 0, "empty": 0, "missing": 0}
        and len(found) == 2
    )
    about, found = written(input_tokens=9, target_tokens=3, long_targets="cut")
    assert (
        about["cut"] == 2 and about["empty"] == 1 and about["rows"] == 3 and found.target_lengths.tolist() == [3, 1, 3]
    )
