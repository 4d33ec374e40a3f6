"""TODO: docstring."""

from __future__ import annotations

import html
import io
import re
from typing import Any

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
Table = list[list[str]]  # rows of cells, of which the first is the header; **...** is bold
ReportSection = tuple[str, str, Table]  # title, a sentence, a table


def markdown_report(found: dict[str, Any], summary: str, sections: list[ReportSection], recipe: str) -> str:
    parts = [f"# {safe(found['name'])}", safe(summary), *(f"**Warning.** {safe(text)}" for text in found["warnings"])]
    for title, text, table in sections:
        parts += [f"## {title}", *([safe(text)] if text else [])]
        if len(table) > 1:
            parts.append(markdown_table(table))
    parts += ["Loss curves and the timeline are in report.html.", "## Again", f"    {found['again']}"]
    parts += [safe(versions_line(found))] if versions_line(found) else []
    parts.append(f"<details><summary>The recipe, resolved</summary>\n\n<pre>{html.escape(recipe)}</pre>\n\n</details>")
    return "\n\n".join(parts) + "\n"


def safe(text: str) -> str:
    """A text as a cell of a Markdown table, or a line, that says nothing else there."""
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())


def markdown_table(table: Table) -> str:
    lines = ["| " + " | ".join(map(safe, row)) + " |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])


def html_report(
    found: dict[str, Any], summary: str, sections: list[ReportSection], plots: list[tuple[str, str]], recipe: str
) -> str:
    name = html.escape(found["name"])
    parts = [f"<h1>{name}</h1><p>{html.escape(summary)}</p>"]
    parts += [f"<p><b>Warning.</b> {html.escape(text)}</p>" for text in found["warnings"]]
    for title, text, table in sections:
        if title == "Stages":
            parts += [f"<h2>{head}</h2>{picture}" for head, picture in plots]
        parts.append(f"<h2>{title}</h2><p>{html.escape(text)}</p>")
        if len(table) > 1:
            parts.append(html_table(table))
    parts.append(f"<h2>Again</h2><pre>{html.escape(found['again'])}</pre><p>{html.escape(versions_line(found))}</p>")
    parts.append(f"<details><summary>The recipe, resolved</summary><pre>{html.escape(recipe)}</pre></details>")
    return page(found["name"], parts)


def page(name: str, parts: list[str]) -> str:
    """A self-contained page of HTML."""
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>{html.escape(name)}</title><style>{STYLE}</style>" + "\n".join(parts) + "</html>\n"


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


def svg(figure: Any) -> str:
    """A picture of matplotlib as a piece of HTML, the same bytes for the same picture."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def with_unit(seconds: float) -> tuple[int, str]:
    return (1, "s") if seconds < 300 else (60, "min") if seconds < 3 * 3600 else (3600, "h")


def versions_line(found: dict[str, Any]) -> str:
    packages = found["environment"].get("packages", {})
    return "Made with " + ", ".join(f"{k} {v}" for k, v in packages.items()) + "." if packages else ""
