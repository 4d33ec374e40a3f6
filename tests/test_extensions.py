"""How many files an extension of raykd's own takes: patches that are applied to a copy of the package, and run there.

A patch has its number of files, and a small script that shows that the extension works: it runs in the copy, beside a
recipe `r.yaml` whose models are tiny.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import ROOT, pairs, write_rows

PATCHES = ROOT / "tests/extensions"


class Extension(NamedTuple):
    """What one kind of extension takes."""

    files: int
    script: str


TOKEN_LOSS = """
import torch
from raykd.recipe.load import load_recipe
from raykd.training.losses import build_losses

losses = "student.training.losses={kl: {kind: alpha_divergence, weight: 0.5, alpha: 0.25}}"
more = [losses, "student.training.teacher={kind: in_process}"]
assert main(["check", "r.yaml", *more]) == 0
assert main(["check", "r.yaml", *more, "student.training.losses.kl.alpa=0.5"]) == 2
assert main(["check", "r.yaml", *more, "student.training.losses.kl.alpha=1.5"]) == 2
(loss,) = build_losses(load_recipe("r.yaml", more).student.training)
student_NE = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
teacher_NE = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log()
overlap = 0.1**0.25 * 0.9**0.75 + 0.9**0.25 * 0.1**0.75
expected = torch.tensor([0, (1 - overlap) / (0.25 * 0.75)])
torch.testing.assert_close(loss.loss.values(student_NE, teacher_NE, None)[""], expected)
assert loss.factors == {"kl": 0.5}
"""
SOURCE = """
from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.recipe.load import load_recipe
from raykd.training.job import MarkedSource, TrainingSpec
from raykd.training.loop import train
from raykd.training.prompt_sampler import Prompts

def more(name):
    shares = f"{{shares: {{'{name}': 0.5, pseudo_targets: 0.5}}, by: step, student: {{max_tokens: 4}}}}"
    training = {"losses": "{forward_kl: {}}", "teacher": "{kind: in_process}", "max_steps": 4, "sequences": shares}
    return [f"student.training.{field}={value}" for field, value in training.items()]

sampler = "raykd.training.prompt_sampler:Prompts"
assert main(["check", "r.yaml", *more(sampler)]) == 0
assert main(["check", "r.yaml", *more(sampler[:-1])]) == 2
samples, complete = [], Prompts.complete
Prompts.complete = lambda self, pending: samples.append(complete(self, pending)) or samples[-1]
student = load_recipe("r.yaml", more(sampler)).student
reader = PromptEncoder(student.model.path, "{input}", encoder=True)
rows = MarkedSource(FileSource("rows.jsonl"), "rows")
of_run = {"name": "r", "folder": "train", "tokens": "tokens", "seed": 1, "threads": 1, "rows": rows}
of_models = {"model": student.model, "tokenizer": student.model.path, "student": reader, "teacher": reader}
train(TrainingSpec(**of_run, **of_models, training=student.training), lambda metrics, folder: None)
assert len(samples) == 2 and all(1 < len(ids) <= 4 for of_step in samples for ids in of_step)
"""
EXTENSIONS = {
    "token_loss": Extension(2, TOKEN_LOSS),
    "source": Extension(1, SOURCE),
    "metric": Extension(
        1,
        "from raykd import metrics\n"
        "assert main(['check', 'r.yaml', 'metrics=[{kind: length_difference}]']) == 0\n"
        "assert main(['check', 'r.yaml', 'metrics=[{kind: length_diference}]']) == 2\n"
        "assert metrics.get('length_difference')(['a b'], [['a']]) == 1\n"
        "assert metrics.lower_is_better('length_difference')\n",
    ),
    "format": Extension(
        1,
        "from raykd.data.tasks.formats import get_format\n"
        "assert main(['check', 'r.yaml', 'pseudo_targets.format=number']) == 0\n"
        "assert main(['check', 'r.yaml', 'pseudo_targets.format=numbr']) == 2\n"
        "assert get_format('number').repair('x', 'it is 42.') == '42'\n",
    ),
    "method": Extension(
        1,
        "method = 'method={kind: own, page: pipelines.teacher_scores}'\n"
        "assert main(['check', 'r.yaml', 'method={kind: own, page: pipelines.teacher_score}']) == 2\n"
        "assert main(['run', 'r.yaml', method]) == 0\n"
        "import json\n"
        "assert json.load(open('runs/r/report.json'))['arms'] == {'teacher': {'exact_match': 0.0}}\n",
    ),
}


def test_every_patch_has_its_number_of_files():
    assert {path.stem for path in PATCHES.glob("*.patch")} == set(EXTENSIONS)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_takes_so_many_files_and_works(tmp_path, tiny_models, name):
    patch = (PATCHES / f"{name}.patch").read_text()
    assert len(set(re.findall(r"^diff --git a/(\S+) ", patch, flags=re.MULTILINE))) == EXTENSIONS[name].files
    for package in ("raykd", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = without_caches(tmp_path)
    subprocess.run(["git", "apply", str(PATCHES / f"{name}.patch")], cwd=tmp_path, check=True)
    after = without_caches(tmp_path)
    changed = [file for file, text in after.items() if before.get(file) != text]
    assert len(changed) == EXTENSIONS[name].files and before.keys() <= after.keys()

    write_rows(tmp_path / "rows.jsonl", pairs(8))
    rows = {"kind": "jsonl", "path": "rows.jsonl"}
    model = {"kind": "checkpoint", "path": str(tiny_models["t5"])}
    recipe = {
        "name": "r",
        "method": {"kind": "distill"},
        "data": {"unlabelled": rows, "test": {"main": {**rows, "columns": {"target": "target"}}}},
        "teachers": {"main": {"model": model, "engine": {"kind": "scripted"}}},
        "student": {"model": model, "training": {"learning_rate": 0.1, "max_steps": 1}},
        "metrics": [{"kind": "exact_match"}],
        "cluster": {"local_cpus": 4},  # the method's page alone starts Ray
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [sys.executable, "-c", "from raykd.cli import main\n" + EXTENSIONS[name].script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "did you mean" in done.stderr or name == "method", done.stderr


def without_caches(folder: Path) -> dict[Path, bytes]:
    """The files in a folder, without compiled ones."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.suffix in (".py", ".yaml")}
