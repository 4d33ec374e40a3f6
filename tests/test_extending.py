"""docs/extending.md as written, outside the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from ray_head import finished, head

PAGE = (ROOT / "docs/extending.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))
RECIPES = [name for name in FILES if name.endswith(".yaml")]


def raykd_outside(*arguments: str) -> subprocess.CompletedProcess:
    """A finished command, in the root folder of this machine; raykd alone is on Python's path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "raykd", *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture
def written(tmp_path, tiny_models) -> Path:
    """A folder with every file of the page, whose models are tiny ones, and whose output is in it."""
    for name, text in FILES.items():
        for role in ("teacher", "student"):
            text = text.replace(f"/models/{role}", str(tiny_models["t5"]))
        (tmp_path / name).write_text(text)
    for name in RECIPES:
        recipe = yaml.safe_load((tmp_path / name).read_text())
        (tmp_path / name).write_text(yaml.safe_dump({**recipe, "output": str(tmp_path / "runs")}))
    return tmp_path


def test_every_block_has_a_file_and_is_part_of_a_recipe():
    blocks = len(re.findall(r"```(?:python|yaml)\n", PAGE))
    assert len(FILES) == blocks >= 6 and RECIPES
    named = " ".join(FILES[name] for name in RECIPES)
    assert [name for name in FILES if name.endswith(".py") and name.removesuffix(".py") not in named] == []


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_checked(written, name):
    checked = raykd_outside("check", str(written / name))
    assert checked.returncode == 0, checked.stderr
    assert yaml.safe_load(checked.stdout)["modules"] == str(written)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "metrics=['my_metric:wrong_word']",
            "metrics.0: my_metric:wrong_word: my_metric.py has no wrong_word; did",
        ),
        ("metrics=['my_metrics:score']", "metrics.0: my_metrics:score: no module my_metrics beside the recipe or on"),
        ("pseudo_targets.format=my_format:CAPITAL", "my_format.py has no CAPITAL; did you mean CAPITALS?"),
        (
            "data.test.function=my_rows:row",
            "data.test.function: my_rows:row: my_rows.py has no row; did you",
        ),
        ("teacher.engine.function=my_teacher:ansver", "teacher.engine.function: my_teacher:ansver: my_teacher.py has"),
        ("student.training.dev_metrics=['my_metric:wrong_words', bleuu]", "dev_metrics.1: unknown metric 'bleuu'; did"),
        ("method.page=my_metric", "method.page: my_metric:run: my_metric.py has no run"),
        ("modules=/nowhere", "modules: /nowhere: no such folder"),
    ],
)
def test_a_name_that_is_not_there_is_one_line(written, override, message):
    checked = raykd_outside("check", str(written / "own.yaml"), override)
    assert checked.returncode == 2 and message in checked.stderr
    assert checked.stderr.count("\n") == 1 and len(checked.stderr) <= 600 + len(str(written))


@pytest.mark.timeout(400)
def test_the_recipe_runs_and_a_changed_function_is_noticed(written):
    done = raykd_outside("run", str(written / "own.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    run = written / "runs/own"
    report = json.loads((run / "report.json").read_text())
    assert 0 <= report["arms"]["shortest"]["my_metric:wrong_words"] <= 100
    assert report["arms"]["teacher"]["my_metric:wrong_words"] > 0  # every third answer
    stages = {stage["stage"]: stage["stats"] for stage in report["stages"]}
    assert stages["teacher/chosen"]["repaired"] > 0
    assert stages["shortest"]["rows"] + stages["shortest"]["dev_rows"] == 192
    assert "wrong_words ↓" in (run / "report.md").read_text()

    again = raykd_outside("run", str(run / "recipe.yaml"))  # a run is gone on with from its own recipe
    assert again.returncode == 0 and "shortest: complete, nothing to do" in again.stdout, again.stdout + again.stderr
    (written / "my_metric.py").write_text(FILES["my_metric.py"] + "# another version\n")
    changed = raykd_outside("run", str(written / "own.yaml"))
    assert changed.returncode == 1 and "was made from other inputs (code)" in changed.stderr, changed.stderr


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_submitted_job_brings_the_recipe_s_modules_along(written, tmp_path_factory):
    """The recipe is not at the root of the job's folder, so that the folder's being on Python's path is not enough."""
    job = tmp_path_factory.mktemp("job")
    shutil.copytree(written, job / "recipes")
    with head(tmp_path_factory.mktemp("head"), PYTHONPATH=str(ROOT)) as environment:
        command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "raykd", "run"]
        done = finished(environment, *command, "recipes/own.yaml", cwd=job, timeout=400)
        assert done.returncode == 0, done.stdout
    recipe = yaml.safe_load((written / "runs/own/recipe.yaml").read_text())
    assert recipe["modules"].endswith("/recipes") and not recipe["modules"].startswith(str(job))
    assert "my_metric:wrong_words" in json.loads((written / "runs/own/report.json").read_text())["arms"]["shortest"]
