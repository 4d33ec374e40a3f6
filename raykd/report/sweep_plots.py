"""TODO: docstring."""

from __future__ import annotations

import math
from typing import Any

from raykd.recipe.space import AT_THE_END
from raykd.report.plots import PLAIN
from raykd.report.render import svg


def sweep_plots(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Titles and inline SVG; those that have something to show."""
    try:
        import matplotlib
    except ImportError:
        return [("Plots", "<p>matplotlib is not installed: no plots.</p>")]
    with matplotlib.rc_context(PLAIN):
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
    return svg(figure)


def _heights(values: dict[str, Any]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Places from 0 to 1 of the trials that have a value, and what is written beside the axis."""
    known = {name: value for name, value in values.items() if value is not None}
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known.values())
    if numeric and known:
        low, high = min(known.values()), max(known.values())
        scale = math.log if low > 0 and high / low > 10 else float
        span = scale(high) - scale(low) or 1.0
        return {n: (scale(v) - scale(low)) / span for n, v in known.items()}, [
            (0.0, shown_value(low)),
            (1.0, shown_value(high)),
        ]
    names = sorted({shown_value(v) for v in known.values()})
    height = {text: (i / (len(names) - 1) if len(names) > 1 else 0.5) for i, text in enumerate(names)}
    return {n: height[shown_value(v)] for n, v in known.items()}, [(h, text[:24]) for text, h in height.items()]


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
    return svg(figure)


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
    return svg(figure)


def _bars(importance: dict[str, float]) -> str:
    from matplotlib.figure import Figure

    if not importance:
        return ""
    figure = Figure(figsize=(6, 0.6 + 0.3 * len(importance)))
    axes = figure.add_subplot()
    names = list(importance)[::-1]
    axes.barh([name.removeprefix("student.training.") for name in names], [100 * importance[n] for n in names])
    axes.set_xlabel("percent")
    return svg(figure)


def shown_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
