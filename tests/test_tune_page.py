"""The page of sweeps, without Ray."""

from types import SimpleNamespace

import pytest
from conftest import ROOT

from pipelines import tune
from raykd.console import Console
from raykd.recipe.load import load_recipe
from raykd.recipe.space import Grid, NoScheduler, Space

DEMO = ROOT / "pipelines/recipes/demo.yaml"


class Choice:
    """A domain of one category, as ray.tune's are used."""

    domain_str = "choice"

    def __init__(self, category):
        self.categories = [category]

    def sample(self, random_state):
        return self.categories[0]


@pytest.mark.parametrize("before, after", [("mckd", "distill"), ("distill", "mckd")])
def test_the_teacher_labels_by_the_method_that_the_space_chooses(tmp_path, monkeypatch, before, after):
    method = {"distill": {"kind": "distill"}, "mckd": {"kind": "mckd", "partitions": 2, "stages": 2}}
    recipe = load_recipe(DEMO, ["arms={}", f"output={tmp_path}", f"method={method[before]}"])
    monkeypatch.setattr(tune, "trials_at_once", lambda session, wanted: (1, 1))
    monkeypatch.setattr(tune, "read_rows", lambda session: None)
    monkeypatch.setattr(tune, "search_space", lambda session, plan, trial: None)
    monkeypatch.setattr(tune, "write_sweep_report", lambda folder: {})
    pages = []

    def method_page(method):
        return SimpleNamespace(teacher=lambda session, splits: pages.append((method.kind, session.recipe.method.kind)))

    space = Space(
        name="s",
        fields={"method": Choice(method[after])},
        goals=(tune.space.Goal(),),
        search=Grid(kind="grid"),
        scheduler=NoScheduler(kind="none"),
        source="",
    )
    tune.run(recipe, space, Console(verbose=True), method_page)
    assert pages == [(after, after)]
