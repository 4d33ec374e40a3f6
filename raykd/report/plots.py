"""The plots of a run's report: loss curves, and the timeline of stages."""

from __future__ import annotations

import math
from typing import Any

from raykd.report.figures import drawn_plots, svg
from raykd.report.render import Plot, time_unit

COLOURS = {"train": "#4c78a8", "label": "#f58518", "evaluate": "#54a24b", "quality": "#b279a2", "partition": "#e45756"}
OTHER = "#9d9da1"  # the colour of other kinds of stages


def run_plots(report: dict[str, Any], logs: dict[str, list[dict]]) -> list[Plot]:
    """The plots that have something to show. `logs`: by training stage the lines of its log."""
    return drawn_plots({"Loss curves": lambda: _losses(logs), "Timeline": lambda: _timeline(report["stages"])})


def _losses(logs: dict[str, list[dict]]) -> str:
    """One line per training; empty where nothing was trained yet."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(9, max(4.0, 0.8 + 0.2 * len(logs))))
    axes = figure.add_subplot()
    for number, (name, lines) in enumerate(logs.items()):
        training, dev = _points(lines, "loss"), _points(lines, "dev_loss")
        colour, dash = f"C{number % 10}", ("-", "--", ":")[number // 10 % 3]
        if training:
            steps, values = zip(*training, strict=True)
            label = None if dev else name
            axes.plot(steps, smoothed(values), color=colour, linestyle=dash, alpha=0.4, linewidth=1, label=label)
        if dev:
            axes.plot(*zip(*dev, strict=True), color=colour, linestyle=dash, marker="o", markersize=3, label=name)
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
    points = [(line.get("step"), line.get(key)) for line in lines]
    return [(step, v) for step, v in points if step is not None and v is not None and math.isfinite(v) and v > 0]


def smoothed(values: tuple[float, ...]) -> list[float]:
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
    divisor, unit = time_unit(max(stage["started"] + stage["seconds"] for stage in stages))
    figure = Figure(figsize=(9, 0.8 + 0.24 * len(stages)))
    axes = figure.add_subplot()
    colours = [COLOURS.get(stage["kind"], OTHER) for stage in stages]
    axes.barh(
        range(len(stages)),
        [stage["seconds"] / divisor for stage in stages],
        left=[stage["started"] / divisor for stage in stages],
        color=colours,
        edgecolor=colours,  # what took no time still shows as a line
        height=0.7,
    )
    axes.set_yticks(range(len(stages)), [stage["stage"] for stage in stages])
    axes.set_ylim(len(stages) - 0.4, -0.6)
    axes.set_xlabel(f"{unit} since the start")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    kinds = {stage["kind"] if stage["kind"] in COLOURS else "other" for stage in stages}
    handles = [Patch(color=c, label=k) for k, c in {**COLOURS, "other": OTHER}.items() if k in kinds]
    axes.legend(handles=handles, ncols=len(handles), loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return svg(figure)
