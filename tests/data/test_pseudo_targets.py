"""Votes, rules, consistency filters and weights, before a student learns anything."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import RECIPE

import pipelines.mckd
from raykd import metrics
from raykd.data import pseudo_targets
from raykd.data.examples import Example, Lineage, save_examples
from raykd.data.tasks.formats import Format
from raykd.data.tasks.interleaved import INTERLEAVED
from raykd.errors import DataError
from raykd.recipe.load import load_recipe
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.select import select_relabelled


def said(target, by="a", score=None, **others):
    return Example("1", "play it", target, lineage=Lineage(by, 1, 0, score), **others)


def test_the_most_frequent_answer_wins_with_the_mean_score_of_who_gave_it():
    best = pseudo_targets.vote([said("x", "a", -9), said("y", "b", -1), said("x", "c", -3)])
    assert (best.target, best.lineage) == ("x", Lineage("a+c", 1, 0, -6, 2 / 3))


def test_of_equally_frequent_answers_the_surest_wins_then_the_first():
    assert pseudo_targets.vote([said("x", score=-2), said("y", score=-1)]).target == "y"
    assert pseudo_targets.vote([said("x"), said("y", score=-1)]).target == "y"
    best = pseudo_targets.vote([said("x"), said("y")])
    assert best.target == "x" and best.lineage and best.lineage.score is None and best.lineage.agreement == 0.5
    assert pseudo_targets.vote([said("x", "a"), said("x", "a")]).lineage == Lineage("a", 1, 0, None, 1.0)


ROUND = StageAbout(arm="mckd", own=True, round=1)
RIGHT, WRONG = "play O it B-song", "play O"


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("keep", [RIGHT, WRONG]), ("drop", [RIGHT]), ("repair", [RIGHT, "play O it O"])],
)
def test_what_is_invalid_follows_the_rule_and_is_counted(rule, kept):
    found = pseudo_targets.filtered_by_format([said(RIGHT), said(WRONG)], INTERLEAVED, rule)
    assert [e.target for e in found.kept] == kept and found.invalid == 1
    assert found.repaired == (rule == "repair")
    assert [(e.target, reason) for e, reason in found.dropped] == (
        [(WRONG, "1 words, the input has 2")] if rule == "drop" else []
    )


def test_a_missing_answer_is_judged_as_an_empty_one():
    form = Format(lambda text, answer: None if answer else "nothing", lambda text, answer: answer or text)
    assert pseudo_targets.filtered_by_format([said(None)], form, "repair").kept[0].target == "play it"


def test_a_consistency_filter_scores_against_the_label_before():
    before = {"play it": RIGHT}
    found = pseudo_targets.with_agreement(
        [said(RIGHT), said("play O it B-album"), replace(said("z"), input="new")],
        lambda e: before.get(e.input),
        metrics.get("chunk_f1"),
    )
    assert [e.lineage and e.lineage.agreement for e in found] == [1.0, 0.0, None]
    nothing = pseudo_targets.with_agreement([said("play O it O")], lambda e: "play O it O", metrics.get("chunk_f1"))
    assert nothing[0].lineage and nothing[0].lineage.agreement == 1.0  # there is no slot to score


def test_weights_are_probabilities_or_agreements():
    one, other = said("x", score=-0.5), replace(said("y"), lineage=Lineage("a", agreement=0.25))
    gold = Example("g", "gold", "G")
    weights = [e.weight for e in pseudo_targets.with_weights([one, other, gold], "confidence")]
    assert weights == [math.exp(-0.5), 1.0, 1.0]
    assert [e.weight for e in pseudo_targets.with_weights([one, other, gold], "agreement")] == [1.0, 0.25, 1.0]
    assert pseudo_targets.with_weights([one, gold], None) == [one, gold]


def test_lineage_outlives_the_file(tmp_path):
    examples = [said("x", "mckd/round-1/student-0", -0.5, weight=0.5), said("", "teacher")]
    path = tmp_path / "some.parquet"
    assert pseudo_targets.save_pseudo_targets(path, examples) == 2
    assert pseudo_targets.load_pseudo_targets(path) == examples


@pytest.fixture
def mckd(tmp_path):
    """Runs of three partitions whose answers are slots."""

    def made(*overrides):
        text = RECIPE.format(output=tmp_path / "runs", bad=0)
        (tmp_path / "recipe.yaml").write_text(text)
        method = "method={kind: mckd, partitions: 3, relabel: vote}"
        return Session(load_recipe(tmp_path / "recipe.yaml", [method, "pseudo_targets.format=slots", *overrides]))

    return made


def test_students_vote_for_what_is_of_the_form(mckd):
    by = [[said(WRONG, "a", -0.1)], [said(RIGHT, "b", -0.2)]]
    (labels,) = select_relabelled(mckd("pseudo_targets.invalid=drop"), "labels", ROUND, [by], [[]])
    assert [e.target for e in labels] == [RIGHT]


def test_a_consistency_filter_drops_nothing_that_it_could_not_check(mckd):
    back = "method.consistency_filter={metric: exact_match, at_least: 60}"
    by = [
        [replace(said(target, writer), id=id, input=text) for id, text in (("1", "play it"), ("2", "new"))]
        for writer, target in (("a", RIGHT), ("b", "play O it O"))
    ]
    old = [[said("play O it O", "teacher")]]
    session = mckd(back)
    (labels,) = select_relabelled(
        session, "labels", ROUND, [by], old, pipelines.mckd.settings(session).consistency_filter
    )
    assert [(e.id, e.lineage and e.lineage.agreement) for e in labels] == [("2", 0.5)]


def test_where_nothing_is_left_a_line_says_why(mckd):
    with pytest.raises(DataError, match="nothing is left of the 1 pseudo-targets of part 1; the last reason: 1 words"):
        select_relabelled(
            mckd("pseudo_targets.invalid=drop"), "labels", ROUND, [[[said(RIGHT)]], [[said(WRONG)]]], [[], []]
        )


def test_no_gold_is_learnt_of_inputs_that_are_to_be_labelled(mckd, tmp_path):
    run = mckd("data.gold={kind: jsonl, path: gold.jsonl}", "method.gold=true")
    rows: Any = SimpleNamespace(gold=[Example("g1", "play it", RIGHT), Example("g2", "play that", "play O that O")])
    save_examples(tmp_path / "part.parquet", [Example("1", "play it")])
    pseudo = [replace(said(RIGHT), input="other")]
    assert pipelines.mckd.training_data(run, rows, pseudo, [tmp_path / "part.parquet"]).rows == [
        *pseudo,
        rows.gold[1],
    ]
    assert pipelines.mckd.training_data(run, rows, pseudo).rows == [*pseudo, *rows.gold]  # the final student's
