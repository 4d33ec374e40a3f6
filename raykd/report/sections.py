"""The summary and the sections of a run's report: numbers as texts and tables."""

from __future__ import annotations

import math
from typing import Any

from raykd.metrics import lower_is_better
from raykd.recipe.load import method_settings
from raykd.recipe.models import Checkpoint, EndpointModel, FromConfig, TeacherModel
from raykd.recipe.recipe import Recipe
from raykd.report.gather import CONTROL, TEACHER
from raykd.report.render import Plot, ReportSection, Table, metric_names, time_unit, with_arrow

QUALITY = "Scored against gold that was given for reporting only: nothing was trained on it or chosen by it."
NO_QUALITY = "Not scored: no gold was given to compare them with, or not yet."
AGREEMENT = (
    "By tenths of the test sentences, where teacher and student agree least first; F1 of unlabelled brackets. "
    "Sentences of which both predictions are trees: "
)


def report_parts(report: dict[str, Any], plots: list[Plot]) -> list[ReportSection | Plot]:
    """The sections in their order, with the plots before the stages."""
    stages, licences = report["stages"], report["licences"]
    return [
        ReportSection("Arms", _arms_text(report), _arm_table(report["arms"])),
        *_tree_sections(report["trees"]),
        ReportSection(
            "What the arms cost",
            "Seconds of stages, which may have run at the same time; the teacher's are shared by the arms it teaches.",
            _cost_table(report["costs"]),
        ),
        ReportSection(
            "Pseudo-targets by round",
            QUALITY if report["pseudo_targets"] else NO_QUALITY,
            _quality_table(report["pseudo_targets"]),
        ),
        ReportSection(
            "What students memorise",
            "How well a round's students repeat the pseudo-targets they were taught, and agree with pseudo-targets "
            "they never saw.",
            _memorisation_table(report["memory"]),
        ),
        ReportSection(
            "Choice of pseudo-targets",
            "Invalid: not of the recipe's pseudo_targets.format. What was dropped is in the stage's dropped.jsonl.",
            _choice_table(stages),
        ),
        *plots,
        ReportSection("Stages", "Tokens are those trained on, or those generated.", _stage_table(stages)),
        ReportSection(
            "Trainings",
            "Padding: the share of computed positions without a token. Waited: of the seconds, those spent on rows.",
            _training_table(stages),
        ),
        ReportSection(
            "Labelling",
            "An engine wrote only what the store did not hold. Seconds are from its first input on.",
            _labelling_table(stages),
        ),
        ReportSection("What failed", _failed_text(report["failed"]), _failed_table(report["failed"]["rows"])),
        ReportSection("Licences", "", [["of", "licence"], *([f"the {k}", v] for k, v in licences.items())]),
    ]


def _arms_text(report: dict[str, Any]) -> str:
    if not report["complete"]:
        return "The run is not complete: " + ("these are the arms so far." if report["arms"] else "no arms yet.")
    if not report["arms"]:
        return "Nothing was scored: the recipe names no test rows."
    against = f"; in brackets the change against {CONTROL}" if CONTROL in report["arms"] else ""
    return (
        f"On the test rows{against}. Bold: the best arm, and the best student. "
        "↓ lower is better, ↑ higher is better; error rates are in percent."
    )


def _arm_table(arms: dict[str, dict[str, float]]) -> Table:
    metrics = metric_names(arms.values())
    students = {name: scores for name, scores in arms.items() if name != TEACHER}
    best = {metric: {_best_arm(arms, metric), _best_arm(students, metric)} for metric in metrics}
    table = [["arm", *map(with_arrow, metrics)]]
    for name, scores in arms.items():
        control = arms.get(CONTROL, {}) if name != CONTROL else {}
        cells = {metric: _score(scores.get(metric), control.get(metric)) for metric in metrics}
        table.append([name, *(f"**{text}**" if name in best[metric] else text for metric, text in cells.items())])
    return table


def _best_arm(arms: dict[str, dict[str, float]], metric: str) -> str | None:
    """The arm with the best score; None if fewer than two arms have a score."""
    scores = {name: s[metric] for name, s in arms.items() if metric in s and math.isfinite(s[metric])}
    pick = min if lower_is_better(metric) else max
    return pick(scores, key=lambda name: scores[name]) if len(scores) > 1 else None


def _score(value: float | None, control: float | None = None) -> str:
    """A score as text; with a control, its relative change against the control in brackets."""
    if value is None:
        return ""
    return f"{value:.2f} ({100 * (value - control) / abs(control):+.1f} %)" if control else f"{value:.2f}"


def _tree_sections(trees: dict[str, Any] | None) -> list[ReportSection]:
    """Sections on agreement with the teacher and recall of gold brackets; none if targets are not trees."""
    if trees is None:
        return []
    parsed_by_both = ", ".join(f"{arm} {agreement['both_trees']}" for arm, agreement in trees["agreement"].items())
    return [
        ReportSection(
            "Agreement with the teacher", f"{AGREEMENT}{parsed_by_both}.", _agreement_table(trees["agreement"])
        ),
        ReportSection(
            "Recall by gold label",
            "Percent of the gold brackets of each label that an arm has, whatever it calls them.",
            _recall_table(trees["label_recall"]),
        ),
    ]


def _agreement_table(agreements: dict[str, Any]) -> Table:
    table = [["arm", "sentences", "agreement", "teacher's F1", "student's F1", "better", "worse", "equal"]]
    for arm, agreement in agreements.items():
        tenths = agreement["deciles"]
        sums = {key: sum(tenth[key] for tenth in tenths) for key in ("rows", "better", "worse")}
        whole = {**agreement, **sums, "agreement": agreement["mean"]}
        for name, part in [(f"{arm}, all", whole), *((arm, tenth) for tenth in tenths)]:
            means = [f"{100 * part[key]:.1f}" for key in ("agreement", "teacher_f1", "student_f1")]
            equal = part["rows"] - part["better"] - part["worse"]
            table.append([name, str(part["rows"]), *means, *map(str, (part["better"], part["worse"], equal))])
    return table


def _recall_table(recall: dict[str, dict[str, list[int]]]) -> Table:
    """`recall`: by arm and label, how many gold brackets the arm has, and how many there are."""
    counts = {label: all_ for label, (_, all_) in recall[TEACHER].items()}
    table = [["label", "gold brackets", *recall]]
    for label in sorted(counts, key=lambda label: -counts[label]):
        shares = [by_label[label][0] / by_label[label][1] for by_label in recall.values()]
        table.append([label, str(counts[label]), *(f"{100 * share:.1f}" for share in shares)])
    return table


def _quality_table(rounds: list[dict[str, Any]]) -> Table:
    metrics = metric_names(quality["metrics"] for quality in rounds)
    table = [["round", "labelled by", "rows", *map(with_arrow, metrics)]]
    for quality in rounds:
        scores = [_score(quality["metrics"].get(metric)) for metric in metrics]
        table.append([str(quality["round"]), str(quality["labeller"]), _cell(quality.get("rows")), *scores])
    return table


def _cost_table(costs: dict[str, dict[str, float]]) -> Table:
    names = ("trainings", "students_labelling", "teacher")
    table = [["arm", *(f"{name.replace('_', ' ')}, s" for name in names)]]
    return table + [[arm, *(f"{seconds[name]:.1f}" for name in names)] for arm, seconds in costs.items()]


def _memorisation_table(rounds: list[dict[str, Any]]) -> Table:
    if not rounds:
        return [[]]
    metric = rounds[0]["metric"]
    table = [["stage", "partition", f"{metric}, taught", f"{metric}, never seen"]]
    for results in rounds:
        for student in results["students"]:
            scores = [_score(student[key]) for key in ("seen", "unseen")]
            table.append([results["stage"], str(student["partition"]), *scores])
    return table


def _choice_table(stages: list[dict[str, Any]]) -> Table:
    counts = ("rows", "invalid", "repaired", "dropped", "retried")
    table = [["stage", *counts]]
    for stage in (s for s in stages if s["kind"] == "choose"):
        table.append([stage["stage"], *(_cell(stage["stats"].get(key)) for key in counts)])
    return table


def _stage_table(stages: list[dict[str, Any]]) -> Table:
    table = [["stage", "kind", "started, s", "seconds", "rows", "tokens", "tokens/s"]]
    for stage in stages:
        counts = [_cell(stage[key]) for key in ("rows", "tokens", "tokens_per_second")]
        table.append([stage["stage"], stage["kind"], f"{stage['started']:.0f}", f"{stage['seconds']:.1f}", *counts])
    return table


def _training_table(stages: list[dict[str, Any]]) -> Table:
    counts = ("parameters", "rows", "workers", "seconds", "waited_seconds", "tokens_per_second")
    table = [["stage", *(name.replace("_", " ") for name in counts), "padding", "cut targets", "empty targets"]]
    for stats, name in ((s["stats"], s["stage"]) for s in stages if s["kind"] == "train"):
        padding = stats.get("padding")
        percent = "" if padding is None else f"{100 * padding:.1f} %"
        odd = [_cell(stats.get(key)) for key in ("cut_targets", "empty_targets")]
        table.append([name, *(_cell(stats.get(key)) for key in counts), percent, *odd])
    return table


def _labelling_table(stages: list[dict[str, Any]]) -> Table:
    counts = "rows samples reused_rows new_rows prompt_tokens output_tokens seconds engine_deaths".split()
    table = [["stage", "engine", *(name.replace("_", " ") for name in counts), "kept", "because"]]
    for stats, name in ((s["stats"], s["stage"]) for s in stages if s["kind"] == "label"):
        payload = " ".join(str(value) for value in stats.get("payload", {}).values())
        cells = [_cell(stats.get(key)) for key in counts]
        table.append([name, str(stats.get("engine", "")), *cells, payload, stats.get("payload_why", "")])
    return table


def _failed_text(failed: dict[str, Any]) -> str:
    count, shown = failed["count"], len(failed["rows"])
    rows = "1 row was left out" if count == 1 else f"{count} rows were left out"
    return "Nothing." if not count else f"{rows}; the first {shown} of them:" if shown < count else f"{rows}:"


def _failed_table(rows: list[dict[str, Any]]) -> Table:
    table = [["where", "line", "reason"]]
    for row in rows:
        line = f"row {row['row']}" if row["row"] is not None else row["line"]
        table.append(["" if cell is None else str(cell) for cell in (row["file"], line, row["reason"])])
    return table


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def run_summary(report: dict[str, Any], recipe: Recipe) -> str:
    """What was run and what it took, in one paragraph."""
    settings = ", ".join(method_settings(recipe.method))
    tuned = ", fine-tuned on gold pairs" if recipe.teacher.fine_tune else ""
    stages = ", ".join(stage["stage"] for stage in report["stages"])
    totals = report["totals"]
    texts = [
        report["description"].strip(),
        f"Method: {report['method']['kind']}{f' ({settings})' if settings else ''}.",
        f"Teacher: {model_text(recipe.teacher.model)}{tuned}, labelling through {recipe.teacher.engine.kind}.",
        f"Student: {model_text(recipe.student.model)}.",
        "" if report["complete"] else f"Not complete; stages done so far: {stages or 'none'}.",
        f"{_duration(totals['wall_seconds'])} from the first stage's start to the last one's end,"
        f" {_duration(totals['stage_seconds'])} summed over stages; the teacher wrote {totals['teacher_tokens']:,}"
        f" tokens, the trainings saw {totals['tokens_trained']:,} target tokens.",
        _endpoint_text(totals),
    ]
    return " ".join(text for text in texts if text)


def _endpoint_text(totals: dict[str, Any]) -> str:
    if not totals["endpoint_rows"]:
        return ""
    cost = f", at a cost of {totals['endpoint_cost']:,.2f} by the recipe's price" if totals["endpoint_cost"] else ""
    if not totals["teacher_tokens"]:
        cost = ", which did not say how many tokens that were: what it cost is not known"
    return f"{totals['endpoint_rows']:,} rows left the cluster for the endpoint{cost}."


def model_text(model: TeacherModel) -> str:
    """Which model a section of a recipe names, in a few words."""
    if isinstance(model, FromConfig):
        return f"{model.model_type} from random weights"
    if isinstance(model, Checkpoint):
        return model.path
    if isinstance(model, EndpointModel):
        return model.name
    lists = {"layers": model.layers, "encoder layers": model.encoder_layers, "decoder layers": model.decoder_layers}
    layers = [f"{name} {', '.join(map(str, numbers))}" for name, numbers in lists.items() if numbers]
    return f"{' and '.join(layers)} of {model.path}"


def _duration(seconds: float) -> str:
    divisor, unit = time_unit(seconds)
    return f"{seconds / divisor:.{0 if divisor == 1 else 1}f} {unit}"
