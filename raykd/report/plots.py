"""TODO: docstring."""

from __future__ import annotations

import math
from typing import Any

from raykd.report.render import svg, with_unit

COLOURS = {"train": "#4c78a8", "label": "#f58518", "evaluate": "#54a24b", "quality": "#b279a2", "partition": "#e45756"}
OTHER = "#9d9da1"
PLAIN: Any = {"svg.hashsalt": "raykd", "svg.fonttype": "none", "font.size": 9, "text.parse_math": False}


def run_plots(found: dict[str, Any], curves: dict[str, list[dict]]) -> list[tuple[str, str]]:
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
    divisor, unit = with_unit(max(s["started"] + s["seconds"] for s in stages))
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
