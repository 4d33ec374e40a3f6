"""TODO: docstring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raykd.errors import RunError
from raykd.recipe.load import load_recipe
from raykd.report.gather import gather_run, logged_curves
from raykd.report.plots import run_plots
from raykd.report.render import html_report, markdown_report
from raykd.report.sections import report_sections, run_summary
from raykd.run.files import write_json, write_text


def write_report(folder: Path) -> dict[str, Any]:
    """Write the three reports of a run; returns what is in `report.json`.

    Raises RunError where there is no run or a file of it is damaged, RecipeError where its recipe is.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").exists():
        raise RunError(f"{folder}: no run folder: it has no recipe.yaml")
    recipe = load_recipe(folder / "recipe.yaml")
    found = gather_run(folder)
    summary, sections, plots = (
        run_summary(found, recipe),
        report_sections(found),
        run_plots(found, logged_curves(folder)),
    )
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    write_json(folder / "report.json", found)
    write_text(folder / "report.md", markdown_report(found, summary, sections, text))
    write_text(folder / "report.html", html_report(found, summary, sections, plots, text))
    return found
