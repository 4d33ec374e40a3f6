"""Run folder to report: `report.json`, `report.md` and one self-contained `report.html`.

The same folder gives the same bytes: nothing in a report depends on when it was written.
"""

from __future__ import annotations

import html
import io
import json
import os
from pathlib import Path
from typing import Any

from raykd import recipe as recipes
from raykd.errors import RunError
from raykd.run import BAD_ROWS, manifests

COLOURS = {"train": "#4c78a8", "label": "#f58518", "evaluate": "#54a24b"}
OTHER = "#9d9da1"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;
text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto;background:#fff}
pre{overflow-x:auto;background:#f5f5f5;padding:.7rem}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}
td,th{border-color:#444}pre{background:#262626}}
"""


def write(folder: Path) -> dict[str, Any]:
    """Write the three reports of a run; returns what is in `report.json`. Raises RunError where there is no run."""
    folder = Path(folder)
    if not (folder / "recipe.yaml").exists():
        raise RunError(f"{folder}: no run folder: it has no recipe.yaml")
    found = gather(folder)
    sections = _sections(found)
    _replace(folder / "report.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    _replace(folder / "report.md", _markdown(found, sections))
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    _replace(folder / "report.html", _html(found, sections, _plots(found, _curves(folder)), recipe))
    return found


def gather(folder: Path) -> dict[str, Any]:
    """All that a report says, unrounded."""
    recipe = recipes.load(folder / "recipe.yaml")
    done = manifests(folder)
    arms = {m["results"]["arm"]: m["results"]["metrics"] for m in done if m["kind"] == "evaluate"}
    begin = min((m["started"] for m in done), default=0.0)
    end = max((m["started"] + m["seconds"] for m in done), default=0.0)
    stages = [
        {
            "stage": m["stage"],
            "kind": m["kind"],
            "started": m["started"] - begin,
            "seconds": m["seconds"],
            "rows": m["stats"].get("rows"),
            "tokens": m["stats"].get("tokens", m["stats"].get("output_tokens")),
            "tokens_per_second": m["stats"].get("tokens_per_second"),
            "stats": m["stats"],
        }
        for m in done
    ]
    of_teacher = sum(s["stats"].get("output_tokens", 0) for s in stages if s["stage"].startswith("teacher/"))
    bad = folder / BAD_ROWS
    rows = [json.loads(line) for line in bad.read_text(encoding="utf-8").splitlines()] if bad.exists() else []
    environment = folder / "environment.json"
    last = {"distill": "distilled", "mckd": "mckd/final"}[recipe.method.kind]
    wanted = recipe.method.kind if recipe.method.kind in arms else "distilled"
    return {
        "name": recipe.name,
        "description": recipe.description,
        "method": recipe.method.model_dump(mode="json"),
        "complete": wanted in arms if recipe.data.test else any(s["stage"] == last for s in stages),
        "arms": {name: arms[name] for name in ("teacher", "gold_only", "distilled", "mckd") if name in arms},
        "pseudo_targets": [m["results"] for m in done if m["kind"] == "quality"],
        "stages": stages,
        "totals": {
            "wall_seconds": end - begin,
            "stage_seconds": sum(s["seconds"] for s in stages),
            "teacher_tokens": of_teacher,
            "tokens_trained": sum(s["stats"].get("tokens", 0) for s in stages),
            "failed_rows": len(rows),
        },
        "failed": {"count": len(rows), "rows": rows[:20]},
        "licences": {"data": recipe.data.licence, "teacher": recipe.teacher.licence},
        "environment": json.loads(environment.read_text(encoding="utf-8")) if environment.exists() else {},
        "again": f"raykd run {folder.absolute() / 'recipe.yaml'}",
    }


def _curves(folder: Path) -> dict[str, list[dict]]:
    """The log of every training, by stage."""
    logs = {}
    for path in sorted(folder.rglob("log.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        logs[str(path.parent.relative_to(folder))] = [json.loads(line) for line in lines if line.endswith("}")]
    return logs


# --------------------------------------------------------------------------------------------- tables


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric.endswith(("_rate", "loss"))


def _sections(found: dict[str, Any]) -> list[tuple[str, str, list[list[str]]]]:
    """The tables of a report: title, a sentence, and rows of cells of which the first is the header."""
    return [
        ("Arms", _said_of_arms(found), _arms(found["arms"])),
        (
            "Pseudo-targets by round",
            "Scored against gold that was given for reporting only: nothing was trained on it or chosen by it.",
            _rounds(found["pseudo_targets"]),
        ),
        ("Stages", "Tokens are those trained on, or those generated.", _stages(found["stages"])),
        (
            "What failed",
            f"{found['failed']['count']} rows were left out." if found["failed"]["count"] else "Nothing.",
            [
                ["where", "line", "reason"],
                *([r["file"], _cell(r["line"]), r["reason"]] for r in found["failed"]["rows"]),
            ],
        ),
    ]


def _said_of_arms(found: dict[str, Any]) -> str:
    if not found["complete"]:
        return "The run is not complete: these are the arms so far."
    metrics = sorted({m for values in found["arms"].values() for m in values})
    lower = [m for m in metrics if lower_is_better(m)]
    better = f" Lower is better for {', '.join(lower)}." if lower else ""
    return f"On the test rows; in brackets the change against gold_only, the best student in bold.{better}"


def _arms(arms: dict[str, dict[str, float]]) -> list[list[str]]:
    metrics = list(dict.fromkeys(m for values in arms.values() for m in values))
    students = {name: values for name, values in arms.items() if name != "teacher"}
    table = [["arm", *metrics]]
    for name, values in arms.items():
        cells = []
        for metric in metrics:
            text = f"{values[metric]:.2f}"
            control = arms.get("gold_only", {}).get(metric)
            if control and name not in ("gold_only", "teacher"):
                text += f" ({100 * (values[metric] - control) / control:+.0f} %)"
            pick = min if lower_is_better(metric) else max
            best = pick(students, key=lambda arm, m=metric: students[arm][m], default=None)
            cells.append(f"**{text}**" if name == best else text)
        table.append([name, *cells])
    return table


def _rounds(rounds: list[dict[str, Any]]) -> list[list[str]]:
    metrics = list(dict.fromkeys(m for r in rounds for m in r["metrics"]))
    rows = [
        [str(r["round"]), r["labeller"], _cell(r["rows"]), *(f"{r['metrics'][m]:.2f}" for m in metrics)] for r in rounds
    ]
    return [["round", "labelled by", "rows", *metrics], *rows]


def _stages(stages: list[dict[str, Any]]) -> list[list[str]]:
    head = ["stage", "kind", "started, s", "seconds", "rows", "tokens", "tokens/s"]
    return [
        head,
        *(
            [
                s["stage"],
                s["kind"],
                f"{s['started']:.0f}",
                f"{s['seconds']:.1f}",
                _cell(s["rows"]),
                _cell(s["tokens"]),
                _cell(s["tokens_per_second"]),
            ]
            for s in stages
        ),
    ]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


# ---------------------------------------------------------------------------------------------- texts


def _summary(found: dict[str, Any]) -> str:
    totals = found["totals"]
    return (
        f"{found['description']} Method: {found['method']['kind']}. {totals['wall_seconds']:.0f} s from the first "
        f"stage to the last; the teacher wrote {totals['teacher_tokens']:,} tokens, the trainings saw "
        f"{totals['tokens_trained']:,} target tokens."
    ).strip()


def _facts(found: dict[str, Any]) -> list[str]:
    packages = found["environment"].get("packages", {})
    return [
        f"Licence of the data: {found['licences']['data']}",
        f"Licence of the teacher: {found['licences']['teacher']}",
        "Made with " + ", ".join(f"{name} {version}" for name, version in packages.items()),
        f"Again: {found['again']}",
    ]


def _markdown(found: dict[str, Any], sections: list[tuple[str, str, list[list[str]]]]) -> str:
    parts = [f"# {found['name']}", _summary(found)]
    for title, text, table in sections:
        parts += [f"## {title}", text]
        if len(table) > 1:
            lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
            parts.append("\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]]))
    parts += ["## Licences, versions, again", "\n".join(f"- {fact}" for fact in _facts(found))]
    return "\n\n".join(parts) + "\n"


def _html(found: dict[str, Any], sections: list, plots: list[tuple[str, str]], recipe: str) -> str:
    name = html.escape(found["name"])
    parts = [f"<h1>{name}</h1><p>{html.escape(_summary(found))}</p>"]
    for title, text, table in sections:
        parts.append(f"<h2>{title}</h2><p>{html.escape(text)}</p>")
        if len(table) > 1:
            parts.append(_html_table(table))
        if title.startswith("Pseudo"):
            parts += [f"<h2>{head}</h2>{picture}" for head, picture in plots]
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in _facts(found))
    parts.append(f"<h2>Licences, versions, again</h2><ul>{facts}</ul>")
    parts.append(f"<details><summary>The recipe, resolved</summary><pre>{html.escape(recipe)}</pre></details>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


def _html_table(table: list[list[str]]) -> str:
    def cell(text: str, tag: str) -> str:
        bold = text.startswith("**") and text.endswith("**") and len(text) > 4
        inner = html.escape(text[2:-2] if bold else text)
        return f"<{tag}>{f'<b>{inner}</b>' if bold else inner}</{tag}>"

    rows = ["".join(cell(text, "td" if i else "th") for text in row) for i, row in enumerate(table)]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is either whole or as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------- plots


def _plots(found: dict[str, Any], curves: dict[str, list[dict]]) -> list[tuple[str, str]]:
    """Titles and inline SVG; a sentence in place of a picture where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return [("Plots", "<p>matplotlib is not installed: no plots.</p>")]
    matplotlib.use("Agg")
    with matplotlib.rc_context({"svg.hashsalt": "raykd", "svg.fonttype": "none", "font.size": 9}):
        made = [("Timeline", _timeline(found["stages"])), ("Loss curves", _losses(curves))]
    return [(title, picture) for title, picture in made if picture]


def _timeline(stages: list[dict[str, Any]]) -> str:
    from matplotlib import patches, pyplot

    shown = [s for s in stages if s["seconds"] >= 0.5]
    if not shown:
        return ""
    figure, axes = pyplot.subplots(figsize=(9, 0.6 + 0.26 * len(shown)))
    for row, stage in enumerate(shown):
        axes.barh(row, stage["seconds"], left=stage["started"], color=COLOURS.get(stage["kind"], OTHER), height=0.7)
    axes.set_yticks(range(len(shown)), [s["stage"] for s in shown])
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the start")
    axes.grid(axis="x", alpha=0.3)
    handles = [patches.Rectangle((0, 0), 1, 1, color=c) for c in (*COLOURS.values(), OTHER)]
    axes.legend(handles, [*COLOURS, "other"], ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.15), frameon=False)
    return _svg(figure)


def _losses(curves: dict[str, list[dict]]) -> str:
    from matplotlib import pyplot

    if not curves:
        return ""
    figure, axes = pyplot.subplots(figsize=(9, 4))
    for number, (name, lines) in enumerate(curves.items()):
        trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        judged = [(line["step"], line["dev_loss"]) for line in lines if "dev_loss" in line]
        colour = f"C{number % 10}"
        if trained:
            axes.plot(*zip(*trained, strict=True), color=colour, alpha=0.35, linewidth=0.8)
        if judged:
            axes.plot(*zip(*judged, strict=True), color=colour, marker="o", markersize=3, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("optimizer steps; faint: training loss, with marks: dev loss")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return _svg(figure)


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]
