"""A name that recipes had before is refused with its new one, wherever the recipe is read from."""

import importlib
import json

import pytest
import yaml
from test_rules import GOLD, SMALL

from raykd.errors import RecipeError
from raykd.recipe.load import changed_recipe, dump_recipe, load_recipe, parse_recipe
from raykd.recipe.modules import FUNCTION
from raykd.recipe.renamed import MOVED, RENAMED
from raykd.report.sweep import SEARCHED, gather_sweep
from raykd.run.folder import RunFolder

CMUDICT = "{kind: function, function: 'raykd.tasks.pronunciation:cmudict', arguments: {part: test}}"


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("answers={vote: true}", "answers: renamed: pseudo_targets"),
        ("answers.vote=true", "answers: renamed: pseudo_targets"),
        ("method={kind: mckd, weigh: confidence}", "method.weigh: renamed: method.weighting"),
        ("method={kind: mckd, back_check: null}", "method.back_check: renamed: method.consistency_filter"),
        ("student.model={kind: cut, path: big, layers: [0]}", "student.model.kind: renamed: pruned"),
        ("teachers.main.model={kind: cut, path: big, layers: [0]}", "teachers.main.model.kind: renamed: pruned"),
        ("teachers.main.model={kind: served, name: big}", "teachers.main.model.kind: renamed: endpoint"),
        ("teacher.model.path=x", "teacher: renamed: teachers.main"),
        ("teacher.sampling.n=4", "teacher.sampling: renamed: teachers.main.passes.pseudo_targets"),
        (
            "teacher={model: {kind: cut, path: t}, sampling: {n: 4}, fine_tune: {dev_answer_rows: 3}}",
            "teacher: renamed: teachers.main; teacher.sampling: renamed: teachers.main.passes.pseudo_targets",
        ),
        ("teachers.main.sampling.n=4", "teachers.main.sampling: renamed: teachers.main.passes.pseudo_targets"),
        ("student.task=span", "student.task: renamed: extractive_qa"),
        ("teachers.main.task=span", "teachers.main.task: renamed: extractive_qa"),
        ("student.training.teacher={kind: actors}", "student.training.teacher.kind: renamed: remote"),
        (
            "student.training.dev_answer_rows=9",
            "student.training.dev_answer_rows: renamed: student.training.dev_prediction_rows",
        ),
        (
            "teachers.main.fine_tune.dev_answer_tokens=9",
            "teachers.main.fine_tune.dev_answer_tokens: renamed: teachers.main.fine_tune.dev_prediction_tokens",
        ),
        (f"data.test.main={CMUDICT}", "data.test.main.function: renamed: raykd.data.tasks.pronunciation:cmudict"),
        (
            f"teachers.main.prompt={{kind: chat, shots: {{count: 1, rows: {CMUDICT}}}}}",
            "teachers.main.prompt.shots.rows.function: renamed: raykd.data.tasks.pronunciation:cmudict",
        ),
        (
            "pseudo_targets.format=raykd.tasks.slots:TOP",
            "pseudo_targets.format: renamed: raykd.data.tasks.top:TOP",
        ),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(small, override, line):
    with pytest.raises(RecipeError) as error:
        load_recipe(small, [override])
    assert str(error.value) == f"{small}: {line}"


def test_new_names_are_names(small):
    recipe = load_recipe(small)
    for old, new in MOVED.items():
        value = recipe
        for name in new.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        assert value is not None and old not in MOVED.values()
    for old, new in RENAMED.items():
        if FUNCTION.fullmatch(new):
            module, _, name = new.partition(":")
            assert hasattr(importlib.import_module(module), name), new
        assert new not in RENAMED and old != new


def test_all_old_names_are_in_one_line(small):
    with pytest.raises(RecipeError) as error:
        load_recipe(small, ["answers={}", "student.task=span", "student.learning_rat=1"])
    text = str(error.value)
    assert text == f"{small}: student.task: renamed: extractive_qa; answers: renamed: pseudo_targets"


def test_changes_and_saved_settings_have_new_names_as_well(small):
    recipe = load_recipe(small)
    with pytest.raises(RecipeError, match=r"^losses: SPACE: answers: renamed: pseudo_targets$"):
        changed_recipe(recipe, {"answers.vote": True}, "losses: SPACE")
    tree = json.loads(json.dumps({**recipe.model_dump(mode="json"), "answers": {}}))
    with pytest.raises(RecipeError, match=r"^sweep.json: answers: renamed: pseudo_targets$"):
        parse_recipe(tree, "sweep.json")


def test_a_run_folder_of_the_old_words_is_refused_in_one_line_that_names_its_recipe(small, tmp_path):
    recipe = load_recipe(small, [GOLD, "teachers.main.fine_tune={learning_rate: 0.1, max_steps: 1}"])
    old = yaml.safe_load(dump_recipe(recipe))
    old["answers"] = old.pop("pseudo_targets")
    folder = tmp_path / "runs/small"
    (folder / "teacher/labels").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(old))
    manifest = {"stage": "teacher/labels", "kind": "label", "fingerprint": "", "inputs": {}, "started": 0, "seconds": 0}
    (folder / "teacher/labels/manifest.json").write_text(json.dumps({**manifest, "results": {}, "stats": {}}))
    with pytest.raises(RecipeError) as error:
        RunFolder(folder).begin(recipe, print)
    assert str(error.value) == f"{folder}/recipe.yaml: answers: renamed: pseudo_targets"


def test_a_run_folder_with_an_old_section_is_refused_in_one_line(small, tmp_path):
    recipe = load_recipe(small)
    old = yaml.safe_load(dump_recipe(recipe))
    teacher = old.pop("teachers")["main"]
    old["teacher"] = {**teacher, "sampling": teacher.pop("passes")["pseudo_targets"]}
    old["data"]["test"], old["metrics"] = {"kind": "jsonl", "path": "t.jsonl"}, ["bleu"]
    folder = tmp_path / "runs/small"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(RecipeError) as error:
        load_recipe(folder / "recipe.yaml")
    line = "teacher: renamed: teachers.main; teacher.sampling: renamed: teachers.main.passes.pseudo_targets"
    assert str(error.value) == f"{folder}/recipe.yaml: {line}"


def test_a_sweep_of_the_old_words_is_refused_in_one_line_that_names_its_file(small, tmp_path):
    recipe = load_recipe(small)
    tree = {**recipe.model_dump(mode="json"), "answers": {}}
    (tmp_path / SEARCHED).write_text(json.dumps({"space": "", "goals": [], "recipe": tree}))
    with pytest.raises(RecipeError) as error:
        gather_sweep(tmp_path)
    assert str(error.value) == f"{tmp_path}/{SEARCHED}: answers: renamed: pseudo_targets"
