"""Recipes: what is refused, and how it is said."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from raykd.errors import RecipeError
from raykd.recipe.load import dump_recipe, load_recipe, recipe_differences, resolve_paths

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*(ROOT / "pipelines/recipes").glob("*.yaml"), *(ROOT / "benchmarks/mckd_map").glob("*.yaml")])

SMALL = """
name: small
method: {kind: distill}
data: {unlabelled: {kind: jsonl, path: rows.jsonl}}
teachers: {main: {model: {kind: checkpoint, path: teacher}}}
student:
  model: {kind: checkpoint, path: student}
  training: {learning_rate: 0.001, max_steps: 10}
"""


HOLD_THEMSELVES = ["a: &x [*x]", "&x {a: *x}", SMALL + "metrics: &x [*x]", "modules: .\na: &x {b: [*x]}"]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_and_survives_being_written(path, tmp_path):
    loaded = load_recipe(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(loaded))
    assert load_recipe(again) == loaded
    assert recipe_differences(load_recipe(again), loaded) == []


def test_there_are_shipped_recipes():
    assert "demo" in [path.stem for path in SHIPPED]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("student.training.learing_rate=1", ["student.training.learing_rate", "unknown key", "learning_rate"]),
        ("studnt.model=1", ["studnt", "unknown key", "did you mean student?"]),
        ("data.unlabelled.pth=x", ["data.unlabelled.pth", "did you mean path?"]),
        ("student.training.max_steps=0", ["student.training.max_steps", "found 0"]),
        ("student.training.epochs=1", ["student.training", "exactly one of max_steps and epochs"]),
        ("teachers.main.passes.pseudo_targets.n=4", ["teachers.main.passes.pseudo_targets: n is 4", "temperature"]),
        ("method.kind=magic", ["method", "distill"]),
        ("arms.distilled=true", ["arms.distilled does nothing"]),
        ("metrics=[{kind: bleu}]", ["metrics do nothing without data.test"]),
        ("tokenizer={kind: words}", ["tokenizer does nothing"]),
        ("teachers.main.model={kind: config, model_type: llama}", ["needs the section tokenizer"]),
        ("teachers.main.fine_tune={learning_rate: 1, max_steps: 1}", ["teachers.main.fine_tune needs data.gold"]),
        ("student.sampling={n: 2, temperature: 1}", ["student.sampling.n"]),
        ("student.model={kind: pruned, path: big}", ["student.model: give layers, or"]),
        ("student.model={kind: pruned, path: big, layers: []}", ["student.model: layers: expected one layer or more"]),
        ("student.model={kind: pruned, path: big, layers: [2, 0]}", ["from 0 and rising, found [2, 0]"]),
        ("student.model={kind: pruned, path: big, decoder_layers: [-1]}", ["decoder_layers: expected", "found [-1]"]),
        ("student.model={kind: pruned, path: big, layers: [0], encoder_layers: [0]}", ["it does not go with"]),
        ("student.model={kind: pruned, path: big, layer: [0]}", ["student.model.layer: unknown key", "layers"]),
        (
            "teachers.main.model={kind: pruned, path: big, layers: [0]}",
            ["a teacher of kind pruned", "needs teachers.main.fine_tune"],
        ),
        ("student.labels=[a, b]", ["student: labels do nothing: the task is generation"]),
        ("student.task=classification", ["student: a classification needs labels"]),
        ("teachers.main={model: {kind: checkpoint, path: t}, task: classification, labels: [a, a]}", ["all different"]),
        ("method={kind: mckd, shares: [1]}", ["method: shares: expected 2 numbers above 0, found [1.0]"]),
        ("method={kind: mckd, relabel: vote}", ["with 2 partitions one student alone", "expected next"]),
        ("method={kind: mckd, exchange: top_k}", ["exchange: top_k needs student.training.losses on probabilities"]),
        ("method={kind: mckd, exchange: top_k, gold: true}", ["gold goes with exchange: text"]),
        ("method={kind: mckd, weighting: agreement}", ["weighting: agreement needs consistency_filter.metric"]),
        (
            "method={kind: mckd, consistency_filter: {metric: bleu}}",
            ["consistency_filter does nothing without at_least"],
        ),
        ("method={kind: mckd, gold: true}", ["method.gold needs data.gold"]),
        ("pseudo_targets={vote: true}", ["a vote needs teachers.main.passes.pseudo_targets.n of 2 or more"]),
        ("method={kind: mckd, warm_start: true}", ["warm_start does nothing with 2 stages"]),
        ("pseudo_targets={format: intent, retry_temperature: 1}", ["retry_temperature does nothing without retries"]),
        ("pseudo_targets={invalid: drop}", ["every text is of the format text"]),
        ("teachers.main.model={kind: endpoint, name: big}", ["kind endpoint and engine of kind endpoint go together"]),
        ("teachers.main.engine={kind: endpoint, url: 'http://key@host/v1'}", ["teachers.main.engine.url"]),
        ("student.engine={kind: endpoint, url: 'http://host/v1'}", ["student: engine: a student answers here"]),
        ("student.prompt={kind: chat, shots: {count: 1, rows: {kind: jsonl, path: x}, nearest: last}}", ["nearest"]),
        (
            "student.training.dev_prediction_rows=9",
            ["student.training: dev_prediction_rows does nothing without dev_met"],
        ),
        ("student.training.dev_prediction_tokens=9", ["dev_prediction_tokens does nothing without dev_metrics"]),
        (
            "student.training={learning_rate: 1, epochs: 1, schedule: constant, schedule_options: {power: 2}}",
            ["student.training: schedule_options do nothing: the schedule is constant"],
        ),
        (
            "student.training={learning_rate: 1, epochs: 1, schedule: constant, warmup_ratio: 0.2}",
            ["student.training: warmup_ratio does nothing: the schedule is constant"],
        ),
        (
            "student.training.losses={teacher_ms: {}}",
            ["student.training.losses: teacher_ms: no such loss; did you mean teacher_mse?"],
        ),
        (
            "student.training.losses={jsd: {hard_share: 0.1}}",
            ["student.training.losses.jsd.hard_share: unknown key; known here: weight"],
        ),
        (
            "student.training.losses={teacher_mse: {temperature: 2}}",
            ["student.training.losses.teacher_mse.temperature: unknown key; known here: weight, kind"],
        ),
        (
            "student.training.losses={mse: {options: {a: 1}}}",
            ["student.training.losses.mse.options: unknown key; known here: weight, kind"],
        ),
        ("nonsense", ["override 'nonsense'", "section.field=value"]),
        ("name.deeper=1", ["name is no section"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(small, override, words):
    with pytest.raises(RecipeError) as error:
        load_recipe(small, [override])
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[1, 2", "not YAML"),
        ("- 1\n", "expected a mapping"),
        ("", "expected a mapping"),
        *((text, "bad.yaml: sections are nested too deeply, or hold themselves$") for text in HOLD_THEMSELVES),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, word):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=word):
        load_recipe(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_no_warm_up_goes_with_a_constant_schedule(small):
    assert load_recipe(small, ["student.training.schedule=constant"]).student.training.warmup_ratio == 0.1
    assert load_recipe(small, ["student.training.schedule=constant", "student.training.warmup_ratio=0"])


def test_overrides_reach_their_field(small):
    changed = load_recipe(small, ["student.training.learning_rate=0.5", "cluster.teacher.replicas=3", "seed=7"])
    assert (changed.student.training.learning_rate, changed.cluster.teacher.replicas, changed.seed) == (0.5, 3, 7)
    assert recipe_differences(load_recipe(small), changed) == [
        "seed: 0 -> 7",
        "student.training.learning_rate: 0.001 -> 0.5",
    ]  # the cluster does not change what a run computes
    assert recipe_differences(load_recipe(small), load_recipe(small, ["data.max_bad_rows=3"])) == []


def test_both_roles_name_the_classes_alike(small):
    roles = ["student.task=classification", "student.labels=[ham, spam]", "teachers.main.task=classification"]
    roles.append("teachers.main.engine={kind: transformers}")
    assert load_recipe(small, [*roles, "teachers.main.labels=[ham, spam]"]).teacher.labels == ["ham", "spam"]
    with pytest.raises(
        RecipeError, match=r"teachers.main.labels \['spam', 'ham'\] and student.labels .* must be the same"
    ):
        load_recipe(small, [*roles, "teachers.main.labels=[spam, ham]"])


def test_resolving_makes_paths_absolute_and_leaves_hub_names(small, tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    resolved = resolve_paths(load_recipe(small))
    assert resolved.data.unlabelled.path == str(tmp_path / "rows.jsonl")
    assert resolved.output == str(tmp_path / "runs")
    assert resolved.student.model.path == "student"  # no such folder here: a hub name
    assert resolve_paths(resolved) == resolved


@pytest.mark.parametrize("layers", ["all-linear", ["q", "v"]])
def test_layers_that_get_adapters_are_no_paths(small, tmp_path, monkeypatch, layers):
    (tmp_path / "all-linear").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(small, [f"student.training.lora={{modules: {layers}}}", "modules=."])
    resolved = resolve_paths(recipe)
    assert resolved.student.training.lora.modules == layers and resolved.modules == str(tmp_path)


def test_check_is_quick_and_loads_neither_torch_nor_ray():
    code = (
        "import sys; from raykd.cli import main; code = main(['check', 'demo']);"
        "assert not {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "num_decoder_layers: 2" in done.stdout
    assert time.monotonic() - started < 10  # two seconds is what is promised; this machine may be busy
