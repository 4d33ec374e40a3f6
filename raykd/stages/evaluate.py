"""TODO: docstring."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from raykd import metrics
from raykd.data.examples import (
    Example,
)
from raykd.data.tasks.formats import TREES
from raykd.models import card
from raykd.recipe.roles import Student, Teacher
from raykd.run import remote
from raykd.run.files import fingerprint, write_text
from raykd.run.manifests import MANIFEST
from raykd.run.session import Session
from raykd.stages.label import label_inputs
from raykd.stages.labelling import TEACHER_LINEAGE, LabellingRequest, read_samples
from raykd.stages.rows import json_lines, output_format
from raykd.stages.select import best_sample


def evaluate_arm(
    session: Session, arm: str, model: str, side: Teacher | Student, test: list[Example]
) -> dict[str, float]:
    """Score a model's answers to the test inputs by every metric of the recipe.

    Of a teacher's several samples the first counts, or their vote where the recipe's `pseudo_targets` are voted.
    """
    if not test:
        return {}
    request = LabellingRequest(name=f"evaluate/{arm}-predictions", model=model, role=side, sources={"test": test})
    answers = read_samples(label_inputs(session, request), "test", TEACHER_LINEAGE)
    form = output_format(session) if session.recipe.pseudo_targets.vote and isinstance(side, Teacher) else None
    found = {s[0].input: (best_sample(form, s) if form else s[0]).target or "" for s in answers}

    def work(folder: Path) -> tuple[dict, dict]:
        scored = [(found.get(e.input, ""), e) for e in test]
        rows = ({"id": e.id, "input": e.input, "answer": a, "right": e.right_answers()} for a, e in scored)
        write_text(folder / "answers.jsonl", json_lines(rows))
        values = _scores(session, [a for a, _ in scored], [e for _, e in scored])
        if (Path(model) / "README.md").exists():
            card.scored(Path(model), values)
            remote.send(Path(model) / "README.md")
        return {"arm": arm, "rows": len(test), "metrics": values, "model": model}, {"rows": len(test)}

    inputs = {"answers": fingerprint(sorted(found.items())), "metrics": session.recipe.metrics}
    values = session.stage(f"evaluate/{arm}", "evaluate", inputs, work)["metrics"]
    session.console.say(f"{arm}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    return values


def compare_trees(session: Session, arms: Iterable[str]) -> None:
    """Scored arms' trees beside the teacher's, for the report: agreement, and recall by gold label.

    Does nothing where the recipe's answers are no trees, or no teacher was scored.
    """
    form = session.recipe.pseudo_targets.format
    if form not in TREES or not (session.path / "evaluate/teacher" / MANIFEST).exists():
        return
    from raykd.metrics import trees

    files = {arm: session.path / "evaluate" / arm / "answers.jsonl" for arm in ("teacher", *arms)}
    rows = {arm: [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]] for arm, file in files.items()}
    labels = re.compile(r"(?<=\()[^\s()]+" if form == "labelled_trees" else r"(?!)")  # of brackets; else no match
    answers = {arm: [labels.sub("", row["answer"]) for row in found] for arm, found in rows.items()}
    right = [row["right"] for row in rows["teacher"]]

    def work(_: Path) -> tuple[dict, dict]:
        recall = {arm: trees.label_recall(found, right) for arm, found in answers.items()}
        agreed = {arm: asdict(trees.agreement(answers["teacher"], answers[arm], right)) for arm in arms}
        return {"label_recall": recall, "agreement": agreed}, {"rows": len(right)}

    session.stage("evaluate/trees", "compare", {"answers": fingerprint([answers, right])}, work)


def score_pseudo_targets(
    session: Session, name: str, number: int, labeller: str, labelled: list[Example], gold: list[Example]
) -> None:
    """Score pseudo-targets against gold, where gold was given; for the report only, nothing is chosen by it."""
    right = {e.input: e for e in gold if e.right_answers()}
    known = [e for e in labelled if e.input in right]
    if not known or not session.recipe.metrics:
        return

    def work(_: Path) -> tuple[dict, dict]:
        values = _scores(session, [e.target or "" for e in known], [right[e.input] for e in known])
        return {"round": number, "labeller": labeller, "rows": len(known), "metrics": values}, {"rows": len(known)}

    targets = fingerprint([[e.input, e.target] for e in known])
    session.stage(name, "quality", {"targets": targets, "metrics": session.recipe.metrics}, work)


def _scores(session: Session, answers: list[str], examples: list[Example]) -> dict[str, float]:
    right = [e.right_answers() for e in examples]
    return {name: metrics.get(name)(answers, right) for name in session.recipe.metrics}
