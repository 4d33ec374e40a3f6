"""A sweep's folder to its results: `results.json`, `results.csv`, `best.yaml`, `report.md` and `report.html`.

Everything is read from files, so that a sweep that still runs, or was killed, has a report too.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

from raykd import recipe as recipes
from raykd import report
from raykd.errors import RunError
from raykd.metrics import lower_is_better
from raykd.recipe import Recipe
from raykd.run import MANIFEST, manifests, read_manifest, write_json, write_text
from raykd.space import AT_THE_END

TRIAL = "trial.json"  # of a trial, written last: {point, run, metrics} or {point, error}
RUNGS = "rungs.json"  # of a sweep: what its scheduler must not forget
SEARCHED = "sweep.json"  # of a sweep: {recipe, space, goals}
TOLD = ("dev_loss", "parameters", "answer_seconds")  # numbers of a trial that are shown beside its goals


def write(folder: Path) -> dict[str, Any]:
    """Write everything; returns what is in `results.json`. Raises RunError where there is no sweep."""
    folder = Path(folder)
    if not (folder / SEARCHED).exists():
        raise RunError(f"{folder}: no sweep: it has no {SEARCHED}")
    found = gather(folder)
    write_json(folder / "results.json", found)
    write_text(folder / "results.csv", _csv(found["trials"]))
    if found["best"]:
        write_text(folder / "best.yaml", _best_recipe(found, folder))
    sections = _sections(found)
    text = [f"# {report.safe(found['name'])}", report.safe(_summary(found))]
    parts = [f"<h1>{html.escape(found['name'])}</h1><p>{html.escape(_summary(found))}</p>"]
    for title, said, table in sections:
        text += [f"## {title}", report.safe(said)] + ([report.markdown_table(table)] if len(table) > 1 else [])
        parts += [f"<h2>{title}</h2><p>{html.escape(said)}</p>"] + (
            [report.html_table(table)] if len(table) > 1 else []
        )
        if title == "Trials":
            parts += [f"<h2>{head}</h2>{picture}" for head, picture in _plots(found)]
    code = html.escape(found["space"])
    write_text(folder / "report.md", "\n\n".join(text) + "\n")
    write_text(folder / "report.html", report.page(found["name"], [*parts, f"<h2>The space</h2><pre>{code}</pre>"]))
    return found


def gather(folder: Path) -> dict[str, Any]:
    """All that the report says. Trials come best first, then those that are not done."""
    searched = json.loads((folder / SEARCHED).read_text(encoding="utf-8"))
    recipe = Recipe.model_validate(searched["recipe"])
    goals = [tuple(goal) for goal in searched["goals"]]
    trials = [_trial(folder, path.name) for path in sorted((folder / "tune").glob("*")) if path.is_dir()]
    done = _ordered([t for t in trials if t["state"] == "done"], goals)
    rest = [t for t in trials if t["state"] != "done"]
    rest.sort(key=lambda t: (t["state"], -t["progress"], t["id"]))
    # rglob follows no links, so that what trials share counts once
    own = [read_manifest(path) for path in folder.rglob(MANIFEST) if not path.parent.is_symlink()]
    asked = [m for m in own if m["kind"] == "label" and m["stage"].startswith(("teacher/", "evaluate/teacher-"))]
    front = _front(done, goals)
    return {
        "name": folder.name,
        "goals": goals,
        "best": front[0]["id"] if front else None,
        "front": [t["id"] for t in front] if len(goals) > 1 else [],
        "trials": done + rest,
        "arms": _arms(folder, recipe),
        "teacher_tokens": sum(m["stats"].get("output_tokens", 0) for m in asked),
        "trial_seconds": sum(t["seconds"] for t in trials),
        "importance": _importance(done, goals[0]),
        "space": searched["space"],
    }


def _trial(folder: Path, name: str) -> dict[str, Any]:
    """What is known of a trial: of one that is over from its own file, else from what Ray Tune heard of it."""
    told = folder / "tune" / name / "result.json"
    heard = report.lines(told) if told.exists() else []
    last = heard[-1] if heard else {}
    config = last.get("config") or _config(folder / "tune" / name / "params.json")
    found = {
        "id": name,
        "point": config.get("point", config),
        "progress": last.get("progress", 0.0),
        "seconds": last.get("time_total_s", 0.0),
        "metrics": {k: v for k, v in last.items() if k.startswith(("dev_", "test/"))},
        "curve": [{k: v for k, v in line.items() if k == "progress" or isinstance(v, float)} for line in heard],
        "state": "stopped" if name in _stopped(folder) else "unfinished",
        "error": None,
    }
    file = folder / "trials" / name / TRIAL
    if file.exists():
        over = json.loads(file.read_text(encoding="utf-8"))
        found |= {"state": "failed" if over.get("error") else "done", "error": over.get("error")}
        found |= {"point": over["point"], "metrics": over["metrics"] or {}, "run": over.get("run")}
    return found


def _config(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _stopped(folder: Path) -> list[str]:
    file = folder / RUNGS
    return json.loads(file.read_text(encoding="utf-8"))["stopped"] if file.exists() else []


def _ordered(trials: list[dict], goals: list[tuple[str, str]]) -> list[dict]:
    metric, mode = goals[0]
    sign = 1 if mode == "min" else -1
    known = [t for t in trials if math.isfinite(t["metrics"].get(metric, math.nan))]
    return sorted(known, key=lambda t: sign * t["metrics"][metric]) + [t for t in trials if t not in known]


def _front(done: list[dict], goals: list[tuple[str, str]]) -> list[dict]:
    """Trials that no other is better than by every goal; of one goal the best."""

    def values(trial: dict) -> list[float]:
        return [(1 if mode == "min" else -1) * trial["metrics"].get(metric, math.inf) for metric, mode in goals]

    def beaten(trial: dict) -> bool:
        mine = values(trial)
        others = [values(other) for other in done]
        return any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in others)

    front = [trial for trial in done if not beaten(trial)]
    return front if len(goals) > 1 else front[:1]


def _arms(folder: Path, recipe: Recipe) -> dict[str, dict[str, float]]:
    """The test metrics of the teacher, and of the student without one."""
    arms: dict[str, dict[str, float]] = {}
    for part in ("teacher", "control"):
        for m in manifests(folder / part) if (folder / part).exists() else []:
            if m["kind"] == "evaluate":
                arms[m["results"]["arm"]] = m["results"]["metrics"]
    return arms


def _importance(done: list[dict], goal: tuple[str, str]) -> dict[str, float]:
    """By field the share of what differs between good trials and others (PED-ANOVA, Watanabe et al. 2023).

    Of fields that every trial has; empty where there are fewer than eight trials, or nothing differs.
    """
    metric, mode = goal
    known = [t for t in done if metric in t["metrics"]]
    names = [name for name in (known[0]["point"] if known else {}) if all(name in t["point"] for t in known)]
    names = [name for name in names if len({str(t["point"][name]) for t in known}) > 1]
    if len(known) < 8 or not names:
        return {}
    import optuna

    def distribution(name: str) -> Any:
        values = [t["point"][name] for t in known]
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            low, high = float(min(values)), float(max(values))
            return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 10)
        return optuna.distributions.CategoricalDistribution(sorted({_text(v) for v in values}))

    kinds = {name: distribution(name) for name in names}
    numbers = [name for name, kind in kinds.items() if isinstance(kind, optuna.distributions.FloatDistribution)]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    for t in known:
        params = {name: float(t["point"][name]) if name in numbers else _text(t["point"][name]) for name in names}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=t["metrics"][metric]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _best_recipe(found: dict[str, Any], folder: Path) -> str:
    """The best trial's recipe, under a name of its own: `raykd run` of it trains the same student, and its arms."""
    best = found["trials"][0] if not found["front"] else next(t for t in found["trials"] if t["id"] == found["best"])
    recipe = recipes.load(Path(best["run"]) / "recipe.yaml")
    return recipes.dump(recipe.model_copy(update={"name": f"{folder.name}-best"}))


# --------------------------------------------------------------------------------------------- tables


def _sections(found: dict[str, Any]) -> list[report.Section]:
    goals = ", ".join(
        f"{metric} ({'lower' if mode == 'min' else 'higher'} is better)" for metric, mode in found["goals"]
    )
    return [
        (
            "Trials",
            f"Goal: {goals}, of held-out rows at the chosen checkpoint. Nothing is chosen by test rows.",
            _trials(found),
        ),
        ("To compare with", "On the test rows; gold_only is the student without a teacher.", _compared(found)),
        (
            "What mattered",
            "The share of each field in what sets good trials apart (PED-ANOVA); of fields that all trials have."
            if found["importance"]
            else "Too few finished trials to say: eight are needed.",
            [["field", "share"], *([name, f"{100 * value:.0f} %"] for name, value in found["importance"].items())],
        ),
    ]


def _trials(found: dict[str, Any]) -> report.Table:
    trials, goals = found["trials"], [metric for metric, _ in found["goals"]]
    fields = list(dict.fromkeys(name for t in trials for name in t["point"]))
    told = [name for name in TOLD if name not in goals and any(name in t["metrics"] for t in trials)]
    tests = list(dict.fromkeys(name for t in trials for name in t["metrics"] if name.startswith("test/")))
    short = [name.removeprefix("student.training.") for name in fields]
    table = [["trial", "state", *short, *goals, *told, *tests, "seconds"]]
    best = found["front"] or [found["best"]]
    for t in trials:
        state = {"stopped": f"stopped at {t['progress']:.0f} %"}.get(t["state"], t["error"] or t["state"])
        cells = [_text(t["point"][name]) if name in t["point"] else "" for name in fields]
        numbers = [_number(t["metrics"].get(name)) for name in [*goals, *told, *tests]]
        name = f"**{t['id']}**" if t["id"] in best else t["id"]
        table.append([name, state, *cells, *numbers, f"{t['seconds']:.0f}"])
    return table


def _compared(found: dict[str, Any]) -> report.Table:
    best = next((t for t in found["trials"] if t["id"] == found["best"]), None)
    arms = dict(found["arms"])
    if best:
        arms[f"best trial, {best['id']}"] = {
            name.removeprefix("test/"): v for name, v in best["metrics"].items() if name.startswith("test/")
        }
    metrics = list(dict.fromkeys(name for values in arms.values() for name in values))
    if not metrics:
        return [[]]
    shown = [f"{name} {'↓' if lower_is_better(name) else '↑'}" for name in metrics]
    return [["", *shown], *([arm, *(_number(values.get(name)) for name in metrics)] for arm, values in arms.items())]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _summary(found: dict[str, Any]) -> str:
    states = [t["state"] for t in found["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    tokens = f"The teacher wrote {found['teacher_tokens']:,} tokens for all of them."
    again = f"The best recipe: raykd run {found['name']}/best.yaml." if found["best"] else "No trial is done."
    return f"{len(states)} trials: {counts}. {tokens} {again}"


def _csv(trials: list[dict[str, Any]]) -> str:
    fields = list(dict.fromkeys(name for t in trials for name in t["point"]))
    metrics = list(dict.fromkeys(name for t in trials for name in t["metrics"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "state", "progress", "seconds", *fields, *metrics])
    for t in trials:
        cells = [*(t["point"].get(name, "") for name in fields), *(t["metrics"].get(name, "") for name in metrics)]
        writer.writerow([t["id"], t["state"], t["progress"], f"{t['seconds']:.1f}", *cells])
    return out.getvalue()


# ---------------------------------------------------------------------------------------------- plots


def _plots(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Titles and inline SVG; those that have something to show."""
    try:
        import matplotlib
    except ImportError:
        return [("Plots", "<p>matplotlib is not installed: no plots.</p>")]
    with matplotlib.rc_context(report.PLAIN):
        made = [
            ("Parallel coordinates", _coordinates(found)),
            ("The front", _trade(found)),
            ("While they trained", _curves(found)),
            ("Importance", _bars(found["importance"])),
        ]
    return [(title, picture) for title, picture in made if picture]


def _coordinates(found: dict[str, Any]) -> str:
    """A line per trial through its fields to its goals; the best in red, those that were stopped dashed."""
    from matplotlib.figure import Figure

    goals = [metric for metric, _ in found["goals"]]
    done = [t for t in found["trials"] if goals[0] in t["metrics"]]
    fields = list(dict.fromkeys(name for t in done for name in t["point"]))
    if len(done) < 2:
        return ""
    axes_of = [*fields, *goals]
    figure = Figure(figsize=(max(6.0, 1.6 * len(axes_of)), 4))
    axes = figure.add_subplot()
    places: dict[str, dict[str, float]] = {}  # of each axis the height of each trial
    for at, name in enumerate(axes_of):
        values = {t["id"]: (t["metrics"] if name in goals else t["point"]).get(name) for t in done}
        places[name], ticks = _heights(values)
        for height, text in ticks:
            axes.annotate(text, (at, height), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center")
        axes.axvline(at, color="#999", linewidth=0.8)
    best = found["front"] or [found["best"]]
    for t in sorted(done, key=lambda t: t["id"] in best):
        colour, width = ("#e45756", 2.0) if t["id"] in best else ("#4c78a8", 0.8)
        at = [(i, places[name][t["id"]]) for i, name in enumerate(axes_of) if t["id"] in places[name]]
        dash = "-" if t["state"] == "done" else ":"
        axes.plot(*zip(*at, strict=True), color=colour, linewidth=width, linestyle=dash, alpha=0.8)
    axes.set_xticks(range(len(axes_of)), [name.removeprefix("student.training.") for name in axes_of], rotation=20)
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.05)
    for side in axes.spines.values():
        side.set_visible(False)
    return report.svg(figure)


def _heights(values: dict[str, Any]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Places from 0 to 1 of the trials that have a value, and what is written beside the axis."""
    known = {name: value for name, value in values.items() if value is not None}
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known.values())
    if numeric and known:
        low, high = min(known.values()), max(known.values())
        scale = math.log if low > 0 and high / low > 10 else float
        span = scale(high) - scale(low) or 1.0
        return {n: (scale(v) - scale(low)) / span for n, v in known.items()}, [(0.0, _text(low)), (1.0, _text(high))]
    names = sorted({_text(v) for v in known.values()})
    height = {text: (i / (len(names) - 1) if len(names) > 1 else 0.5) for i, text in enumerate(names)}
    return {n: height[_text(v)] for n, v in known.items()}, [(h, text[:24]) for text, h in height.items()]


def _trade(found: dict[str, Any]) -> str:
    """The first goal against the second; those on the front in colour."""
    from matplotlib.figure import Figure

    if len(found["goals"]) < 2:
        return ""
    (first, _), (second, _) = found["goals"][:2]
    figure = Figure(figsize=(6, 4))
    axes = figure.add_subplot()
    for t in found["trials"]:
        if t["state"] == "done" and first in t["metrics"] and second in t["metrics"]:
            colour = "#e45756" if t["id"] in found["front"] else "#4c78a8"
            axes.plot(t["metrics"][second], t["metrics"][first], "o", color=colour)
    axes.set_xlabel(second)
    axes.set_ylabel(first)
    axes.grid(alpha=0.3)
    return report.svg(figure)


def _curves(found: dict[str, Any]) -> str:
    """The first goal of each trial as it trained; where a line ends early its trial was stopped."""
    from matplotlib.figure import Figure

    metric = found["goals"][0][0]
    if metric in AT_THE_END:
        return ""
    figure = Figure(figsize=(9, 4))
    axes = figure.add_subplot()
    for t in found["trials"]:
        points = [(line["progress"], line[metric]) for line in t["curve"] if metric in line and "progress" in line]
        if points:
            best = t["id"] == found["best"]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=2 if best else 1, label=t["id"])
    if not axes.lines:
        return ""
    axes.set_xlabel("percent of the training")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
    return report.svg(figure)


def _bars(importance: dict[str, float]) -> str:
    from matplotlib.figure import Figure

    if not importance:
        return ""
    figure = Figure(figsize=(6, 0.6 + 0.3 * len(importance)))
    axes = figure.add_subplot()
    names = list(importance)[::-1]
    axes.barh([name.removeprefix("student.training.") for name in names], [100 * importance[n] for n in names])
    axes.set_xlabel("percent")
    return report.svg(figure)
