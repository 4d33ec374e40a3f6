"""How a teacher is scored: by `answering`, in its pass where both decode alike, else by a labelling of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from answers import careless
from conftest import pairs
from test_end_to_end import recipe

from pipelines import distill
from raykd.recipe.load import load_recipe
from raykd.report.gather import gather_run
from raykd.run.session import Session
from raykd.stages.rows import read_rows
from raykd.store.store import Store

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("ray_session")]
SAMPLED = {"n": 9, "temperature": 0.7, "max_tokens": 10}
VOTE = {"format": "answers:CAPITALS", "vote": True}


def scored(folder, model, sampling: dict, answering: dict | None = None, **changes) -> dict[str, Any]:
    """The manifests of a run up to its teacher's score, by stage; the teacher's store is `folder`/own."""
    teacher = {
        "model": {"kind": "checkpoint", "path": str(model)},
        "prompt": "{input} =>",
        "store": str(folder / "own"),
    }
    teacher |= {"engine": {"kind": "scripted", "function": "answers:careless"}, "answering": answering}
    teacher |= {"passes": {"pseudo_targets": sampling}, "shard_rows": 64}
    settings = {"method": {"kind": "distill"}, "arms": {}, "data__gold": None, "teachers__main": teacher}
    file = recipe(folder, **settings, metrics=[{"kind": "exact_match"}], **changes)
    with Session(load_recipe(file)) as session:
        distill.teacher(session, read_rows(session))
    with Session(load_recipe(file)) as session:  # complete: nothing is labelled again
        distill.teacher(session, read_rows(session))
    stages = {path.parent: json.loads(path.read_text()) for path in session.path.rglob("manifest.json")}
    assert set(gather_run(session.path)["arms"]) == {"teacher"}
    return {str(path.relative_to(session.path)): manifest for path, manifest in stages.items()}


def exact_match(sample: int) -> float:
    rights = [careless(f"{row['input']} =>", sample) == row["target"] for row in pairs(80, 900)]
    return 100 * sum(rights) / len(rights)


def test_test_rows_are_answered_in_a_pass_that_decodes_alike(tmp_path, tiny_models):
    stages = scored(tmp_path, tiny_models["llama"], {"max_tokens": 10})
    labels, answers = stages["teacher/labels"], stages["evaluate/teacher-predictions"]
    assert set(labels["inputs"]["rows"]) == {"unlabelled", "test"} and labels["stats"]["new_rows"] == 480
    assert answers["results"]["store"] == labels["results"]["store"] == str(tmp_path / "own")
    assert (answers["stats"]["new_rows"], answers["stats"]["reused_rows"]) == (0, 80)
    assert not (tmp_path / "runs/stores").exists()
    assert stages["evaluate/teacher"]["results"]["metrics"]["exact_match"] == pytest.approx(exact_match(0))


def test_a_teacher_that_samples_is_scored_by_one_greedy_answer(tmp_path, tiny_models):
    """The vote of nine samples is right more often than the first answer: what is learnt has it, the score has not."""
    stages = scored(tmp_path, tiny_models["llama"], SAMPLED, pseudo_targets=VOTE)
    labels, answers = stages["teacher/labels"], stages["evaluate/teacher-predictions"]
    assert set(labels["inputs"]["rows"]) == {"unlabelled"} and set(answers["inputs"]["rows"]) == {"test"}
    assert (labels["stats"]["new_rows"], labels["stats"]["samples"]) == (400, 9)
    assert (answers["stats"]["new_rows"], answers["stats"]["samples"]) == (80, 1)
    assert answers["stats"]["payload_why"] == "answers are scored as texts"
    assert answers["stats"]["payload"] == {"kind": "text", "logprobs": False}
    own, other = Store(labels["results"]["store"]), Store(answers["results"]["store"])
    assert own.path == str(tmp_path / "own") and other.path.startswith(str(tmp_path / "runs/stores"))
    temperatures = [store.read_json("store.json")["parts"]["sampling"]["temperature"] for store in (own, other)]
    assert temperatures == [0.7, 0.0]
    score = stages["evaluate/teacher"]["results"]["metrics"]["exact_match"]
    assert score == pytest.approx(exact_match(0))
    assert stages["teacher/quality"]["results"]["metrics"]["exact_match"] > score + 20


def test_a_teacher_is_scored_as_answering_says(tmp_path, tiny_models):
    answering = {"temperature": 0.5, "max_tokens": 12}
    stages = scored(tmp_path, tiny_models["llama"], {"max_tokens": 10}, answering)
    assert set(stages["teacher/labels"]["inputs"]["rows"]) == {"unlabelled"}
    answers = stages["evaluate/teacher-predictions"]
    sampling = Store(answers["results"]["store"]).read_json("store.json")["parts"]["sampling"]
    assert (sampling["temperature"], sampling["max_tokens"]) == (0.5, 12) and answers["stats"]["new_rows"] == 80
