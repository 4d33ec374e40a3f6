"""Sections by names of the user's, and metrics as sections: what is right, and the line of what is not."""

import pytest
from test_rules import SMALL

from raykd.errors import RecipeError
from raykd.recipe.load import changed_recipe, dump_recipe, load_recipe, recipe_differences, resolve_paths

ROWS = "{kind: jsonl, path: t.jsonl}"
PASSES = "teachers.main.passes"
PASS = f"{PASSES}.pseudo_targets"
VLLM = "teachers.main.engine={kind: vllm}"
BLEU = "metrics=[{kind: bleu}]"
DICTIONARY = "Input should be a valid dictionary"
ONE_TEACHER = "expected one teacher by its name, such as {main: {model: {kind: checkpoint, path: big}}}"
ONE_PASS = "expected one pass by its name, such as {pseudo_targets: {n: 4, temperature: 1.0}}"


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("teachers.other={model: 3}", "teachers: one teacher is used so far, found main, other"),
        ("teachers={}", f"teachers: {ONE_TEACHER}, found nothing"),
        ("teachers={model: {kind: checkpoint, path: t}, prompt: x}", f"teachers: {ONE_TEACHER}, found model, prompt"),
        ("teachers=3", f"teachers: {DICTIONARY}, found 3"),
        (
            "teachers={my teacher: {}}",
            "teachers: expected a name of letters, digits and _ that begins with no digit, found 'my teacher'",
        ),
        (
            "teachers={1a: {}}",
            "teachers: expected a name of letters, digits and _ that begins with no digit, found '1a'",
        ),
        ("teachers={1: {}}", "teachers.1: expected a name, found 1"),
        ("teachers.main.model.pth=x", "teachers.main.model.pth: unknown key; did you mean path?"),
        ("teachers.main.licenc=x", "teachers.main.licenc: unknown key; did you mean licence?"),
        (f"{PASS}.nn=4", f"{PASS}.nn: unknown key; did you mean n?"),
        (f"{PASS}.max_tokens=0", f"{PASS}.max_tokens: Input should be greater than or equal to 1, found 0"),
        ("teachers.main.passes.more.n=1", f"{PASSES}: one pass is used so far, found pseudo_targets, more"),
        ("teachers.main.passes={n: 4, temperature: 1}", f"{PASSES}: {ONE_PASS}, found n, temperature"),
        *(
            (
                f"teachers.main.passes={{{name}: {{}}}}",
                f"{PASSES}: {name} names other sequences of a training: expected another name for the pass",
            )
            for name in ("gold", "student", "teacher")
        ),
        (
            "teachers.main.answering={n: 2, temperature: 1}",
            "teachers.main.answering: expected n: 1, a test row is answered once, found n: 2",
        ),
        (
            f"data.test={ROWS}",
            "data.test: expected rows by a name, {main: {kind: jsonl, ...}}, found rows",
        ),
        (f"data.test={{a: {ROWS}, b: {ROWS}}}", "data.test: one set of test rows is used so far, found a, b"),
        (
            "data.test.limit=50",
            "data.test: expected one set of test rows by its name, such as {main: {kind: jsonl, path: test.jsonl}}, "
            "found limit",
        ),
        (
            f"data.test={{words: {ROWS[:-1]}, limt: 5}}}}",
            "data.test.words.limt: unknown key; did you mean limit?",
        ),
        ("metrics=[bleu, ter]", "metrics: expected sections, [{kind: bleu}], instead of plain names, found"),
        ("metrics=[{kind: bleu}, {kind: bleu}]", "metrics: kind bleu is there twice, found"),
        ("metrics=[{kind: bleu, kid: 1}]", "metrics.0.kid: unknown key; did you mean kind?"),
        (
            "student.training.dev_metrics=[bleu]",
            "student.training.dev_metrics: expected sections, [{kind: bleu}], instead of plain names, found ['bleu']",
        ),
        (
            "arms.smaller={student.model.path: tiny}",
            "arms: arms of changed fields are not trained yet: expected gold_only or distilled, found smaller",
        ),
        ("student.training.losses.jsd.bta=1", "student.training.losses.jsd.bta: unknown key"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_field(small, override, line):
    with pytest.raises(RecipeError) as error:
        load_recipe(small, [f"{PASS}.top_p=1", override])
    text = str(error.value)
    assert text.startswith(f"{small}: {line}") and "\n" not in text and len(text) < 600


def test_names_are_the_users(small):
    small.write_text(SMALL.replace("{main: {model", "{big: {model"))
    overrides = [BLEU, f"data.test={{words: {ROWS}}}", "teachers.big.passes={sampled: {n: 2, temperature: 1}}"]
    recipe = load_recipe(small, overrides)
    assert (recipe.teacher_name, recipe.teacher.pass_name) == ("big", "sampled")
    assert recipe.teacher is recipe.teachers["big"] and recipe.teacher.sampling.n == 2
    assert recipe.data.test_rows is recipe.data.test["words"] and recipe.data.test_rows.path == "t.jsonl"
    assert [metric.kind for metric in recipe.metrics] == ["bleu"]
    small.write_text(dump_recipe(recipe))
    assert load_recipe(small) == recipe
    with pytest.raises(RecipeError, match=r"teachers\.big: labels do nothing"):
        load_recipe(small, ["teachers.big.labels=[a, b]"])


def test_overrides_and_changes_reach_named_sections(small):
    recipe = load_recipe(small, [f"{PASS}.n=4", f"{PASS}.temperature=1"])
    assert (recipe.teacher.sampling.n, recipe.teacher.sampling.temperature) == (4, 1)
    changed = changed_recipe(recipe, {f"{PASS}.n": 2, "teachers.main.model.path": "other"}, "s: SPACE")
    assert changed.teacher.sampling == recipe.teacher.sampling.model_copy(update={"n": 2})
    assert recipe_differences(recipe, changed) == [
        "teachers.main.model.path: 'teacher' -> 'other'",
        f"{PASS}.n: 4 -> 2",
    ]
    with pytest.raises(RecipeError, match=rf"^s: SPACE: {PASS}.n: Input should be greater than or equal to 1, found 0"):
        changed_recipe(recipe, {f"{PASS}.n": 0}, "s: SPACE")


def test_paths_in_named_sections_become_absolute(small, tmp_path, monkeypatch):
    (tmp_path / "t.jsonl").write_text("{}\n")
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(small, [BLEU, f"data.test={{words: {ROWS}}}"])
    resolved = resolve_paths(recipe)
    assert resolved.data.test_rows.path == str(tmp_path / "t.jsonl")
    assert resolved.teacher.model.path == str(tmp_path / "teacher")
    assert recipe.data.test_rows.path == "t.jsonl" and resolve_paths(resolved) == resolved
    assert resolved.student is recipe.student  # nothing to change there: no such folder


@pytest.mark.parametrize(
    ("sampling", "answering", "expected", "in_its_pass"),
    [
        ({}, None, {}, True),
        ({"max_tokens": 9, "options": {"stop": ["x"]}}, None, {"max_tokens": 9, "options": {"stop": ["x"]}}, True),
        ({"n": 4, "temperature": 1, "top_p": 0.9, "top_k": 5, "max_tokens": 9}, None, {"max_tokens": 9}, False),
        ({"temperature": 1}, {"temperature": 1}, {"temperature": 1}, True),
        ({}, {"max_tokens": 7}, {"max_tokens": 7}, False),
    ],
)
def test_a_teacher_answers_greedily_unless_it_says_otherwise(small, sampling, answering, expected, in_its_pass):
    overrides = [BLEU, f"data.test={{main: {ROWS}}}", f"{PASS}={sampling}", VLLM]
    overrides += [f"teachers.main.answering={answering}"] if answering else []
    recipe = load_recipe(small, overrides)
    answers = recipe.teacher.answering_sampling()
    assert answers == type(answers)(**expected) and recipe.teacher.answers_as_it_labels() is in_its_pass


def test_another_sampling_keeps_the_named_store_where_only_the_number_differs(small):
    teacher = load_recipe(small, [f"{PASS}={{n: 2, temperature: 1}}", "teachers.main.store=s"]).teacher
    more = teacher.with_sampling(teacher.sampling.model_copy(update={"n": 5}))
    assert (more.store, more.sampling.n, more.pass_name) == ("s", 5, "pseudo_targets")
    assert teacher.with_sampling(teacher.answering_sampling()).store is None
