"""Names in a recipe are found without importing anything, and a recipe's own modules are known by their content."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import RECIPE

from raykd.cli import main
from raykd.errors import RecipeError
from raykd.recipe import modules, names
from raykd.recipe.load import dump_recipe, load_recipe, recipe_differences, resolve_paths

METRIC = "raise RuntimeError('imported')\nfrom helper import f\ndef score(p, r): ...\n"


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    """A recipe with a metric beside it, which cannot be imported."""
    (tmp_path / "my_metric.py").write_text(METRIC)
    (tmp_path / "helper.py").write_text("def f(): ...\n")
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    test = "data: {unlabelled: {kind: jsonl, path: rows.jsonl}, test: {main: {kind: jsonl, path: rows.jsonl}}, "
    text = RECIPE.format(output=tmp_path / "runs", bad=0).replace(
        "data: {unlabelled: {kind: jsonl, path: rows.jsonl}, ", test
    )
    (tmp_path / "r.yaml").write_text(text + 'metrics: [{kind: "my_metric:score"}]\n')
    return tmp_path / "r.yaml"


def test_names_are_found_without_importing(recipe_file):
    recipe = load_recipe(recipe_file)
    names.require_names(recipe)
    assert "my_metric" not in sys.modules and recipe.modules == str(recipe_file.parent)
    assert [field[::2] for field in names.named_fields(recipe)] == [
        ("student.training.sequences.union.0", "pseudo_targets"),
        ("pseudo_targets.format", "text"),
        ("metrics.0.kind", "my_metric:score"),
    ]


def test_a_recipe_that_names_nothing_of_its_folder_has_no_modules(recipe_file):
    for name in ("bleu", "raykd.metrics.text:bleu", "elsewhere:score"):
        assert load_recipe(recipe_file, [f"metrics=[{{kind: '{name}'}}]"]).modules is None


def test_the_folder_of_modules_is_remembered_and_is_no_difference(recipe_file, tmp_path_factory):
    recipe = resolve_paths(load_recipe(recipe_file))
    run = tmp_path_factory.mktemp("run") / "recipe.yaml"
    run.write_text(dump_recipe(recipe))
    assert load_recipe(run) == recipe
    moved = recipe.model_copy(update={"modules": "/elsewhere"})
    assert recipe_differences(recipe, moved) == []


def test_what_is_named_has_a_digest_of_what_it_imports_beside_it(recipe_file):
    recipe, folder = load_recipe(recipe_file), recipe_file.parent
    assert [path.name for path in names.own_modules(recipe)] == ["helper.py", "my_metric.py"]
    before = names.code_of(recipe, "metrics")
    assert list(before["code"]) == ["my_metric:score"] and names.code_of(recipe, "pseudo_targets") == {}
    (folder / "unrelated.py").write_text("x = 2\n")
    assert names.code_of(recipe, "metrics") == before
    (folder / "helper.py").write_text("def f(): return 2\n")
    assert names.code_of(recipe, "metrics") != before


def test_modules_of_packages_are_shipped_whole(tmp_path):
    (tmp_path / "own/parts").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "a": "from .parts import b",
        "parts/__init__": "",
        "parts/b": "import lone",
    }.items():
        (tmp_path / f"own/{name}.py").write_text(text)
    (tmp_path / "lone.py").write_text("")
    assert [path.name for path in modules.shipped({"own.a"}, str(tmp_path))] == ["lone.py", "own"]


@pytest.mark.parametrize("name", ["random", "yaml", "pydantic"])
def test_a_module_with_the_name_of_another_is_refused(recipe_file, name):
    (recipe_file.parent / f"{name}.py").write_text("")
    with pytest.raises(RecipeError, match=f"{name}.py: a standard or installed module has the name {name}: rename"):
        names.require_names(load_recipe(recipe_file))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "student.training.losses={own: {kind: 'my_losses:near'}}",
            "student.training.losses.own.kind: my_losses:near: no module my_losses beside the recipe or on "
            "Python's path",
        ),
        (
            "student.training.losses={own: {kind: 'my_metric:scroe', teacher_outputs: false}}",
            "student.training.losses.own.kind: my_metric:scroe: my_metric.py has no scroe; did you mean score?",
        ),
        (
            "student.training.sequences={shares: {'helper:mix': 0.5, pseudo_targets: 0.5}, by: step}",
            "student.training.sequences.shares: helper:mix: helper.py has no mix",
        ),
        (
            "student.training.sequences={shares: {'nowhere:mix': 0.5, pseudo_targets: 0.5}, by: step}",
            "student.training.sequences.shares: nowhere:mix: no module nowhere beside the recipe or on Python's path",
        ),
    ],
)
def test_an_own_loss_or_sampler_that_is_not_there_is_refused_by_check(recipe_file, override, line, capsys):
    live = ["student.training.losses={jsd: {}}", "student.training.teacher={kind: in_process}"]
    overrides = [*(live if "sequences" in override else []), override]
    assert main(["check", str(recipe_file), *overrides]) == 2
    assert capsys.readouterr().err == f"raykd: {recipe_file}: {line}\n"
    assert "my_metric" not in sys.modules and "helper" not in sys.modules


def test_an_own_loss_and_sampler_that_are_there_pass_and_have_digests(recipe_file):
    (recipe_file.parent / "my_losses.py").write_text("def near(student_NE, teacher_NE): ...\nclass Mix: ...\n")
    recipe = load_recipe(
        recipe_file,
        [
            "student.training.losses={own: {kind: 'my_losses:near'}}",
            "student.training.teacher={kind: in_process}",
            "student.training.sequences={shares: {'my_losses:Mix': 0.5, pseudo_targets: 0.5}, by: step}",
        ],
    )
    names.require_names(recipe)
    assert list(names.code_of(recipe, "student.training.losses")["code"]) == ["my_losses:near"]
    assert list(names.code_of(recipe, "student.training.sequences")["code"]) == ["my_losses:Mix"]
    assert [path.name for path in names.own_modules(recipe)] == ["helper.py", "my_losses.py", "my_metric.py"]


def test_a_folder_of_data_may_have_any_name(recipe_file):
    (recipe_file.parent / "random").mkdir()
    names.require_names(load_recipe(recipe_file))


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("import math as score", True),
        ("try:\n  from x import score\nexcept ImportError:\n  score = None", True),
        ("score: int = 1", True),
        ("a, (score, b) = 1, (2, 3)", True),
        ("class score: ...", True),
        ("from x import *", True),  # only importing it would tell
        ("def other():\n  score = 1", False),
        ("class A:\n  def score(self): ...", False),
        ("x = 'score'", False),
    ],
)
def test_a_name_stands_at_the_top_level(recipe_file, text, known):
    (recipe_file.parent / "my_metric.py").write_text(text)
    problem = names.name_problem("metrics.0", names.METRIC, "my_metric:score", str(recipe_file.parent))
    assert problem is None if known else problem == "metrics.0: my_metric:score: my_metric.py has no score"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_metric:scroe", "my_metric.py has no scroe; did you mean score?"),
        ("my_metrik:score", "no module my_metrik beside the recipe or on Python's path; did you mean my_metric?"),
        ("chrff", "unknown metric 'chrff'; did you mean chrf?"),
        ("my_metric:", "expected module:NAME, found 'my_metric:'"),
        ("my metric:x", "expected module:NAME, found 'my metric:x'"),
        ("broken:score", "broken.py:1: not Python: "),
        ("raykd.metrics.text:blew", "text.py has no blew; did you mean bleu?"),
        ("x" * 3000, "unknown metric 'xxx"),
        ("x" * 3000 + ":y", "no module xxx"),
    ],
)
def test_what_is_not_there_is_one_short_line(recipe_file, name, message):
    (recipe_file.parent / "broken.py").write_text("def (")
    problem = names.name_problem("metrics.0", names.METRIC, name, str(recipe_file.parent))
    assert problem and message in problem and "\n" not in problem and len(problem) < 600


@pytest.mark.parametrize("name", ["math:sqrt", "os.path:join", "raykd.metrics:text", "numpy:mean", "torch.nn:Linear"])
def test_modules_of_any_kind_are_found(name):
    assert names.name_problem("f", names.FUNCTION, name) is None


def test_every_known_name_is_what_its_file_has():
    for kind, count in ((names.METRIC, 14), (names.FORMAT, 7)):
        known = names.known_names(kind)
        assert len(known) == count and all(names.load(kind, name, "f") for name in known)
