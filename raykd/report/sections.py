"""Run folder to report: `report.json`, `report.md` and one self-contained `report.html`.

The same folder gives the same bytes: nothing in a report depends on when it was written.
"""

from __future__ import annotations

import math
from typing import Any

from raykd.metrics import lower_is_better
from raykd.recipe.load import method_settings
from raykd.recipe.models import Checkpoint, EndpointModel, FromConfig, TeacherModel
from raykd.recipe.recipe import Recipe
from raykd.report.render import ReportSection, Table, with_unit


def report_sections(found: dict[str, Any]) -> list[ReportSection]:
    """The tables of a report."""
    quality = "Scored against gold that was given for reporting only: nothing was trained on it or chosen by it."
    licences = found["licences"]
    return [
        ("Arms", _said_of_arms(found), _arms(found["arms"])),
        *_trees(found["trees"]),
        (
            "What the arms cost",
            "Seconds of stages, which may have run at the same time; the teacher's are shared by the arms it teaches.",
            _cost_table(found["costs"]),
        ),
        (
            "Pseudo-targets by round",
            quality if found["pseudo_targets"] else "Not scored: no gold was given to compare them with, or not yet.",
            _rounds(found["pseudo_targets"]),
        ),
        (
            "What students remember",
            "How well a round's students say again the labels they were taught, and agree with labels they never saw.",
            _memory(found["memory"]),
        ),
        (
            "Choice of pseudo-targets",
            "Invalid: not of the recipe's pseudo_targets.format. What was dropped is in the stage's dropped.jsonl.",
            _choices(found["stages"]),
        ),
        ("Stages", "Tokens are those trained on, or those generated.", _stages(found["stages"])),
        (
            "Trainings",
            "Padding: the share of computed positions without a token. Waited: of the seconds, those spent on rows.",
            _trainings(found["stages"]),
        ),
        (
            "Labelling",
            "Only answers that the store did not hold were asked of an engine. Seconds are from its first input on.",
            _labelling(found["stages"]),
        ),
        ("What failed", _said_of_failed(found["failed"]), _failed(found["failed"]["rows"])),
        ("Licences", "", [["of", "licence"], *([f"the {k}", v] for k, v in licences.items())]),
    ]


def _said_of_arms(found: dict[str, Any]) -> str:
    if not found["complete"]:
        return "The run is not complete: " + ("these are the arms so far." if found["arms"] else "no arms yet.")
    if not found["arms"]:
        return "Nothing was scored: the recipe names no test rows."
    against = "; in brackets the change against gold_only" if "gold_only" in found["arms"] else ""
    return (
        f"On the test rows{against}. Bold: the best arm, and the best student. "
        "↓ lower is better, ↑ higher is better; error rates are in percent."
    )


def _arms(arms: dict[str, dict[str, float]]) -> Table:
    metrics = _metrics(arms.values())
    students = {name: values for name, values in arms.items() if name != "teacher"}
    best = {m: {_best(arms, m), _best(students, m)} for m in metrics}
    table = [["arm", *map(_arrowed, metrics)]]
    for name, values in arms.items():
        control = arms.get("gold_only", {}) if name != "gold_only" else {}
        cells = {m: _score(values.get(m), control.get(m)) for m in metrics}
        table.append([name, *(f"**{text}**" if name in best[m] else text for m, text in cells.items())])
    return table


def _metrics(scores: Any) -> list[str]:
    return list(dict.fromkeys(metric for values in scores for metric in values))


def _arrowed(metric: str) -> str:
    return f"{metric} {'↓' if lower_is_better(metric) else '↑'}"


def _best(arms: dict[str, dict[str, float]], metric: str) -> str | None:
    """The arm with the best value; None where fewer than two have one, which leaves nothing to choose."""
    known = {name: v[metric] for name, v in arms.items() if metric in v and math.isfinite(v[metric])}
    pick = min if lower_is_better(metric) else max
    return pick(known, key=lambda name: known[name]) if len(known) > 1 else None


def _score(value: float | None, control: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} ({100 * (value - control) / abs(control):+.1f} %)" if control else f"{value:.2f}"


def _trees(found: dict[str, Any] | None) -> list[ReportSection]:
    if found is None:
        return []
    agreed = [["arm", "sentences", "agreement", "teacher's F1", "student's F1", "better", "worse", "equal"]]
    both = []
    for arm, one in found["agreement"].items():
        parts = one["deciles"]
        sums = {key: sum(part[key] for part in parts) for key in ("rows", "better", "worse")}
        whole = {**one, **sums, "agreement": one["mean"]}
        for name, part in [(f"{arm}, all", whole), *((arm, part) for part in parts)]:
            means = [f"{100 * part[key]:.1f}" for key in ("agreement", "teacher_f1", "student_f1")]
            equal = part["rows"] - part["better"] - part["worse"]
            agreed.append([name, str(part["rows"]), *means, *map(str, (part["better"], part["worse"], equal))])
        both.append(f"{arm} {one['both_trees']}")
    recall = found["label_recall"]
    counts = {label: all_ for label, (_, all_) in recall["teacher"].items()}
    table = [["label", "gold brackets", *recall]]
    for label in sorted(counts, key=lambda label: -counts[label]):
        table.append(
            [label, str(counts[label]), *(f"{100 * one[label][0] / one[label][1]:.1f}" for one in recall.values())]
        )
    said = (
        "By tenths of the test sentences, where teacher and student agree least first; F1 of unlabelled brackets. "
        f"Sentences of which both answers are trees: {', '.join(both)}."
    )
    return [
        ("Agreement with the teacher", said, agreed),
        (
            "Recall by gold label",
            "Percent of the gold brackets of each label that an arm has, whatever it calls them.",
            table,
        ),
    ]


def _rounds(rounds: list[dict[str, Any]]) -> Table:
    metrics = _metrics(r["metrics"] for r in rounds)
    head = ["round", "labelled by", "rows", *map(_arrowed, metrics)]
    table = [head]
    for one in rounds:
        scores = [_score(one["metrics"].get(m), None) for m in metrics]
        table.append([str(one["round"]), str(one["labeller"]), _cell(one.get("rows")), *scores])
    return table


def _cost_table(costs: dict[str, dict[str, float]]) -> Table:
    names = ("trainings", "students_labelling", "teacher")
    table = [["arm", *(f"{name.replace('_', ' ')}, s" for name in names)]]
    return table + [[arm, *(f"{seconds[name]:.1f}" for name in names)] for arm, seconds in costs.items()]


def _memory(rounds: list[dict[str, Any]]) -> Table:
    if not rounds:
        return [[]]
    table = [["stage", "partition", f"{rounds[0]['metric']}, taught", f"{rounds[0]['metric']}, never seen"]]
    for one in rounds:
        for student in one["students"]:
            scores = [_score(student[key], None) for key in ("seen", "unseen")]
            table.append([one["stage"], str(student["partition"]), *scores])
    return table


def _choices(stages: list[dict[str, Any]]) -> Table:
    counted = ("rows", "invalid", "repaired", "dropped", "retried")
    table = [["stage", *counted]]
    for stage in (s for s in stages if s["kind"] == "choose"):
        table.append([stage["stage"], *(_cell(stage["stats"].get(key)) for key in counted)])
    return table


def _stages(stages: list[dict[str, Any]]) -> Table:
    table = [["stage", "kind", "started, s", "seconds", "rows", "tokens", "tokens/s"]]
    for stage in stages:
        counts = [_cell(stage[key]) for key in ("rows", "tokens", "tokens_per_second")]
        table.append([stage["stage"], stage["kind"], f"{stage['started']:.0f}", f"{stage['seconds']:.1f}", *counts])
    return table


def _trainings(stages: list[dict[str, Any]]) -> Table:
    counted = ("parameters", "rows", "workers", "seconds", "waited_seconds", "tokens_per_second")
    table = [["stage", *(name.replace("_", " ") for name in counted), "padding", "cut targets", "empty targets"]]
    for stats, name in ((s["stats"], s["stage"]) for s in stages if s["kind"] == "train"):
        padding = stats.get("padding")
        shown = "" if padding is None else f"{100 * padding:.1f} %"
        odd = [_cell(stats.get(key)) for key in ("cut_targets", "empty_targets")]
        table.append([name, *(_cell(stats.get(key)) for key in counted), shown, *odd])
    return table


def _labelling(stages: list[dict[str, Any]]) -> Table:
    counted = (
        "rows",
        "samples",
        "reused_rows",
        "new_rows",
        "prompt_tokens",
        "output_tokens",
        "seconds",
        "engine_deaths",
    )
    table = [["stage", "engine", *(name.replace("_", " ") for name in counted), "kept", "because"]]
    for stats, name in ((s["stats"], s["stage"]) for s in stages if s["kind"] == "label"):
        kept = " ".join(str(value) for value in stats.get("payload", {}).values())
        cells = [_cell(stats.get(key)) for key in counted]
        table.append([name, str(stats.get("engine", "")), *cells, kept, stats.get("payload_why", "")])
    return table


def _said_of_failed(failed: dict[str, Any]) -> str:
    count, shown = failed["count"], len(failed["rows"])
    rows = "1 row was left out" if count == 1 else f"{count} rows were left out"
    return "Nothing." if not count else f"{rows}; the first {shown} of them:" if shown < count else f"{rows}:"


def _failed(rows: list[dict[str, Any]]) -> Table:
    cells = [["" if r[key] is None else str(r[key]) for key in ("file", "line", "reason")] for r in rows]
    return [["where", "line", "reason"], *cells]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def run_summary(found: dict[str, Any], recipe: Recipe) -> str:
    """What was run and what it took, in one paragraph."""
    settings = ", ".join(method_settings(recipe.method))
    tuned = ", fine-tuned on gold pairs" if recipe.teacher.fine_tune else ""
    done = [s["stage"] for s in found["stages"]]
    state = "" if found["complete"] else f"Not complete; stages done so far: {', '.join(done) or 'none'}."
    totals = found["totals"]
    texts = [
        found["description"].strip(),
        f"Method: {found['method']['kind']}{f' ({settings})' if settings else ''}.",
        f"Teacher: {_model(recipe.teacher.model)}{tuned}, answering through {recipe.teacher.engine.kind}.",
        f"Student: {_model(recipe.student.model)}.",
        state,
        f"{_span(totals['wall_seconds'])} from the first stage's start to the last one's end,"
        f" {_span(totals['stage_seconds'])} summed over stages; the teacher wrote {totals['teacher_tokens']:,} tokens,"
        f" the trainings saw {totals['tokens_trained']:,} target tokens.",
        _said_of_endpoint(totals),
    ]
    return " ".join(text for text in texts if text)


def _said_of_endpoint(totals: dict[str, Any]) -> str:
    if not totals["endpoint_rows"]:
        return ""
    cost = f", at a cost of {totals['endpoint_cost']:,.2f} by the recipe's price" if totals["endpoint_cost"] else ""
    if not totals["teacher_tokens"]:
        cost = ", which did not say how many tokens that were: what it cost is not known"
    return f"{totals['endpoint_rows']:,} rows left the cluster for the endpoint{cost}."


def _model(model: TeacherModel) -> str:
    if isinstance(model, FromConfig):
        return f"{model.model_type} from random weights"
    if isinstance(model, Checkpoint):
        return model.path
    if isinstance(model, EndpointModel):
        return model.name
    sides = {"layers": model.layers, "encoder layers": model.encoder_layers, "decoder layers": model.decoder_layers}
    kept = [f"{side} {', '.join(map(str, layers))}" for side, layers in sides.items() if layers]
    return f"{' and '.join(kept)} of {model.path}"


def _span(seconds: float) -> str:
    divisor, unit = with_unit(seconds)
    return f"{seconds / divisor:.{0 if divisor == 1 else 1}f} {unit}"
