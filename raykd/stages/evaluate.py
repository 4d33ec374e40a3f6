"""The stage `evaluate`: predictions of a model for the test inputs, and their scores; and scores of pseudo-targets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from raykd import metrics
from raykd.data.examples import Example
from raykd.data.tasks.formats import TREES
from raykd.models import card
from raykd.recipe.generation import TextPayload
from raykd.recipe.metrics import metric_kinds
from raykd.recipe.names import code_of
from raykd.recipe.roles import Student, Teacher
from raykd.run import remote
from raykd.run.files import fingerprint, write_text
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.label import label_inputs
from raykd.stages.labelling import LabellingRequest, read_pseudo_targets
from raykd.stages.rows import json_lines

PREDICTIONS = "predictions.jsonl"  # {id, input, prediction, references} for each test example
TREE_LABEL = re.compile(r"(?<=\()[^\s()]+")  # the label of a bracket
NOTHING = re.compile(r"(?!)")  # matches nowhere


def evaluate_arm(
    session: Session, about: StageAbout, model: str, role: Teacher | Student, test: list[Example]
) -> dict[str, float]:
    """{metric: score} of an arm's model on the test examples, for the recipe's metrics; empty without test examples.

    `model` is the model's folder, or its name at an endpoint; `role` says how it is prompted and decoded, a teacher by
    its `answering`. An input that the model rejects has an empty prediction. Scores are also written into the model's
    card.

    Raises the errors of `label_inputs`; RecipeError for an unknown metric, DataError if a metric has nothing to score.
    """
    if not test:
        return {}
    arm = about.arm
    request = LabellingRequest(
        name=f"evaluate/{arm}-predictions", model=model, role=role, sources={"test": test}, about=about
    )
    if isinstance(role, Teacher) and not role.answers_as_it_labels():
        texts, reason = TextPayload(kind="text", logprobs=False), "answers are scored as texts"
        answering = role.with_sampling(role.answering_sampling())
        request = replace(request, role=answering, payload=texts, payload_reason=reason)
    answers = read_pseudo_targets(label_inputs(session, request), "test")
    by_input = {example.input: example.target or "" for example in answers}

    def work(folder: Path) -> tuple[dict, dict]:
        predictions = [by_input.get(example.input, "") for example in test]
        rows = (
            {"id": e.id, "input": e.input, "prediction": prediction, "references": e.references_with_target()}
            for e, prediction in zip(test, predictions, strict=True)
        )
        write_text(folder / PREDICTIONS, json_lines(rows))
        scores = _scores(session, predictions, test)
        if (Path(model) / card.CARD).exists():
            card.write_scores(Path(model), scores)
            remote.send(Path(model) / card.CARD)
        return {"arm": arm, "rows": len(test), "metrics": scores, "model": model}, {"rows": len(test)}

    inputs = {"predictions": fingerprint(sorted(by_input.items())), **_metrics(session)}
    scores = session.stage(f"evaluate/{arm}", "evaluate", inputs, work, about)["metrics"]
    session.console.say(f"{arm}: " + ", ".join(f"{name} {score:.2f}" for name, score in scores.items()))
    return scores


def compare_trees(session: Session, arms: Iterable[str]) -> None:
    """Compare the trees of evaluated arms with the teacher's, for the report: agreement, and recall by gold label.

    Does nothing if the recipe's targets are not trees, or the teacher was not evaluated.
    """
    form = session.recipe.pseudo_targets.format
    if form not in TREES or not session.folder.is_complete("evaluate/teacher"):
        return
    from raykd.metrics import trees

    files = {arm: session.path / "evaluate" / arm / PREDICTIONS for arm in ("teacher", *arms)}
    rows = {arm: [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]] for arm, file in files.items()}
    label = TREE_LABEL if form == "labelled_trees" else NOTHING
    predictions = {arm: [label.sub("", row["prediction"]) for row in arm_rows] for arm, arm_rows in rows.items()}
    references = [row["references"] for row in rows["teacher"]]

    def work(_: Path) -> tuple[dict, dict]:
        recall = {arm: trees.label_recall(texts, references) for arm, texts in predictions.items()}
        agreement = {arm: asdict(trees.agreement(predictions["teacher"], predictions[arm], references)) for arm in arms}
        return {"label_recall": recall, "agreement": agreement}, {"rows": len(references)}

    session.stage("evaluate/trees", "compare", {"predictions": fingerprint([predictions, references])}, work)


def score_pseudo_targets(
    session: Session, name: str, about: StageAbout, pseudo_targets: list[Example], unlabelled: list[Example]
) -> None:
    """Score pseudo-targets against the gold of the unlabelled rows, for the report only: it selects nothing.

    Rows without gold are left out. Does nothing if no row has gold, or the recipe has no metrics. If `about` has no
    round, the pseudo-targets are the teacher's.
    """
    gold = {example.input: example for example in unlabelled if example.references_with_target()}
    with_gold = [example for example in pseudo_targets if example.input in gold]
    if not with_gold or not session.recipe.metrics:
        return

    def work(_: Path) -> tuple[dict, dict]:
        scores = _scores(session, [e.target or "" for e in with_gold], [gold[e.input] for e in with_gold])
        labeller = "teacher" if about.round is None else "students"
        results = {"round": about.round or 0, "labeller": labeller, "rows": len(with_gold), "metrics": scores}
        return results, {"rows": len(with_gold)}

    targets = fingerprint([[e.input, e.target] for e in with_gold])
    inputs = {"targets": targets, **_metrics(session)}
    session.stage(name, "quality", inputs, work, about)


def _metrics(session: Session) -> dict[str, Any]:
    """The recipe's metrics, as part of a stage's inputs."""
    return {"metrics": metric_kinds(session.recipe.metrics), **code_of(session.recipe, "metrics")}


def _scores(session: Session, predictions: list[str], examples: list[Example]) -> dict[str, float]:
    references = [example.references_with_target() for example in examples]
    return {name: metrics.get(name)(predictions, references) for name in metric_kinds(session.recipe.metrics)}
