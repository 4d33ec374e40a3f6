"""The stage `evaluate`: a model's predictions for the test inputs, and their scores. And scores of pseudo-targets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from raykd import metrics
from raykd.data.examples import Example
from raykd.data.tasks.formats import TREES
from raykd.models import card
from raykd.recipe.roles import Student, Teacher
from raykd.run import remote
from raykd.run.files import fingerprint, write_text
from raykd.run.manifests import StageAbout
from raykd.run.session import Session
from raykd.stages.label import label_inputs
from raykd.stages.labelling import TEACHER_LINEAGE, LabellingRequest, read_samples
from raykd.stages.rows import json_lines, output_format
from raykd.stages.select import best_sample

PREDICTIONS = "predictions.jsonl"  # of an evaluation: {id, input, prediction, references}, a test example a line
TREE_LABEL = re.compile(r"(?<=\()[^\s()]+")  # of a labelled bracket
NOTHING = re.compile(r"(?!)")  # matches nowhere


def evaluate_arm(
    session: Session, about: StageAbout, model: str, role: Teacher | Student, test: list[Example]
) -> dict[str, float]:
    """The scores of an arm's model on the test examples, by metric of the recipe; empty where there is no example.

    `model` is its folder, of an endpoint its name; `role` says how it is prompted and decoded. Of a teacher's several
    samples the first is the prediction, or their vote where the recipe has `pseudo_targets.vote`. An input that the
    model rejects counts as an empty prediction. Scores are also written into the model's card.

    Raises what `label_inputs` raises; RecipeError for an unknown metric, DataError where a metric has nothing to score.
    """
    if not test:
        return {}
    arm = about.arm
    request = LabellingRequest(
        name=f"evaluate/{arm}-predictions", model=model, role=role, sources={"test": test}, about=about
    )
    samples = read_samples(label_inputs(session, request), "test", TEACHER_LINEAGE)
    vote = session.recipe.pseudo_targets.vote and isinstance(role, Teacher)
    best = [best_sample(output_format(session), of_input) if vote else of_input[0] for of_input in samples]
    by_input = {example.input: example.target or "" for example in best}

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

    inputs = {"predictions": fingerprint(sorted(by_input.items())), "metrics": session.recipe.metrics}
    scores = session.stage(f"evaluate/{arm}", "evaluate", inputs, work, about)["metrics"]
    session.console.say(f"{arm}: " + ", ".join(f"{name} {score:.2f}" for name, score in scores.items()))
    return scores


def compare_trees(session: Session, arms: Iterable[str]) -> None:
    """Compare evaluated arms' trees with the teacher's, for the report: agreement, and recall by gold label.

    Does nothing where the recipe's targets are no trees, or the teacher was not evaluated.
    """
    form = session.recipe.pseudo_targets.format
    if form not in TREES or not session.folder.is_complete("evaluate/teacher"):
        return
    from raykd.metrics import trees

    files = {arm: session.path / "evaluate" / arm / PREDICTIONS for arm in ("teacher", *arms)}
    rows = {arm: [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]] for arm, file in files.items()}
    label = TREE_LABEL if form == "labelled_trees" else NOTHING
    predictions = {arm: [label.sub("", row["prediction"]) for row in of_arm] for arm, of_arm in rows.items()}
    references = [row["references"] for row in rows["teacher"]]

    def work(_: Path) -> tuple[dict, dict]:
        recall = {arm: trees.label_recall(of_arm, references) for arm, of_arm in predictions.items()}
        agreement = {arm: asdict(trees.agreement(predictions["teacher"], predictions[arm], references)) for arm in arms}
        return {"label_recall": recall, "agreement": agreement}, {"rows": len(references)}

    session.stage("evaluate/trees", "compare", {"predictions": fingerprint([predictions, references])}, work)


def score_pseudo_targets(
    session: Session, name: str, about: StageAbout, pseudo_targets: list[Example], unlabelled: list[Example]
) -> None:
    """Score pseudo-targets against the gold of the unlabelled rows, for the report only: nothing is selected by it.

    Rows without gold are left out; does nothing where none has gold, or the recipe has no metrics. `about` without a
    round is the teacher's.
    """
    gold = {example.input: example for example in unlabelled if example.references_with_target()}
    known = [example for example in pseudo_targets if example.input in gold]
    if not known or not session.recipe.metrics:
        return

    def work(_: Path) -> tuple[dict, dict]:
        scores = _scores(session, [e.target or "" for e in known], [gold[e.input] for e in known])
        labeller = "teacher" if about.round is None else "students"
        results = {"round": about.round or 0, "labeller": labeller, "rows": len(known), "metrics": scores}
        return results, {"rows": len(known)}

    inputs = {"targets": fingerprint([[e.input, e.target] for e in known]), "metrics": session.recipe.metrics}
    session.stage(name, "quality", inputs, work, about)


def _scores(session: Session, predictions: list[str], examples: list[Example]) -> dict[str, float]:
    references = [example.references_with_target() for example in examples]
    return {name: metrics.get(name)(predictions, references) for name in session.recipe.metrics}
