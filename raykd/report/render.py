"""Tables, Markdown and HTML of reports. The same input gives the same bytes."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from raykd.metrics import lower_is_better

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
Table = list[list[str]]  # rows of cells; the first row is the header; **...** is bold


class ReportSection(NamedTuple):
    """A part of a report: a title, a sentence, and a table, which is shown where it has rows below its header."""

    title: str
    text: str
    table: Table


class Plot(NamedTuple):
    """A picture of a report, as inline SVG or another piece of HTML. Only the HTML report shows it."""

    title: str
    picture: str


def markdown_report(report: dict[str, Any], summary: str, parts: Iterable[ReportSection | Plot], recipe: str) -> str:
    """A run's report.md: the summary, warnings, sections, and the recipe as YAML."""
    blocks = [f"# {safe(report['name'])}", safe(summary)]
    blocks += [f"**Warning.** {safe(warning)}" for warning in report["warnings"]]
    blocks += markdown_blocks(parts)
    blocks += ["Loss curves and the timeline are in report.html.", "## Again", f"    {report['again']}"]
    versions = versions_line(report)
    blocks += [safe(versions)] if versions else []
    blocks.append(f"<details><summary>The recipe, resolved</summary>\n\n<pre>{html.escape(recipe)}</pre>\n\n</details>")
    return "\n\n".join(blocks) + "\n"


def html_report(report: dict[str, Any], summary: str, parts: Iterable[ReportSection | Plot], recipe: str) -> str:
    """A run's report.html: the same as the Markdown, with plots."""
    blocks = [f"<h1>{html.escape(report['name'])}</h1><p>{html.escape(summary)}</p>"]
    blocks += [f"<p><b>Warning.</b> {html.escape(warning)}</p>" for warning in report["warnings"]]
    blocks += html_blocks(parts)
    blocks.append(f"<h2>Again</h2><pre>{html.escape(report['again'])}</pre><p>{html.escape(versions_line(report))}</p>")
    blocks.append(f"<details><summary>The recipe, resolved</summary><pre>{html.escape(recipe)}</pre></details>")
    return html_page(report["name"], blocks)


def markdown_blocks(parts: Iterable[ReportSection | Plot]) -> list[str]:
    """The sections as paragraphs of Markdown; plots are left out."""
    blocks = []
    for section in parts:
        if isinstance(section, ReportSection):
            blocks += [f"## {section.title}", *([safe(section.text)] if section.text else [])]
            if len(section.table) > 1:
                blocks.append(markdown_table(section.table))
    return blocks


def html_blocks(parts: Iterable[ReportSection | Plot]) -> list[str]:
    """Sections and plots as pieces of HTML."""
    blocks = []
    for part in parts:
        if isinstance(part, Plot):
            blocks.append(f"<h2>{part.title}</h2>{part.picture}")
            continue
        blocks.append(f"<h2>{part.title}</h2><p>{html.escape(part.text)}</p>")
        if len(part.table) > 1:
            blocks.append(html_table(part.table))
    return blocks


def safe(text: str) -> str:
    """A text in one line, escaped so that it can be a paragraph or a table cell of Markdown and nothing else."""
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())


def markdown_table(table: Table) -> str:
    """A table in Markdown, every cell escaped."""
    lines = ["| " + " | ".join(map(safe, row)) + " |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])


def html_page(name: str, blocks: list[str]) -> str:
    """A self-contained page of HTML with these blocks in its body."""
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>{html.escape(name)}</title><style>{STYLE}</style>" + "\n".join(blocks) + "</html>\n"


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


def metric_names(scores: Iterable[dict[str, float]]) -> list[str]:
    """Every metric that occurs in the scores, each once, in the order of its first occurrence."""
    return list(dict.fromkeys(metric for by_metric in scores for metric in by_metric))


def with_arrow(metric: str) -> str:
    """A metric's name, with ↓ where lower is better, else ↑."""
    return f"{metric} {'↓' if lower_is_better(metric) else '↑'}"


def short_value(value: Any) -> str:
    """A float with four digits, anything else as Python writes it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def time_unit(seconds: float) -> tuple[int, str]:
    """The unit in which so many seconds are easy to read: its length in seconds, and its name."""
    return (1, "s") if seconds < 300 else (60, "min") if seconds < 3 * 3600 else (3600, "h")


def versions_line(report: dict[str, Any]) -> str:
    """A sentence with the versions of the packages that a run was made with; empty where they are not known."""
    packages = report["environment"].get("packages", {})
    return "Made with " + ", ".join(f"{k} {v}" for k, v in packages.items()) + "." if packages else ""
