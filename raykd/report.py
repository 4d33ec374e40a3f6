"""Run folder to report: `report.json`, `report.md` and one self-contained `report.html`.

The same folder gives the same bytes: nothing in a report depends on when it was written.
"""

from __future__ import annotations

import html
import io
import json
import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raykd import recipe as recipes
from raykd.errors import RunError
from raykd.metrics import lower_is_better
from raykd.run import BAD_ROWS, MANIFEST, files, manifests, read_manifest, write_json, write_text

NEEDED = ("stage", "kind", "started", "seconds", "results", "stats")
NEEDED_RESULTS = {
    "evaluate": ("arm", "metrics"),
    "quality": ("round", "labeller", "metrics"),
    "compare": ("label_recall", "agreement"),
}
ARMS = ("teacher", "gold_only", "distilled", "mckd")  # the order they are shown in; others follow
SCORED = {"distill": "distilled", "mckd": "mckd"}  # method -> its own arm
LAST = {"distill": "distilled", "mckd": "mckd/final"}  # method -> the stage that trains its student
SHOWN_BAD_ROWS = 20
LITTLE = 6  # points between what students were taught and what they never saw, under which MCKD lost (benchmarks)
COLOURS = {"train": "#4c78a8", "label": "#f58518", "evaluate": "#54a24b", "quality": "#b279a2", "partition": "#e45756"}
OTHER = "#9d9da1"
NUMBER = re.compile(r"(\*\*)?[-+]?[\d,.]+( \([^)]*\))?(\*\*)?")
STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;
text-align:left}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
svg{max-width:100%;height:auto;background:#fff;border-radius:4px}
pre{overflow-x:auto;background:#f5f5f5;padding:.7rem}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}
td,th{border-color:#444}pre{background:#262626}}
"""

PLAIN: Any = {"svg.hashsalt": "raykd", "svg.fonttype": "none", "font.size": 9, "text.parse_math": False}

Table = list[list[str]]  # rows of cells, of which the first is the header; **...** is bold
Section = tuple[str, str, Table]  # title, a sentence, a table


def write(folder: Path) -> dict[str, Any]:
    """Write the three reports of a run; returns what is in `report.json`.

    Raises RunError where there is no run or a file of it is damaged, RecipeError where its recipe is.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").exists():
        raise RunError(f"{folder}: no run folder: it has no recipe.yaml")
    recipe = recipes.load(folder / "recipe.yaml")
    found = gather(folder)
    summary, sections, plots = _summary(found, recipe), _sections(found), _plots(found, _curves(folder))
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    write_json(folder / "report.json", found)
    write_text(folder / "report.md", _markdown(found, summary, sections, text))
    write_text(folder / "report.html", _html(found, summary, sections, plots, text))
    return found


def gather(folder: Path) -> dict[str, Any]:
    """All that a report says, unrounded."""
    recipe = recipes.load(folder / "recipe.yaml")
    done = _manifests(folder)
    scored = {m["results"]["arm"]: m["results"]["metrics"] for m in done if m["kind"] == "evaluate"}
    begin = min((m["started"] for m in done), default=0.0)
    end = max((m["started"] + m["seconds"] for m in done), default=0.0)
    stages = [_stage(m, begin) for m in done]
    of_teacher = [s for s in stages if s["stage"].startswith(("teacher/", "evaluate/teacher"))]
    bad, environment = _bad_rows(folder / BAD_ROWS), folder / "environment.json"
    method = recipe.method.kind
    return {
        "name": recipe.name,
        "description": recipe.description,
        "method": recipe.method.model_dump(mode="json"),
        "complete": SCORED[method] in scored if recipe.data.test else any(s["stage"] == LAST[method] for s in stages),
        "arms": {name: scored[name] for name in dict.fromkeys([*ARMS, *scored]) if name in scored},
        "costs": _costs(scored, stages),
        "pseudo_targets": [m["results"] for m in done if m["kind"] == "quality"],
        "memory": [{"stage": m["stage"], **m["results"]} for m in done if m["kind"] == "memory"],
        "warnings": _warnings(done),
        "trees": next((m["results"] for m in done if m["kind"] == "compare"), None),
        "stages": stages,
        "totals": {
            "wall_seconds": end - begin,
            "stage_seconds": sum(s["seconds"] for s in stages),
            "teacher_tokens": sum(s["stats"].get("output_tokens", 0) for s in of_teacher),
            "tokens_trained": sum(s["stats"].get("tokens", 0) for s in stages if s["kind"] == "train"),
            "failed_rows": len(bad),
            "endpoint_rows": sum(s["stats"].get("endpoint_rows", 0) for s in stages),
            "endpoint_cost": sum(s["stats"].get("endpoint_cost", 0) for s in stages),
        },
        "failed": {"count": len(bad), "rows": bad[:SHOWN_BAD_ROWS]},
        "licences": {"data": recipe.data.licence, "teacher": recipe.teacher.licence},
        "environment": _parsed(environment.read_text("utf-8"), str(environment)) if environment.exists() else {},
        "again": f"raykd run {shlex.quote(str(folder.absolute() / 'recipe.yaml'))}",
    }


def _warnings(done: list[dict[str, Any]]) -> list[str]:
    """Where MCKD does not pay, as far as the map of conditions in benchmarks/README.md tells."""
    found = []
    memory = [m["results"] for m in done if m["kind"] == "memory"]
    gaps = [s["seen"] - s["unseen"] for s in (memory[-1]["students"] if memory else []) if None not in s.values()]
    if gaps:
        gap = sum(gaps) / len(gaps) * (-1 if lower_is_better(memory[-1]["metric"]) else 1)
        if gap < LITTLE:
            found.append(
                f"The students of the last round learnt little of their labels by heart ({gap:.1f} points between "
                f"labels they were taught and labels they never saw, {LITTLE} or more where MCKD paid): expect "
                "plain distillation (arms.distilled) to be as good or better."
            )
    scored = [m["results"] for m in done if m["kind"] == "quality" and m["results"]["metrics"]]
    first = next((one for one in scored if one["round"] == 0), None)
    if first and scored[-1]["round"] > 0 and scored[-1]["rows"] == first["rows"]:  # else the teacher's bad ones lack
        teacher, last = first["metrics"], scored[-1]
        metric = next(iter(teacher))
        worse = (last["metrics"][metric] - teacher[metric]) * (1 if lower_is_better(metric) else -1)
        if worse > 0:
            found.append(
                f"The labels of round {last['round']} are worse than the teacher's ({metric} "
                f"{last['metrics'][metric]:.1f} against {teacher[metric]:.1f}): where this was so MCKD lost to plain "
                "distillation (arms.distilled)."
            )
    return found


def _costs(arms: Iterable[str], stages: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By arm: the seconds of its trainings and of its students' labelling, each as if alone, and the teacher's."""
    own = {"mckd": "mckd/", "teacher": "-"}

    def seconds(kind: str, *begin: str) -> float:
        return sum(s["seconds"] for s in stages if s["kind"] == kind and s["stage"].startswith(begin))

    costs = {}
    for arm in arms:
        at = own.get(arm, arm)
        trained, labelled = seconds("train", at), seconds("label", at)
        teacher = 0.0 if arm == "gold_only" else seconds("train", "teacher/") + seconds("label", "teacher/")
        costs[arm] = {"trainings": trained, "students_labelling": labelled, "teacher": teacher}
    return costs


def _manifests(folder: Path) -> list[dict]:
    """Every manifest, in the order in which the stages began; raises RunError for one that cannot be used."""
    for path in files(folder, MANIFEST):
        found = read_manifest(path)
        lacking = [k for k in NEEDED if not isinstance(found, dict) or k not in found]
        if not lacking:
            lacking = [k for k in NEEDED_RESULTS.get(found["kind"], ()) if k not in found["results"]]
        if lacking:
            raise RunError(f"{path}: damaged manifest: no {', '.join(lacking)}")
    return sorted(manifests(folder), key=lambda m: (m["started"], m["stage"]))


def _stage(manifest: dict, begin: float) -> dict[str, Any]:
    stats = manifest["stats"]
    return {
        "stage": manifest["stage"],
        "kind": manifest["kind"],
        "started": manifest["started"] - begin,
        "seconds": manifest["seconds"],
        "rows": stats.get("rows"),
        "tokens": stats.get("tokens", stats.get("output_tokens")),
        "tokens_per_second": stats.get("tokens_per_second"),
        "stats": stats,
    }


def _bad_rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    return [{key: row.get(key) for key in ("file", "line", "reason")} for row in rows]


def _parsed(text: str, where: str) -> dict[str, Any]:
    """A JSON object; raises RunError, saying where, for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RunError(f"{where}: damaged: no JSON object")
    return value


def _curves(folder: Path) -> dict[str, list[dict]]:
    """The log of every training, by stage, also of one that still runs: its half-written line is left out."""
    return {path.parent.relative_to(folder).as_posix(): lines(path) for path in files(folder, "log.jsonl")}


def lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a log, a line each; a line that is half written is left out."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            kept.append(_parsed(line, str(path)))
        except RunError:
            continue
    return kept


# --------------------------------------------------------------------------------------------- tables


def _sections(found: dict[str, Any]) -> list[Section]:
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
            "Invalid: not of the recipe's answers.format. What was dropped is in the stage's dropped.jsonl.",
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


def _trees(found: dict[str, Any] | None) -> list[Section]:
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


# ---------------------------------------------------------------------------------------------- texts


def _summary(found: dict[str, Any], recipe: recipes.Recipe) -> str:
    """What was run and what it took, in one paragraph."""
    settings = ", ".join(recipes.settings_of(recipe.method))
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


def _model(model: recipes.TeacherModel) -> str:
    if isinstance(model, recipes.FromConfig):
        return f"{model.model_type} from random weights"
    if isinstance(model, recipes.Checkpoint):
        return model.path
    if isinstance(model, recipes.Served):
        return model.name
    sides = {"layers": model.layers, "encoder layers": model.encoder_layers, "decoder layers": model.decoder_layers}
    kept = [f"{side} {', '.join(map(str, layers))}" for side, layers in sides.items() if layers]
    return f"{' and '.join(kept)} of {model.path}"


def _span(seconds: float) -> str:
    divisor, unit = _unit(seconds)
    return f"{seconds / divisor:.{0 if divisor == 1 else 1}f} {unit}"


def _unit(seconds: float) -> tuple[int, str]:
    return (1, "s") if seconds < 300 else (60, "min") if seconds < 3 * 3600 else (3600, "h")


def _versions(found: dict[str, Any]) -> str:
    packages = found["environment"].get("packages", {})
    return "Made with " + ", ".join(f"{k} {v}" for k, v in packages.items()) + "." if packages else ""


def _markdown(found: dict[str, Any], summary: str, sections: list[Section], recipe: str) -> str:
    parts = [f"# {safe(found['name'])}", safe(summary), *(f"**Warning.** {safe(text)}" for text in found["warnings"])]
    for title, text, table in sections:
        parts += [f"## {title}", *([safe(text)] if text else [])]
        if len(table) > 1:
            parts.append(markdown_table(table))
    parts += ["Loss curves and the timeline are in report.html.", "## Again", f"    {found['again']}"]
    parts += [safe(_versions(found))] if _versions(found) else []
    parts.append(f"<details><summary>The recipe, resolved</summary>\n\n<pre>{html.escape(recipe)}</pre>\n\n</details>")
    return "\n\n".join(parts) + "\n"


def safe(text: str) -> str:
    """A text as a cell of a Markdown table, or a line, that says nothing else there."""
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())


def markdown_table(table: Table) -> str:
    lines = ["| " + " | ".join(map(safe, row)) + " |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])


def _html(
    found: dict[str, Any], summary: str, sections: list[Section], plots: list[tuple[str, str]], recipe: str
) -> str:
    name = html.escape(found["name"])
    parts = [f"<h1>{name}</h1><p>{html.escape(summary)}</p>"]
    parts += [f"<p><b>Warning.</b> {html.escape(text)}</p>" for text in found["warnings"]]
    for title, text, table in sections:
        if title == "Stages":
            parts += [f"<h2>{head}</h2>{picture}" for head, picture in plots]
        parts.append(f"<h2>{title}</h2><p>{html.escape(text)}</p>")
        if len(table) > 1:
            parts.append(html_table(table))
    parts.append(f"<h2>Again</h2><pre>{html.escape(found['again'])}</pre><p>{html.escape(_versions(found))}</p>")
    parts.append(f"<details><summary>The recipe, resolved</summary><pre>{html.escape(recipe)}</pre></details>")
    return page(found["name"], parts)


def page(name: str, parts: list[str]) -> str:
    """A self-contained page of HTML."""
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>{html.escape(name)}</title><style>{STYLE}</style>" + "\n".join(parts) + "</html>\n"


def html_table(table: Table) -> str:
    """A table in HTML. Columns of numbers are set to the right, columns of words to the left."""
    right = [all(NUMBER.fullmatch(cell) for cell in column if cell) for column in zip(*table[1:], strict=True)]

    def cell(text: str, tag: str, number: bool) -> str:
        bold = text.startswith("**") and text.endswith("**") and len(text) > 4
        inner = f"<b>{html.escape(text[2:-2])}</b>" if bold else html.escape(text)
        return f"<{tag} class=n>{inner}</{tag}>" if number else f"<{tag}>{inner}</{tag}>"

    def line(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(cell(text, tag, right[i]) for i, text in enumerate(row)) + "</tr>"

    return "<table>" + line(table[0], "th") + "".join(line(row, "td") for row in table[1:]) + "</table>"


# ---------------------------------------------------------------------------------------------- plots


def _plots(found: dict[str, Any], curves: dict[str, list[dict]]) -> list[tuple[str, str]]:
    """Titles and inline SVG; a sentence in place of a picture where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return [("Plots", "<p>matplotlib is not installed: no plots.</p>")]
    with matplotlib.rc_context(PLAIN):
        made = [("Loss curves", _losses(curves)), ("Timeline", _timeline(found["stages"]))]
    return [(title, picture) for title, picture in made if picture]


def _losses(curves: dict[str, list[dict]]) -> str:
    """One line per training; empty where nothing was trained yet."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(9, max(4.0, 0.8 + 0.2 * len(curves))))
    axes = figure.add_subplot()
    for number, (name, lines) in enumerate(curves.items()):
        trained, judged = _points(lines, "loss"), _points(lines, "dev_loss")
        colour, dash = f"C{number % 10}", ("-", "--", ":")[number // 10 % 3]
        if trained:
            steps, values = zip(*trained, strict=True)
            label = None if judged else name
            axes.plot(steps, _smoothed(values), color=colour, linestyle=dash, alpha=0.4, linewidth=1, label=label)
        if judged:
            axes.plot(*zip(*judged, strict=True), color=colour, linestyle=dash, marker="o", markersize=3, label=name)
    if not axes.lines:
        return ""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.set_xlabel("optimizer steps; faint: training loss, smoothed; with marks: dev loss")
    axes.set_ylabel("loss per token")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return svg(figure)


def _points(lines: list[dict], key: str) -> list[tuple[int, float]]:
    """(step, value) where the value can be drawn on a logarithmic axis."""
    found = [(line.get("step"), line.get(key)) for line in lines]
    return [(step, v) for step, v in found if step is not None and v is not None and math.isfinite(v) and v > 0]


def _smoothed(values: tuple[float, ...]) -> list[float]:
    """The moving average in which a new value weighs a fifth."""
    mean, means = values[0], []
    for value in values:
        mean += 0.2 * (value - mean)
        means.append(mean)
    return means


def _timeline(stages: list[dict[str, Any]]) -> str:
    """A bar per stage, however short; empty where no stage is complete."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if not stages:
        return ""
    divisor, unit = _unit(max(s["started"] + s["seconds"] for s in stages))
    figure = Figure(figsize=(9, 0.8 + 0.24 * len(stages)))
    axes = figure.add_subplot()
    colours = [COLOURS.get(s["kind"], OTHER) for s in stages]
    axes.barh(
        range(len(stages)),
        [s["seconds"] / divisor for s in stages],
        left=[s["started"] / divisor for s in stages],
        color=colours,
        edgecolor=colours,  # what took no time still shows as a line
        height=0.7,
    )
    axes.set_yticks(range(len(stages)), [s["stage"] for s in stages])
    axes.set_ylim(len(stages) - 0.4, -0.6)
    axes.set_xlabel(f"{unit} since the start")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    kinds = {s["kind"] if s["kind"] in COLOURS else "other" for s in stages}
    handles = [Patch(color=c, label=k) for k, c in {**COLOURS, "other": OTHER}.items() if k in kinds]
    axes.legend(handles=handles, ncols=len(handles), loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return svg(figure)


def svg(figure: Any) -> str:
    """A picture of matplotlib as a piece of HTML, the same bytes for the same picture."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
