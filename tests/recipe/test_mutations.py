"""Recipes with random mistakes: each is a recipe, or a RecipeError of one short line; never another exception."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from raykd.errors import RecipeError
from raykd.recipe.load import dump_recipe, load_recipe, parse_recipe, resolve_paths
from raykd.recipe.messages import LONGEST
from raykd.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*(ROOT / "pipelines/recipes").glob("*.yaml"), *(ROOT / "benchmarks/mckd_map").glob("*.yaml")])
ROWS = "{kind: jsonl, path: rows.jsonl, columns: {input: question, target: answer, id: name}, limit: 100}"
COMPLETE = [
    f"""
name: endpoint
output: s3://bucket/runs
method: {{kind: distill, overlap: false}}
data: {{unlabelled: {ROWS}, test: {{main: {ROWS}}}, max_bad_rows: 3, licence: CC0}}
teachers:
  main:
    model: {{kind: endpoint, name: big}}
    engine: {{kind: endpoint, url: "https://host:8000/v1", api_key_env: KEY, price: {{prompt: 1, output: 2.5}}}}
    prompt: {{kind: chat, system: Be brief., shots: {{rows: {ROWS}, count: 2, choose: bm25, nearest: first}}}}
    passes: {{pseudo_targets: {{n: 4, temperature: 0.7, top_p: 0.9, top_k: 20, max_tokens: 64, options: {{seed: 3}}}}}}
student:
  model: {{kind: checkpoint, path: small}}
  training:
    learning_rate: 1e-4
    epochs: 2
    dev_metrics: [{{kind: bleu}}]
    choose_by: bleu
    patience: 2
    lora: {{rank: 4, modules: [q, v]}}
  push_to_hub: {{repo: me/small, private: true}}
pseudo_targets: {{vote: true, format: intent, invalid: drop, retries: 2, retry_temperature: 0.5}}
metrics: [{{kind: bleu}}, {{kind: exact_match}}]
trackers: [{{kind: wandb, project: p, mode: offline}}, {{kind: mlflow, tracking_uri: "https://host", experiment: e}}]
""",
    f"""
name: classes
seed: 7
method: {{kind: mckd, partitions: 3, stages: 3, relabel: vote, warm_start: true, gold: true, weighting: confidence}}
data:
  unlabelled: {{kind: dataset, name: imdb, config: plain, split: train}}
  gold: {{kind: function, function: "rows:gold", arguments: {{part: gold}}}}
  dev: {ROWS}
teachers:
  main:
    model: {{kind: checkpoint, path: t}}
    task: classification
    labels: [ham, spam]
    engine: {{kind: transformers, batch_tokens: 1024, dtype: bfloat16}}
    fine_tune:
      learning_rate: 0.001
      max_steps: 10
      schedule: cosine_with_min_lr
      schedule_options: {{min_lr_rate: 0.1}}
student:
  model: {{kind: pruned, path: t, layers: [0, 2]}}
  task: classification
  labels: [ham, spam]
  training:
    learning_rate: 0.001
    max_steps: 100
    losses: {{cross_entropy: {{weight: 0.5}}, reverse_kl: {{weight: 0.5, temperature: 2}}}}
    teacher: {{kind: in_process, dtype: float32}}
arms: {{gold_only: {{rows: {ROWS}, learning_rates: [0.1, 0.01]}}, distilled: true}}
cluster:
  teacher: {{replicas: [0, 4], resources: {{CPU: 2, GPU: 0.5, raykd_teacher: 1}}, threads: 2}}
  student: {{workers: [1, 4], parallel: fsdp, resources: {{GPU: 1}}, storage: s3://bucket/place}}
  capacity: {{GPU: 8}}
  wait_minutes: 30
""",
    f"""
name: stored
method: {{kind: distill}}
data: {{unlabelled: {ROWS}}}
tokenizer: {{kind: words, extra: ["=>"]}}
teachers:
  main:
    model: {{kind: checkpoint, path: t}}
    prompt: {{kind: completion, template: "{{input}} =>", shot: "{{prompt}} {{target}}; "}}
    engine: {{kind: vllm, arguments: {{tensor_parallel_size: 2, max_model_len: 512, dtype: float32}}}}
    passes: {{pseudo_targets: {{n: 2, temperature: 1.0, seeded: true, options: {{min_p: 0.1, stop: [a, b]}}}}}}
    payload: {{kind: top_k, k: 16}}
student:
  model: {{kind: config, model_type: t5, settings: {{d_model: 64, num_heads: 8}}}}
  training:
    learning_rate: 0.01
    max_steps: 30
    losses: {{near: {{kind: jsd, weight: 1, beta: 0.3}}, cross_entropy: {{}}}}
    teacher: {{kind: store, tail: renormalise}}
    sequences: {{union: [{{pass: pseudo_targets, samples: all}}]}}
cluster: {{teacher: {{resources: {{CPU: 1}}}}}}
""",
    f"""
name: features
method: {{kind: distill}}
modules: .
data: {{unlabelled: {ROWS}, gold: {ROWS}}}
tokenizer: {{kind: pretrained, path: t}}
teachers:
  big:
    model: {{kind: pruned, path: t, layers: [0, 1, 5]}}
    task: classification
    labels: [ham, spam]
    engine: {{kind: transformers}}
    fine_tune: {{learning_rate: 0.001, epochs: 1.5}}
student:
  model: {{kind: config, model_type: bert, settings: {{hidden_size: 64}}}}
  task: classification
  labels: [ham, spam]
  training:
    learning_rate: 0.001
    max_steps: 100
    losses:
      cross_entropy:
      hidden_mse: {{weight: 0.5, student_layer: 1, teacher_layer: -2}}
      last: {{kind: hidden_cosine}}
      cross_correlation: {{weight: 0.1, normalisation: release, off_diagonal: 0.01, keep: 0.5, mask: add}}
      mine: {{kind: "my_losses:loss", temperature: 2, options: {{power: 2, of: [a, {{b: 1}}]}}}}
    sequences: {{shares: {{gold: 0.25, pseudo_targets: 0.75}}, by: ratio}}
    teacher: {{kind: in_process, dtype: bfloat16}}
""",
    f"""
name: samples
method: {{kind: distill}}
data: {{unlabelled: {ROWS}, test: {{news: {ROWS}}}}}
metrics: [{{kind: "my_metrics:score"}}]
teachers:
  main:
    model: {{kind: checkpoint, path: t}}
    engine: {{kind: vllm}}
    passes: {{sampled: {{n: 2, temperature: 1.0}}}}
    answering: {{max_tokens: 32}}
    payload: {{kind: top_k}}
student:
  model: {{kind: checkpoint, path: s}}
  training:
    learning_rate: 0.01
    max_steps: 30
    losses: {{atkd: {{easy_weight: 0.3, weigh_diversity: true}}, mine: {{kind: "my_losses:Own", weight: 0.2}}}}
    teacher: {{stored: {{kind: store, tail: renormalise}}, sampled: {{kind: in_process}}}}
    sequences:
      shares: {{student: 0.5, sampled: 0.5}}
      by: batch
      student: {{temperature: 0.9, top_p: 0.95, top_k: 50, max_tokens: 16}}
""",
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 10**9, 2**63, -(10**30), 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("inf"), float("-inf"), float("nan")),
    *(
        "",
        " ",
        "x",
        "text",
        "1",
        "1.5",
        "inf",
        "nan",
        "true",
        "null",
        "\0",
        "\n",
        "a\nb",
        "\ud800",
        "é漢字🙂",
        "x" * 5000,
    ),
    *("module:NAME", "http://", "http://[::1", "{input}", "kind", "../..", "a.b.c", "=>", "file:///tmp/x", "\x1b[31m"),
    *([], [[]], [None], [1, 2, 3], ["a", "b"], ["x" * 700] * 30, list(range(2000))),
    *(
        {},
        {"kind": "x"},
        {"kind": None},
        {"kind": ["store"]},
        {"kind": {}},
        {1: 2},
        {None: 1},
        {"": ""},
        {"a": {"b": 1}},
    ),
    *(b"bytes", yaml.safe_load("2020-01-01"), {"x" * 900: 1}, {f"key{i}": i for i in range(300)}, {"a": float("nan")}),
]


def deep(levels: int) -> Any:
    """Mappings in mappings."""
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


def places(value: Any, depth: int = 12) -> list[tuple[Any, Any]]:
    """(container, key) of the values in it; of a long list the first ones."""
    if not depth or not isinstance(value, dict | list):
        return []
    items = list(value.items() if isinstance(value, dict) else enumerate(value))[:30]
    return [place for key, part in items for place in [(value, key), *places(part, depth - 1)]]


def mutate(tree: dict, draw: random.Random) -> None:
    """One random mistake."""
    container, key = draw.choice(places(tree))
    other, other_key = draw.choice(places(tree))
    kind = draw.randrange(9)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):  # a slip of the finger, or another name
        text = str(key)
        at = draw.randrange(len(text) + 1)
        name = draw.choice([text[:at] + text[at + 1 :], text + "x", text.upper(), str(other_key)])
        container[name] = container.pop(key)
    elif kind == 2:
        container[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(container[key])
    elif kind == 3:
        container[key] = [container[key]] if draw.random() < 0.5 else {"kind": container[key]}
    elif kind == 4 and isinstance(container[key], str):
        container[key] = container[key] * draw.choice([0, 2, 300])
    elif kind == 5 and isinstance(container[key], int | float) and abs(container[key]) < 1e300:
        container[key] = draw.choice([-1, 0.001, 1000, 1e300]) * container[key]
    elif kind == 6 and isinstance(container, dict):
        name = draw.choice(["kind", "options", "settings", "n", "x", "weight", str(other_key)])
        container[name] = copy.deepcopy(draw.choice(VALUES))
    elif kind == 7:
        container[key] = deep(3)
    else:
        container[key] = copy.deepcopy(draw.choice(VALUES))


def trees() -> list[dict]:
    """Complete recipes: as they are written, and with every default written out."""
    written = [yaml.safe_load(path.read_text()) for path in SHIPPED] + [yaml.safe_load(text) for text in COMPLETE]
    return written + [yaml.safe_load(dump_recipe(parse_recipe(tree, ""))) for tree in written]


def require_a_recipe_or_one_line(tree: dict) -> bool:
    """Whether it is a recipe; fails for anything but that or one short line."""
    try:
        recipe = parse_recipe(tree, "recipe.yaml")
        assert isinstance(recipe, Recipe) and dump_recipe(resolve_paths(recipe))  # as `raykd check` prints it
        return True
    except RecipeError as error:
        text = str(error)
        assert len(text) <= LONGEST and text.isprintable() and text.startswith("recipe.yaml: "), text[:2000]
        return False


@pytest.mark.parametrize(
    ("first", "count"), [(0, 1000), pytest.param(1000, 9000, marks=pytest.mark.slow)], ids=["1000", "9000"]
)
def test_a_mutated_recipe_is_a_recipe_or_one_short_line(first, count):
    whole = trees()
    right = 0
    for number in range(first, first + count):
        draw = random.Random(number)
        tree = copy.deepcopy(draw.choice(whole))
        for _ in range(draw.choice([1, 1, 1, 2, 5, 30])):
            if places(tree):
                mutate(tree, draw)
        if number % 50 == 0 and places(tree):
            container, key = draw.choice(places(tree))
            container[key] = deep(3000)
        right += require_a_recipe_or_one_line(tree)
    assert 0.02 * count < right < 0.8 * count  # the mistakes are neither all fatal nor all harmless


def test_mutated_texts_of_recipes_are_one_short_line_too(tmp_path):
    texts = [path.read_text() for path in SHIPPED] + COMPLETE
    path = tmp_path / "recipe.yaml"
    for number in range(200):
        draw = random.Random(number)
        letters = list(draw.choice(texts))
        for _ in range(draw.choice([1, 3, 20])):
            letters[draw.randrange(len(letters))] = draw.choice(
                ["{", "}", ":", "\t", "[", "&a", "*a", "!!python/x", "'", "-", "\0", "💥"]
            )
        path.write_text("".join(letters))
        try:
            load_recipe(path)
        except RecipeError as error:
            assert len(str(error)) <= LONGEST and str(error).isprintable(), str(error)[:2000]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"student": {}}, "r: student.model: Field required; student.training: Field required"),
        ({"seed": float("nan")}, "r: seed: expected a finite number, found nan"),
        ({"seed": 10**400}, "r: seed: expected a number of 64 bits"),
        ({"name": "a\0"}, "r: name: a text holds no NUL"),
        ({"licence": b"x"}, "r: licence: expected text, found bytes b'x'"),
        ({5: 1}, "r: 5: expected a name, found 5"),
    ],
)
def test_a_line_names_the_field_and_the_value(change, line):
    with pytest.raises(RecipeError) as error:
        parse_recipe(trees()[0] | change, "r")
    assert str(error.value) == line


def test_a_long_value_is_cut_in_the_middle_and_many_errors_are_counted():
    tree = trees()[0]
    with pytest.raises(RecipeError) as error:
        parse_recipe({**tree, "seed": "9" + "x" * 5000}, "r")
    assert " ... xxx" in str(error.value) and "found '9xx" in str(error.value)
    with pytest.raises(RecipeError, match=r"; and \d+ more$"):
        parse_recipe({**tree, **{f"key{i}": 1 for i in range(40)}}, "r")
