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


EXTENSIONS = {
    "metric": Extension(
        1,
        "from raykd import metrics\n"
        "assert main(['check', 'r.yaml', 'metrics=[length_difference]']) == 0\n"
        "assert main(['check', 'r.yaml', 'metrics=[length_diference]']) == 2\n"
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
        "data": {"unlabelled": rows, "test": {**rows, "columns": {"target": "target"}}},
        "teacher": {"model": model, "engine": {"kind": "scripted"}},
        "student": {"model": model, "training": {"learning_rate": 0.1, "max_steps": 1}},
        "metrics": ["exact_match"],
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
