"""A run's report: `report.json`, `report.md` and one self-contained `report.html`.

The same folder gives the same bytes: nothing in a report depends on when it was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raykd.errors import RunError
from raykd.recipe.load import load_recipe
from raykd.report.gather import gather_run, training_logs
from raykd.report.plots import run_plots
from raykd.report.render import html_report, markdown_report
from raykd.report.sections import report_parts, run_summary
from raykd.run.files import write_json, write_text


def write_report(folder: Path) -> dict[str, Any]:
    """Write the three reports of a run; returns the content of `report.json`.

    Raises RunError where there is no run or a file of it is damaged, RecipeError where its recipe is.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").exists():
        raise RunError(f"{folder}: no run folder: it has no recipe.yaml")
    report = gather_run(folder)
    summary = run_summary(report, load_recipe(folder / "recipe.yaml"))
    parts = report_parts(report, run_plots(report, training_logs(folder)))
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown_report(report, summary, parts, recipe))
    write_text(folder / "report.html", html_report(report, summary, parts, recipe))
    return report
