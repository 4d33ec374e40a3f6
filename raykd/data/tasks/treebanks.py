"""TODO: docstring."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from raykd.data.tasks.parts import SHARES, check_part, part_of, require_known
from raykd.data.tasks.trees import PENN, TARGET_FORMS, Tree, leaves, one_line, parse, rootless, stripped
from raykd.errors import DataError


def penn(
    path: str,
    part: str,
    *,
    form: str = "unlabelled",
    shares: dict[str, float] | None = None,
    seed: int = 0,
    max_words: int | None = None,
    lower: bool = False,
) -> list[dict | str]:
    """The rows of a part of a file of Penn trees, plain or gzip: one tree after the other, or `article<TAB>tree` lines.

    `shares` are the parts' shares of the articles, or of the trees where there are none; default 0.1 test, 0.1 dev, 0.8
    train; what they leave is unused. No article is in two parts. Sentences of more than `max_words` words are left out;
    of equal sentences the first is kept; neither moves another row to another part. Traces and function tags are
    stripped. `lower` lowers words. A row's `references` hold its gold tree, which the metrics of `raykd.metrics.trees`
    ask for.

    A tree that cannot be read is a text in every part. Raises RecipeError for a part, form or shares that make no
    sense, DataError for a file that cannot be read.
    """
    shares = SHARES if shares is None else shares
    require_known("penn", "form", form, TARGET_FORMS)
    check_part("penn", part, shares)
    bad: list[dict | str] = []
    groups: dict[str, list[dict]] = {}
    seen: set[str] = set()
    for number, article, text in _trees(path):
        try:
            text.encode("utf-8")
            whole = [tree for tree in map(stripped, parse(text)) if tree]
            if len(whole) != 1:
                raise ValueError(f"{len(whole)} trees with words")
        except ValueError as error:
            bad.append(f"line {number}: {'not UTF-8' if isinstance(error, UnicodeEncodeError) else error}")
            continue
        rows = groups.setdefault(article, [])  # before any row is left out, so that a part is the same without them
        rooted = _lowered(whole[0]) if lower else whole[0]
        tree = rootless(rooted)
        words = [word for word, _ in leaves(tree)]
        name = " ".join(words)
        if name in seen or max_words is not None and len(words) > max_words:
            continue
        seen.add(name)
        target = TARGET_FORMS[form](rooted if form == "release" else tree)  # the release writes a bracket for the root
        row = {"id": f"{Path(path).name.partition('.')[0]}:{number}", "input": name, "target": target}
        rows.append({**row, "references": [one_line(tree)]})
    rows = [row for name in part_of(groups, part, shares, seed) for row in groups[name]]
    random.Random(seed).shuffle(rows)
    return bad + rows


def translation(path: str, *, silver: bool = False) -> Iterator[dict | str]:
    """The rows of MCKD's own files, `{"translation": {"unparsed", "unlabeled", "parsed"}}` a line.

    `unparsed` is the input, `unlabeled` the target, `parsed` the gold tree, each but the first optional. `silver`: what
    stands under `unlabeled` is a model's, so a row has no target: pseudo-targets are not to be scored against it. A
    line that cannot be read is a text. Raises DataError for a file that cannot be read.
    """
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)["translation"]
            cells = [record.get(name) for name in ("unparsed", "unlabeled", "parsed")]
            if not isinstance(cells[0], str) or not all(cell is None or isinstance(cell, str) for cell in cells):
                raise TypeError
        except json.JSONDecodeError:
            yield f"line {number}: not JSON"
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError):  # a number of thousands of digits
            yield f'line {number}: not {{"translation": {{"unparsed", "unlabeled", "parsed"}}}}'
        else:
            row = {"id": f"{Path(path).stem}:{number}", "input": cells[0], "target": None if silver else cells[1]}
            yield row | ({"references": [cells[2]]} if cells[2] else {})


def write_translation(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows {input, target, references} as MCKD's own file, for `translation` or its authors' code; how many."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            count += 1
            parsed = next((r for r in row.get("references") or () if PENN.search(r)), None)
            record = {"unparsed": row["input"], "unlabeled": row.get("target")} | ({"parsed": parsed} if parsed else {})
            file.write(json.dumps({"translation": record}, ensure_ascii=False) + "\n")
    return count


def _lowered(tree: Tree) -> Tree:
    label, children = tree
    return label, [child.lower() if isinstance(child, str) else _lowered(child) for child in children]


def _trees(path: str) -> Iterator[tuple[int, str, str]]:
    """(line it begins in, article, text) of each tree; the article is the line where there are none.

    Where a tree is not closed to the end of the file, every line from it on that begins with a bracket begins a tree.
    """
    lines = enumerate(_lines(path), start=1)
    held: list[tuple[int, str]] = []
    depth = 0
    for number, line in lines:
        article, tab, text = line.rstrip("\n").partition("\t")
        if tab and not held and "(" not in article:
            yield number, article, text
            continue
        if not line.strip():
            continue
        held.append((number, line))
        depth += line.count("(") - line.count(")")
        if depth <= 0:
            yield _joined(held)
            held, depth = [], 0
    starts = [place for place, (_, line) in enumerate(held) if place == 0 or line.startswith("(")]
    for start, end in pairwise([*starts, len(held)]):
        yield _joined(held[start:end])


def _joined(lines: list[tuple[int, str]]) -> tuple[int, str, str]:
    return lines[0][0], f"{lines[0][0]:09}", "".join(line for _, line in lines)


def _lines(path: str) -> Iterator[str]:
    """The lines of a plain file or a gzip; bytes that are not UTF-8 are lone surrogates."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            for line in file:
                yield line.decode("utf-8-sig", "surrogateescape")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
