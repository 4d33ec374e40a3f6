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
import torch
import yaml
from conftest import ROOT
from ray_head import finished, head

from raykd.losses.loss import FeatureBatch, Hidden
from raykd.models.load import load_model
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.load import load_recipe
from raykd.recipe.models import FromConfig
from raykd.training.losses import build_losses

PAGE = (ROOT / "docs/extending.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))
RECIPES = [name for name in FILES if name.endswith(".yaml")]
BERT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LABELS = ["once", "twice"]
TRAINING = "student.training"


def raykd_outside(*arguments: str) -> subprocess.CompletedProcess:
    """A finished command, in the root folder of this machine; raykd alone is on Python's path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "raykd", *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory, shared_tokenizer) -> dict[str, Path]:
    """Folders of two tiny BERTs that tell texts apart, with random weights, by their roles."""
    tokenizer, folders = load_tokenizer(str(shared_tokenizer), generates=False), {}
    for seed, role in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        folders[role] = tmp_path_factory.mktemp(f"{role}-encoder")
        section = FromConfig(kind="config", model_type="bert", settings=BERT)
        load_model(section, tokenizer, "classification", LABELS).save_pretrained(folders[role])
        tokenizer.save_pretrained(folders[role])
    return folders


@pytest.fixture
def written(tmp_path, tiny_models, encoders) -> Path:
    """A folder with every file of the page, whose models are tiny ones, and whose output is in it."""
    models = {f"/models/{role}-encoder": folder for role, folder in encoders.items()}
    models |= {f"/models/{role}": tiny_models["t5"] for role in ("teacher", "student")}
    for name, text in FILES.items():
        for path, folder in models.items():
            text = text.replace(path, str(folder))
        (tmp_path / name).write_text(text)
    for name in RECIPES:
        recipe = yaml.safe_load((tmp_path / name).read_text())
        more = {"output": str(tmp_path / "runs"), "cluster": {"local_cpus": 4}}
        (tmp_path / name).write_text(yaml.safe_dump({**recipe, **more}))
    return tmp_path


def logged(stage: Path) -> list[dict[str, float]]:
    """The means of a training's losses over its first and its second ten steps."""
    lines = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [step["step"] for step in steps] == [10, 20]
    return steps


def test_every_block_has_a_file_and_is_part_of_a_recipe():
    blocks = len(re.findall(r"```(?:python|yaml)\n", PAGE))
    assert len(FILES) == blocks >= 10 and len(RECIPES) == 2
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
        ("metrics=[{kind: 'my_metric:wrong_word'}]", "my_metric.py has no wrong_word; did you mean wrong_words?"),
        ("metrics=[{kind: 'my_metrics:score'}]", "my_metrics:score: no module my_metrics beside the recipe or on"),
        ("pseudo_targets.format=my_format:CAPITAL", "my_format.py has no CAPITAL; did you mean CAPITALS?"),
        ("data.test.main.function=my_rows:row", "data.test.main.function: my_rows:row: my_rows.py has no row; did you"),
        ("teachers.main.engine.function=my_teacher:ansver", "my_teacher:ansver: my_teacher.py has no ansver; did you"),
        (
            f"{TRAINING}.dev_metrics=[{{kind: 'my_metric:wrong_words'}}, {{kind: bleuu}}]",
            "dev_metrics.1.kind: unknown metric 'bleuu'; did you mean bleu?",
        ),
        (f"{TRAINING}.losses.focal.kind=my_losses:focal_k", "my_losses.py has no focal_k; did you mean focal_kl?"),
        (f"{TRAINING}.losses.focal.kind=my_loss:focal_kl", "no module my_loss beside the recipe or on Python's path;"),
        (f"{TRAINING}.losses.focal.gamma=1", "losses.focal.gamma"),
        (
            f"{TRAINING}.sequences.shares={{'my_sampler:Swaped': 0.5, pseudo_targets: 0.5}}",
            "my_sampler.py has no Swaped; did you mean Swapped?",
        ),
        ("method.page=my_metric", "method.page: my_metric:run: my_metric.py has no run"),
        ("modules=/nowhere", "modules: /nowhere: no such folder"),
    ],
)
def test_a_name_that_is_not_there_is_one_line(written, override, message):
    checked = raykd_outside("check", str(written / "own.yaml"), override)
    assert checked.returncode == 2 and message in checked.stderr
    assert checked.stderr.count("\n") == 1 and len(checked.stderr) <= 600 + len(str(written))


def test_a_wrong_feature_loss_is_one_line(written):
    checked = raykd_outside("check", str(written / "encoder.yaml"), f"{TRAINING}.losses.l1.kind=my_features:HiddenL2")
    assert checked.returncode == 2 and "my_features.py has no HiddenL2; did you mean HiddenL1?" in checked.stderr


def test_losses_and_sampler_compute_what_the_page_says(written, monkeypatch):
    monkeypatch.syspath_prepend(str(written))
    losses = {loss.name: loss.loss for loss in build_losses(load_recipe(str(written / "own.yaml")).student.training)}
    student_NE = torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=torch.float64).log()
    teacher_NE, at_N = torch.tensor([[0.6, 0.4], [0.9, 0.1]], dtype=torch.float64).log(), torch.tensor([0, 1])
    kl_N = (teacher_NE.exp() * (teacher_NE - student_NE)).sum(1)
    values = {name: loss.values(student_NE, teacher_NE, at_N)[""] for name, loss in losses.items()}
    torch.testing.assert_close(values["focal"], kl_N * torch.tensor([0.2, 0.5]))
    torch.testing.assert_close(values["unsure"], kl_N)
    one_N = torch.ones(2, dtype=torch.float64)
    weights = losses["unsure"].weights(one_N, torch.tensor([0.4, 0.9]), torch.tensor([0.4, 0.9, 0.2]))
    assert weights[""].tolist() == [0, 1]

    (l1,) = [loss.loss for loss in build_losses(load_recipe(str(written / "encoder.yaml")).student.training)][1:]
    student = {Hidden(1): torch.tensor([[[1.0, 2.0], [5.0, 9.0]]])}
    teacher = {Hidden(1): torch.tensor([[[2.0, 5.0], [0.0, 0.0]]])}
    sums = l1.sums(student, FeatureBatch(teacher, torch.tensor([[0.5, 0.0]])), None)
    assert l1.value({**sums, "count": torch.tensor(0.5)}, None) == 2


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
    assert all(step["focal"] > 0 and step["unsure"] > 0 for step in logged(run / "shortest"))

    again = raykd_outside("run", str(run / "recipe.yaml"))  # a run is gone on with from its own recipe
    assert again.returncode == 0 and "shortest: complete, nothing to do" in again.stdout, again.stdout + again.stderr
    code = json.loads((run / "shortest/manifest.json").read_text())["inputs"]["code"]
    names = ("my_losses:focal_kl", "my_losses:UnsureKl", "my_sampler:Swapped", "my_metric:wrong_words")
    assert code.keys() == {*names}
    for name in ("my_losses.py", "my_metric.py"):
        (written / name).write_text(FILES[name] + "# another version\n")
        changed = raykd_outside("run", str(written / "own.yaml"))
        assert changed.returncode == 1 and "was made from other inputs (code)" in changed.stderr, changed.stderr
        (written / name).write_text(FILES[name])


@pytest.mark.timeout(300)
def test_a_feature_loss_teaches_an_encoder(written):
    done = raykd_outside("run", str(written / "encoder.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    first, last = logged(written / "runs/encoder/distilled")
    assert 0 < last["l1"] < first["l1"]
    assert first["loss"] == pytest.approx(first["forward_kl"] + 0.1 * first["l1"], rel=1e-5)


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
