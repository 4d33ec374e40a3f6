"""Spaces: points are recipes, choices bring their own fields alone, and what does not fit is one line."""

import pytest
from conftest import ROOT
from ray import tune

from raykd.errors import RecipeError
from raykd.recipe import space
from raykd.recipe.load import load_recipe

DEMO = ROOT / "pipelines/recipes/demo.yaml"
DISTILL = [
    "method={kind: distill}",
    "arms.distilled=false",
    "student.training.dev_metrics=[{kind: phoneme_error_rate}]",
]
PASS = "teachers.main.passes.pseudo_targets"
RATE = "student.training.learning_rate"
LOSS = {
    "cross_entropy": {"student.training.losses": {"cross_entropy": {}}},
    "jsd": {
        "student.training.losses": {"jsd": {}},
        "student.training.losses.jsd.beta": tune.uniform(0.1, 0.9),
    },
}


@pytest.fixture
def demo():
    return load_recipe(DEMO, DISTILL)


def of(fields, search=None, scheduler=None, goals=({},)) -> space.Space:
    return space.Space(
        name="s",
        fields=fields,
        goals=tuple(space.Goal(**goal) for goal in goals),
        search=search or space.Random(kind="random", trials=20),
        scheduler=scheduler or space.Asha(kind="asha"),
        source="",
    )


def test_a_choice_brings_its_own_fields_and_no_others(demo):
    searched = of({RATE: tune.loguniform(1e-4, 1e-2), "loss": LOSS})
    points, _ = space.plan_trials(searched, demo)
    assert {point["loss"] for point in points} == {"cross_entropy", "jsd"}
    for point in points:
        beta = point.get("student.training.losses.jsd.beta")
        assert (beta is None) == (point["loss"] == "cross_entropy")
        training = space.trial_recipe(searched, demo, point).student.training
        assert list(training.losses) == [point["loss"]] and training.learning_rate == point[RATE]
        if beta is not None:
            assert training.losses["jsd"].beta == beta and 0.1 <= beta <= 0.9
    assert len({point[RATE] for point in points}) == 20


def test_points_depend_on_the_seed_alone(demo):
    searched = of({RATE: tune.loguniform(1e-4, 1e-2), "loss": LOSS})
    assert space.draw_points(searched, 3) == space.draw_points(searched, 3) != space.draw_points(searched, 4)


def test_a_grid_has_every_combination_once():
    searched = of(
        {RATE: tune.choice([0.1, 0.2]), "way": {"a": {"seed": 1}, "b": {"seed": tune.choice([2, 3])}}},
        space.Grid(kind="grid"),
    )
    points = space.draw_points(searched, 0)
    assert len(points) == 6 and {(p[RATE], p["way"], p.get("seed")) for p in points} == {
        (rate, *rest) for rate in (0.1, 0.2) for rest in (("a", None), ("b", 2), ("b", 3))
    }


def test_the_teacher_is_asked_what_the_most_demanding_trial_needs(demo):
    searched = of({"loss": LOSS})
    _, teacher_recipe = space.plan_trials(searched, demo)
    assert list(teacher_recipe.student.training.losses) == ["jsd"]
    temperature = {f"{PASS}.temperature": 1.0, f"{PASS}.n": tune.choice([2, 5, 3])}
    assert space.plan_trials(of(temperature, space.Grid(kind="grid")), demo).teacher_recipe.teacher.sampling.n == 5


def test_a_choice_whose_losses_need_no_teacher_sets_the_teacher_back():
    """A field that would do nothing is an error in a trial's recipe too; the shipped space of losses minds it."""
    teacher = "student.training.teacher={kind: in_process}"
    recipe = load_recipe(DEMO, [*DISTILL, "student.training.losses={reverse_kl: {}}", teacher])
    shipped = space.load_space(ROOT / "tune_spaces/losses.py")
    points = space.plan_trials(shipped, recipe).points
    assert {point["loss"] for point in points} == {"cross_entropy", "forward_kl", "jsd"}
    kinds = {
        point["loss"]: space.trial_recipe(shipped, recipe, point).student.training.teacher.kind for point in points
    }
    assert kinds == {"cross_entropy": "store", "forward_kl": "in_process", "jsd": "in_process"}
    with pytest.raises(RecipeError) as error:
        space.plan_trials(of({"loss": LOSS}), recipe)
    assert str(error.value) == "s: SPACE: student.training.teacher does nothing: cross_entropy needs no teacher"


def test_an_old_name_in_a_space_is_refused_with_the_new_one(demo):
    with pytest.raises(RecipeError, match=r"^s: SPACE: method.weigh: renamed: method.weighting$"):
        space.plan_trials(of({"method.weigh": tune.choice(["confidence"])}), demo)
    with pytest.raises(RecipeError) as error:
        space.plan_trials(of({"teacher.sampling.n": tune.choice([4])}), demo)
    assert str(error.value) == f"s: SPACE: teacher.sampling: renamed: {PASS}"


@pytest.mark.parametrize("name", ["losses", "schedule", "mckd", "student_size", "samples"])
def test_every_shipped_space_fits_the_demo(name, demo):
    searched = space.load_space(ROOT / f"tune_spaces/{name}.py")
    fitting = load_recipe(DEMO, ["arms.distilled=false"]) if name == "mckd" else demo
    points, _ = space.plan_trials(searched, fitting)
    assert space.resolve_goals(searched, fitting)
    assert points or isinstance(searched.search, space.Optuna)


@pytest.mark.parametrize(
    ("fields", "options", "line"),
    [
        (
            {"student.training.learning_rat": tune.choice([1])},
            {},
            "SPACE: student.training.learning_rat: unknown key; did",
        ),
        (
            {RATE: tune.choice([-1])},
            {},
            "SPACE: student.training.learning_rate: Input should be greater than 0, found -1",
        ),
        ({RATE: tune.uniform(1, 2)}, {"search": space.Grid(kind="grid")}, "a grid needs choices"),
        (
            {RATE: tune.choice([1])},
            {"goals": [{"metric": "blue"}]},
            "GOAL.metric: nobody reports 'blue'; known: dev_loss",
        ),
        ({"loss": LOSS}, {"goals": [{"metric": "dev_loss"}]}, "dev_loss says nothing where losses differ"),
        (
            {RATE: tune.choice([1])},
            {"goals": [{}, {"metric": "parameters"}]},
            "several goals need SEARCH of kind optuna",
        ),
        ({RATE: tune.choice([1])}, {"goals": [{"metric": "parameters"}]}, "parameters is known only at the end"),
        ({"seed": tune.choice([1])}, {"scheduler": space.Pbt(kind="pbt")}, "SPACE.seed: pbt changes it while"),
    ],
)
def test_what_does_not_fit_is_one_line(demo, fields, options, line):
    with pytest.raises(RecipeError) as error:
        searched = of(fields, **options)
        space.resolve_goals(searched, demo)
        space.plan_trials(searched, demo)
    assert line in str(error.value) and str(error.value).startswith("s: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "SPACE: expected a mapping of recipe fields, found None"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("SPACE = {'teacher': {}}", "SPACE.teacher: renamed: teachers.main"),
        ("SPACE = {'loss': 3}", "SPACE.loss: expected a recipe field, or a name with {choice: fields}"),
        ("SPACE = {'seed': 3}\nSEARCH = {'kind': 'random', 'trial': 3}", "SEARCH.trial: Extra inputs"),
        ("SPACE = {'seed': 3}\nSCHEDULER = {'kind': 'asha', 'grace': 0}", "SCHEDULER.grace: Input should be greater"),
        ("SPACE = {'seed': 3}\nGOAL = {'direction': 'down'}", "GOAL.direction: Input should be 'min' or 'max'"),
    ],
)
def test_a_space_that_is_none_names_its_file(tmp_path, text, line):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(RecipeError) as error:
        space.load_space(file)
    assert str(error.value).startswith(f"{file}: ") and line in str(error.value)


def test_a_space_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match="no such space"):
        space.load_space(tmp_path / "none.py")
