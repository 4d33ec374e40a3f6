"""What used to end a run after the teacher was fine-tuned or had labelled, and is refused before: by its exact line."""

from __future__ import annotations

import resource
import shutil
import sys
import time

import pytest
import yaml
from conftest import LLAMA, T5, pairs, raykd, write_rows

from raykd.errors import RaykdError
from raykd.models.load import load_model
from raykd.models.tokenizers import build_tokenizer, load_tokenizer
from raykd.recipe.generation import TextPayload
from raykd.recipe.load import load_recipe
from raykd.recipe.models import FromConfig, WordsTokenizer
from raykd.run.session import Session
from raykd.stages.preflight import preflight
from raykd.store.open import open_store

TRAINING = {"learning_rate": 0.01, "max_steps": 10}
BERT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CLASSES = {"task": "classification", "labels": ["A", "B"]}


def checkpoint(folder, kind: str, settings: dict, tokenizer, **head):
    """A folder with a saved model of random weights, and its tokenizer."""
    spec = FromConfig(kind="config", model_type=kind, settings=settings)
    load_model(spec, load_tokenizer(tokenizer), **head).save_pretrained(folder)
    load_tokenizer(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared_tokenizer, tiny_models):
    """Rows and models that recipes name."""
    folder = tmp_path_factory.mktemp("preflight")
    write_rows(folder / "rows.jsonl", pairs(80))
    write_rows(folder / "classes.jsonl", [{**row, "target": "AB"[i % 2]} for i, row in enumerate(pairs(80))])
    write_rows(
        folder / "long.jsonl",
        [{**row, "input": " ".join([*["a"] * 99, *row["input"].split()][-100:])} for row in pairs(70)],
    )
    write_rows(folder / "one.jsonl", pairs(1))
    write_rows(folder / "same.jsonl", [{**row, "input": "a b"} for row in pairs(40)])
    write_rows(folder / "three.jsonl", pairs(3))
    shutil.copytree(tiny_models["llama"], folder / "llama")
    shutil.copytree(tiny_models["t5"], folder / "t5")
    build_tokenizer(WordsTokenizer(kind="words"), ["other words"], folder / "words")
    checkpoint(folder / "other", "llama", LLAMA, folder / "words")
    labels = ["A", "B", "C"]
    checkpoint(folder / "three", "bert", BERT, shared_tokenizer, task="classification", labels=labels)
    checkpoint(folder / "wpe", "gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}, shared_tokenizer)
    shutil.copytree(folder / "llama", folder / "no_weights")
    (folder / "no_weights" / "model.safetensors").unlink()
    return folder


def rows(folder, name: str = "rows") -> dict:
    return {"kind": "jsonl", "path": str(folder / f"{name}.jsonl"), "columns": {"target": "target", "id": "id"}}


def recipe(folder, tmp_path, changes: dict):
    """A small complete recipe with changes, `section__field` -> value; FOLDER in a text stands for the folder."""
    tree = {
        "name": "small",
        "output": str(tmp_path / "runs"),
        "method": {"kind": "distill"},
        "data": {"unlabelled": rows(folder)},
        "tokenizer": {"kind": "words", "extra": ["=>"]},
        "teachers": {
            "main": {
                "model": {"kind": "checkpoint", "path": "FOLDER/llama"},
                "prompt": "{input} =>",
                "engine": {"kind": "transformers"},
                "passes": {"pseudo_targets": {"max_tokens": 10}},
            }
        },
        "student": {
            "model": {"kind": "config", "model_type": "t5", "settings": T5},
            "training": TRAINING,
            "sampling": {"max_tokens": 10},
        },
    }
    for path, value in changes.items():
        *sections, field = path.split("__")
        at = tree
        for section in sections:
            at = at.setdefault(section, {})
        at[field] = value
        if path == "student__model" and value["kind"] != "config":
            tree["tokenizer"] = None
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree).replace("FOLDER", str(folder)))
    return load_recipe(file)


def student(**settings) -> dict:
    return {"student__training": {**TRAINING, **settings}}


def model(kind: str, **settings) -> dict:
    return {"student__model": {"kind": "config", "model_type": kind, "settings": settings}}


ENDPOINT = {"kind": "endpoint", "url": "http://127.0.0.1:1/v1", "api_key_env": "NO_SUCH_KEY_HERE"}
OWN = {"kind": "checkpoint", "path": "FOLDER/llama"}
ALL = " (64 of the first 64 inputs, 0 bad rows tolerated)"
GOLD = {"student__training": {**TRAINING, "sequences": {"union": ["gold"]}}}
JSD = {"losses": {"jsd": {}}}
IN_PROCESS = {**JSD, "teacher": {"kind": "in_process"}}

# changes of the recipe, files whose rows replace those of a split, the line
REFUSED = [
    (
        model("t5", **T5, dmodel=3),
        {},
        "student.training: settings.dmodel: t5 has no such setting; d_model?",
    ),
    (
        model("llama", **{**LLAMA, "num_attention_heads": 3}),
        {},
        "student.training: settings of llama: ValueError: The hidden size (64) is not a multiple of the number of "
        "attention heads (3).",
    ),
    (
        model("llama", **{**LLAMA, "hidden_size": "wide"}),
        {},
        "student.training: settings of llama: TypeError: Field 'hidden_size' expected int, got str (value: 'wide')",
    ),
    (
        model("llama", **{**LLAMA, "hidden_act": "relUU"}),
        {},
        "student.training: llama: a model of this configuration cannot be built: KeyError: 'relUU'",
    ),
    (
        model("qwen3", **{**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 3, "head_dim": 16}),
        {},
        "student.training: qwen3: a model of this configuration cannot be built: ",
    ),
    (model("vit"), {}, "student.training: transformers has no vit model for the task generation"),
    (
        student(lora={"modules": ["no_such_layer"]}),
        {},
        "student.training: lora.modules ['no_such_layer']: Target modules {'no_such_layer'} not found in the base "
        "model. Please check the target modules and try again.",
    ),
    (
        {"student__model": {"kind": "checkpoint", "path": "FOLDER/other"}, **student(**JSD)},
        {},
        "student.training.losses: the tokenizers differ, so token-level losses have no meaning: 'other' is [3] to the "
        "student's and [2] to the teacher's",
    ),
    (
        {"teachers__main__model": {"kind": "checkpoint", "path": "FOLDER/three"}},
        {},
        "teachers.main.model: FOLDER/three is a model for the task classification, expected generation",
    ),
    (
        {"teachers__main__model": {"kind": "checkpoint", "path": "FOLDER/no_weights"}},
        {},
        "teachers.main.model: FOLDER/no_weights: no safetensors weights",
    ),
    (
        {
            **{f"teachers__main__{name}": value for name, value in CLASSES.items()},
            "teachers__main__model": {"kind": "checkpoint", "path": "FOLDER/three"},
            "teachers__main__passes__pseudo_targets": {},
        },
        {},
        "teachers.main.model: FOLDER/three has been trained for the classes ['A', 'B', 'C'], in this order, "
        "not ['A', 'B']",
    ),
    (
        {"teachers__main__passes__pseudo_targets": {"max_tokens": 64}},
        {},
        "teachers.main: row r0: prompt of 5 tokens + max_tokens 64 > the model's context of 64" + ALL,
    ),
    (
        {"student__model": OWN, "student__sampling": {"max_tokens": 62}},
        {},
        "student: row r0: prompt of 4 tokens + max_tokens 62 > the model's context of 64" + ALL,
    ),
    (
        {},
        {"unlabelled": "long"},
        "teachers.main: row r0: prompt of 101 tokens + max_tokens 10 > the model's context of 64" + ALL,
    ),
    (
        student(max_input_tokens=3),
        {},
        "student: row r0: input of 5 tokens, student.training.max_input_tokens is 3" + ALL,
    ),
    ({}, {"unlabelled": "one"}, "data.unlabelled: 1 different inputs, expected 2 or more"),
    (
        {"teachers__main__engine": {"kind": "scripted"}},
        {"unlabelled": "same"},
        "data.unlabelled: 1 different inputs, expected 2 or more",
    ),
    (
        {"method": {"kind": "mckd"}, "data__unlabelled__limit": 6},
        {"unlabelled": "three"},
        "data.unlabelled: 3 different inputs, expected 4 or more",
    ),
    (
        {**GOLD, "student__training": {**GOLD["student__training"], "max_target_tokens": 2}},
        {"gold": "rows"},
        "student.training: data.gold: row r0: target of 5 tokens, at most 2 (bad row 1, 0 tolerated)",
    ),
    (
        {
            "data__max_bad_rows": 80,
            **GOLD,
            "student__training": {**GOLD["student__training"], "max_target_tokens": 2},
        },
        {"gold": "rows"},
        "student.training: none of the first 64 rows of data.gold can be learnt: target of 5 tokens, at most 2",
    ),
    (
        {
            "student__model": {"kind": "checkpoint", "path": "FOLDER/wpe"},
            "student__sampling": {"max_tokens": 2},
            **GOLD,
        },
        {"gold": "long", "unlabelled": "rows"},
        "student.training: data.gold: row r0: input of 100 tokens, at most 16 (bad row 1, 0 tolerated)",
    ),
    (
        {"teachers__main__prompt": {"kind": "chat"}},
        {},
        "teachers.main.prompt: prompt: kind chat needs a tokenizer with a chat template, and this one has none",
    ),
    (
        {"student__prompt": {"kind": "completion", "shots": {"rows": "ONE", "count": 2}}},
        {},
        "student.prompt: prompt.shots.rows: 1 rows, prompt.shots.count asks for 2",
    ),
    (
        {"pseudo_targets__format": "trees", "metrics": [{"kind": "bracket_f1"}]},
        {"test": "rows"},
        "pseudo_targets.format: none of the first 64 targets of data.test is of the format trees: ",
    ),
    (
        {"metrics": [{"kind": "chunk_f1"}]},
        {"test": "rows"},
        "metrics: chunk_f1: no reference has a slot",
    ),
    (
        {"student__push_to_hub": {"repo": "me/small"}},
        {},
        "student.push_to_hub: no token for the hub: set HF_TOKEN, or `hf auth login`",
    ),
    (
        {"cluster__student": {"storage": "nosuch://place"}},
        {},
        "cluster.student.storage: nosuch://place: Protocol not known: nosuch",
    ),
    (
        {"teachers__main__store": "/proc/no/store"},
        {},
        "teachers.main.store: /proc/no/store: ",
    ),
    (
        {
            "teachers__main__model": {"kind": "endpoint", "name": "big"},
            "teachers__main__engine": {
                "kind": "endpoint",
                "url": "http://127.0.0.1:1/v1",
                "api_key_env": "NO_SUCH_KEY_HERE",
            },
        },
        {},
        "teachers.main.engine.api_key_env: the environment has no NO_SUCH_KEY_HERE",
    ),
    (
        {"teachers__main__engine": {"kind": "vllm"}, "teachers__main__payload": {"kind": "top_k", "k": 64}},
        {},
        "teachers.main.payload.k: expected at most 20, the teacher's tokens, found 64",
    ),
    (
        {"teachers__main__engine": {"kind": "vllm", "arguments": {"max_model_len": 65}}},
        {},
        "teachers.main.engine.arguments.max_model_len: expected at most 64, the model's positions, found 65",
    ),
    (
        {"teachers__main__engine": {"kind": "vllm", "arguments": {"tensor_parallel_size": 2}}},
        {},
        "teachers.main.engine.arguments.tensor_parallel_size: expected a divisor of 1, the model's attention heads, "
        "found 2",
    ),
    (
        {
            "student__model": {"kind": "checkpoint", "path": "FOLDER/wpe"},
            "student__sampling": {"max_tokens": 2},
            **student(dev_metrics=[{"kind": "exact_match"}], dev_prediction_tokens=16),
        },
        {},
        "student.training.dev_prediction_tokens: expected less than 16, the model's positions, found 16",
    ),
    (
        {
            "student__prompt": {
                "kind": "completion",
                "shots": {"rows": "ONE", "count": 1, "choose": "embedding", "encoder": "FOLDER/nowhere"},
            }
        },
        {},
        "student.prompt: FOLDER/nowhere: no tokenizer: ",
    ),
]


def line(session: Session, folder) -> str:
    with session, pytest.raises(RaykdError) as error:
        preflight(session)
    return str(error.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize(("changes", "files", "words"), REFUSED, ids=lambda v: v[:50] if isinstance(v, str) else "")
def test_what_cannot_end_well_is_one_line_before_the_teacher_is_paid(
    folder, tmp_path, monkeypatch, changes, files, words
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    splits = {name: rows(folder, file) for name, file in files.items()}
    named = {f"data__{name}": {"main": split} if name == "test" else split for name, split in splits.items()}
    changes = {**named, **changes}
    changes = yaml.safe_load(
        yaml.safe_dump(changes).replace("ONE", yaml.safe_dump(rows(folder, "one"), default_flow_style=True))
    )
    text = line(Session(recipe(folder, tmp_path, changes)), folder)
    assert text.startswith(words) and (text == words or words.endswith(": ")) and "\n" not in text and len(text) <= 600
    assert not list((tmp_path / "runs").rglob("teacher/manifest.json"))


RIGHT = [
    {},
    {"student__model": OWN, **student(**JSD)},
    {"student__model": OWN, **student(**IN_PROCESS)},
    {"student__model": {"kind": "checkpoint", "path": "FOLDER/t5"}, **student(**IN_PROCESS)},
    {"student__model": {"kind": "checkpoint", "path": "FOLDER/t5"}, **student(**JSD, lora={"rank": 2})},
    {"student__model": {"kind": "checkpoint", "path": "FOLDER/wpe"}, "student__sampling": {"max_tokens": 2}},
    student(gradient_checkpointing=True, precision="float64"),
    {"data__max_bad_rows": 2, "student__prompt": {"kind": "completion", "template": "{input} now"}},
]


@pytest.mark.parametrize("changes", RIGHT)
def test_what_may_end_well_is_let_through_within_seconds_and_without_ray(folder, tmp_path, changes):
    with Session(recipe(folder, tmp_path, changes)) as session:
        before, started = (
            "vllm" in sys.modules,
            time.process_time(),
        )  # of this process: another load beside it does not count
        preflight(session)
        assert time.process_time() - started < 30
    assert ("vllm" in sys.modules) == before  # other tests may have loaded it
    assert {path.parent.name for path in session.path.rglob("manifest.json")} <= {"data", "tokenizer"}


def test_a_named_store_with_other_settings_is_one_line(folder, tmp_path):
    store = tmp_path / "store"
    open_store(tmp_path, {"model": "x", "prompt": "{input}", "engine": "vllm"}, TextPayload(kind="text"), store)
    text = line(Session(recipe(folder, tmp_path, {"teachers__main__store": str(store)})), folder)
    assert text.startswith(
        f"teachers.main.store: {store}: written with another prompt: '{{input}}', expected '{{input}} =>'; "
        "another engine: 'vllm', expected 'transformers'; another sampling: None, expected {"
    )


def test_it_is_not_done_again_once_the_teacher_has_labelled(folder, tmp_path):
    session = Session(recipe(folder, tmp_path, {"teachers__main__passes__pseudo_targets": {"max_tokens": 64}}))
    with session:
        session.stage("teacher/labels", "label", {}, lambda folder: ({}, {}))
        preflight(session)


@pytest.mark.parametrize("command", ["run", "label", "tune"])
def test_the_command_line_ends_within_seconds_and_without_ray(folder, tmp_path, command):
    file = tmp_path / "recipe.yaml"
    recipe(folder, tmp_path, {"teachers__main__passes__pseudo_targets": {"max_tokens": 64}})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = raykd(command, str(file), *(["schedule"] if command == "tune" else []))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1, done.stdout + done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30  # whatever else the machine does
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith(
        "raykd: teachers.main: row r0: prompt of 5 tokens + max_tokens 64 > "
    )
    assert "Ray started" not in done.stdout
