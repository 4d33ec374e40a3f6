"""The plots of a sweep's report."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from raykd.recipe.space import AT_THE_END
from raykd.report.figures import drawn_plots, svg
from raykd.report.render import Plot, short_value

BEST, OTHERS = "#e45756", "#4c78a8"  # colours of the best trials and of others


def sweep_plots(results: dict[str, Any]) -> list[Plot]:
    """The plots that have something to show."""
    return drawn_plots(
        {
            "Parallel coordinates": lambda: _coordinates(results),
            "The front": lambda: _front(results),
            "While they trained": lambda: _curves(results),
            "Importance": lambda: _importance(results["importance"]),
        }
    )


def _coordinates(results: dict[str, Any]) -> str:
    """A line per trial through its fields to its goals; the best in red, those that were stopped dashed."""
    from matplotlib.figure import Figure

    goals = [goal.metric for goal in results["goals"]]
    trials = [t for t in results["trials"] if goals[0] in t["metrics"]]
    if len(trials) < 2:
        return ""
    names = [*dict.fromkeys(name for t in trials for name in t["point"]), *goals]  # of the vertical axes
    figure = Figure(figsize=(max(6.0, 1.6 * len(names)), 4))
    axes = figure.add_subplot()
    heights: dict[str, dict[str, float]] = {}  # by axis, of each trial
    for x, name in enumerate(names):
        axis = _axis({t["id"]: (t["metrics"] if name in goals else t["point"]).get(name) for t in trials})
        heights[name] = axis.heights
        for height, text in axis.ticks:
            axes.annotate(text, (x, height), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center")
        axes.axvline(x, color="#999", linewidth=0.8)
    best = results["front"] or [results["best"]]
    for t in sorted(trials, key=lambda t: t["id"] in best):
        colour, width = (BEST, 2.0) if t["id"] in best else (OTHERS, 0.8)
        points = [(x, heights[name][t["id"]]) for x, name in enumerate(names) if t["id"] in heights[name]]
        dash = "-" if t["state"] == "done" else ":"
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=width, linestyle=dash, alpha=0.8)
    axes.set_xticks(range(len(names)), [name.removeprefix("student.training.") for name in names], rotation=20)
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.05)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return svg(figure)


class _Axis(NamedTuple):
    """A vertical axis: the heights, 0 to 1, of the trials that have a value, and what is written beside it where."""

    heights: dict[str, float]
    ticks: list[tuple[float, str]]


def _axis(values: dict[str, Any]) -> _Axis:
    """The axis of a field's values by trial; logarithmic where they are positive and spread over a factor of ten."""
    present = {trial: value for trial, value in values.items() if value is not None}
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present.values())
    if numeric and present:
        low, high = min(present.values()), max(present.values())
        scale = math.log if low > 0 and high / low > 10 else float
        span = scale(high) - scale(low) or 1.0
        heights = {trial: (scale(v) - scale(low)) / span for trial, v in present.items()}
        return _Axis(heights, [(0.0, short_value(low)), (1.0, short_value(high))])
    texts = sorted({short_value(v) for v in present.values()})
    height = {text: (i / (len(texts) - 1) if len(texts) > 1 else 0.5) for i, text in enumerate(texts)}
    ticks = [(h, text[:24]) for text, h in height.items()]
    return _Axis({trial: height[short_value(v)] for trial, v in present.items()}, ticks)


def _front(results: dict[str, Any]) -> str:
    """The first goal against the second; the trials on the front in red. Empty for a single goal."""
    from matplotlib.figure import Figure

    if len(results["goals"]) < 2:
        return ""
    first, second = (goal.metric for goal in results["goals"][:2])
    figure = Figure(figsize=(6, 4))
    axes = figure.add_subplot()
    for t in results["trials"]:
        if t["state"] == "done" and first in t["metrics"] and second in t["metrics"]:
            colour = BEST if t["id"] in results["front"] else OTHERS
            axes.plot(t["metrics"][second], t["metrics"][first], "o", color=colour)
    axes.set_xlabel(second)
    axes.set_ylabel(first)
    axes.grid(alpha=0.3)
    return svg(figure)


def _curves(results: dict[str, Any]) -> str:
    """The first goal of each trial as it trained; where a line ends early its trial was stopped."""
    from matplotlib.figure import Figure

    metric = results["goals"][0].metric
    if metric in AT_THE_END:
        return ""
    figure = Figure(figsize=(9, 4))
    axes = figure.add_subplot()
    for t in results["trials"]:
        points = [(line["progress"], line[metric]) for line in t["curve"] if metric in line and "progress" in line]
        if points:
            width = 2 if t["id"] == results["best"] else 1
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=width, label=t["id"])
    if not axes.lines:
        return ""
    axes.set_xlabel("percent of the training")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
    return svg(figure)


def _importance(shares: dict[str, float]) -> str:
    """A bar per field; empty if no importance is known."""
    from matplotlib.figure import Figure

    if not shares:
        return ""
    figure = Figure(figsize=(6, 0.6 + 0.3 * len(shares)))
    axes = figure.add_subplot()
    names = list(shares)[::-1]
    axes.barh([name.removeprefix("student.training.") for name in names], [100 * shares[n] for n in names])
    axes.set_xlabel("percent")
    return svg(figure)
