"""What the plots of runs and of sweeps share: matplotlib's settings, and a figure as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from raykd.report.render import Plot

SETTINGS: Any = {"svg.hashsalt": "raykd", "svg.fonttype": "none", "font.size": 9, "text.parse_math": False}


def drawn_plots(draw: Mapping[str, Callable[[], str]]) -> list[Plot]:
    """The plots, by title a function that draws one; those that draw nothing, an empty text, are left out.

    One sentence in their place where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        return [Plot("Plots", "<p>matplotlib is not installed: no plots.</p>")]
    with matplotlib.rc_context(SETTINGS):
        plots = [Plot(title, picture()) for title, picture in draw.items()]
    return [plot for plot in plots if plot.picture]


def svg(figure: Any) -> str:
    """A matplotlib figure as a piece of HTML; the same figure gives the same bytes."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
