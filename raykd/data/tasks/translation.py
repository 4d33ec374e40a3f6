"""A reader and a writer of MCKD's own files of trees (Zhao et al. 2024)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from raykd.data.tasks.lines import read_lines
from raykd.data.tasks.trees import PENN


def translation(path: str, *, silver: bool = False) -> Iterator[dict | str]:
    """The rows of MCKD's own files, `{"translation": {"unparsed", "unlabeled", "parsed"}}` a line.

    `unparsed` is the input, `unlabeled` the target, `parsed` the gold tree; only the first is required. `silver`: the
    text under `unlabeled` is a model's, so a row has no target: pseudo-targets are not to be scored against it. A line
    that cannot be read is a text. Raises DataError for a file that cannot be read.
    """
    for number, raw in enumerate(read_lines(path), start=1):
        line = raw.decode("utf-8-sig", "surrogateescape")  # bytes that are not UTF-8 become lone surrogates
        if not line.strip():
            continue
        try:
            record = json.loads(line)["translation"]
            input_, target, tree = cells = [record.get(name) for name in ("unparsed", "unlabeled", "parsed")]
            if not isinstance(input_, str) or not all(cell is None or isinstance(cell, str) for cell in cells):
                raise TypeError
        except json.JSONDecodeError:
            yield f"line {number}: not JSON"
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError):  # a number of thousands of digits
            yield f'line {number}: not {{"translation": {{"unparsed", "unlabeled", "parsed"}}}}'
        else:
            row = {"id": f"{Path(path).stem}:{number}", "input": input_, "target": None if silver else target}
            yield row | ({"references": [tree]} if tree else {})


def write_translation(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows {input, target, references} as MCKD's own file, for `translation` or its authors' code.

    Returns how many.
    """
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            count += 1
            parsed = next((r for r in row.get("references") or () if PENN.search(r)), None)
            record = {"unparsed": row["input"], "unlabeled": row.get("target")} | ({"parsed": parsed} if parsed else {})
            file.write(json.dumps({"translation": record}, ensure_ascii=False) + "\n")
    return count
