"""Sessions: what a stage is for stands in its manifest, and what is open is shared."""

import json

import pytest
from conftest import RECIPE

from raykd.errors import RunError
from raykd.recipe.load import load_recipe
from raykd.run.manifests import StageAbout
from raykd.run.session import Session


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(output=tmp_path / "runs", bad=0))
    return load_recipe(tmp_path / "recipe.yaml")


def test_a_manifest_says_what_a_stage_is_for(recipe):
    session = Session(recipe)
    about = StageAbout(arm="mckd", own=True, round=2, partition=1)
    session.stage("a", "train", {}, lambda folder: ({}, {}), about)
    session.stage("b", "rows", {}, lambda folder: ({}, {}))
    manifests = [json.loads((session.path / name / "manifest.json").read_text()) for name in "ab"]
    assert [(m["arm"], m["own"], m["round"], m["partition"]) for m in manifests] == [
        ("mckd", True, 2, 1),
        (None, False, None, None),
    ]


def test_a_session_with_another_recipe_is_in_the_same_folder_with_the_same_lock(recipe):
    with Session(recipe) as session:
        other = session.with_recipe(recipe.model_copy(update={"seed": 7}))
        assert (other.path, other.recipe.seed, session.recipe.seed) == (session.path, 7, recipe.seed)
        with other.folder.path.joinpath("recipe.yaml").open() as file:
            assert "seed: 7" not in file.read()
        other.folder.lock(print)  # this process has it
    with Session(recipe):
        pass


def test_what_is_not_connected_gives_every_pass_its_actors(recipe):
    session = Session(recipe)
    with session.labelling_passes(3) as passes:
        assert (passes, session.passes) == (3, 3)
        with session.labelling_passes(0) as none:
            assert none == session.passes == 1
        assert session.passes == 3
    assert session.passes == 1


def test_a_folder_that_another_run_has_is_refused(recipe, monkeypatch):
    monkeypatch.setattr("raykd.run.folder.LOCK_SECONDS", 0)
    with Session(recipe), pytest.raises(RunError, match="another raykd works in it"), Session(recipe):
        pass
