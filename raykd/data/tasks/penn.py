"""A reader of Penn treebank files, for constituency parsing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, Unpack

from raykd.data.tasks.labelled_trees import labelled
from raykd.data.tasks.lines import read_lines, row_id
from raykd.data.tasks.parts import SHARES, Cut, check_part, part_of, require_known
from raykd.data.tasks.release_trees import release
from raykd.data.tasks.trees import Tree, leaves, lowered, one_line, parse, rootless, stripped
from raykd.data.tasks.unlabelled_trees import unlabelled

TARGET_FORMS: dict[str, Callable[[Tree], str]] = {"unlabelled": unlabelled, "labelled": labelled, "release": release}


class TreeText(NamedTuple):
    """A tree's text in a file: the line it begins in, and its article, which is the line where there are none."""

    line: int
    article: str
    text: str


def penn(
    path: str,
    part: str,
    *,
    form: str = "unlabelled",
    max_words: int | None = None,
    lower: bool = False,
    **cut: Unpack[Cut],
) -> list[dict | str]:
    """The rows of a part of a file of Penn trees, plain or gzip: one tree after the other, or `article<TAB>tree` lines.

    `cut`: the `shares` of the parts, default 0.1 test, 0.1 dev, 0.8 train, and a `seed`, default 0. Shares are of the
    articles, or of the trees where there are no articles; what they leave is unused. No article is in two parts.

    Sentences of more than `max_words` words are left out; of equal sentences the first is kept; neither moves another
    row to another part. Traces and function tags are stripped. `lower` lowers words. A row's `references` hold its gold
    tree, which the metrics of `raykd.metrics.trees` need.

    A tree that cannot be read is a text in every part. Raises RecipeError for a part, form or shares that make no
    sense, DataError for a file that cannot be read.
    """
    for name in cut:
        require_known("penn", "argument", name, Cut.__annotations__)
    shares, seed = cut.get("shares"), cut.get("seed", 0)
    shares = SHARES if shares is None else shares
    require_known("penn", "form", form, TARGET_FORMS)
    check_part("penn", part, shares)
    bad: list[dict | str] = []
    articles: dict[str, list[dict]] = {}
    seen: set[str] = set()
    for tree_text in _tree_texts(path):
        try:
            whole = _gold_tree(tree_text.text)
        except ValueError as error:
            bad.append(f"line {tree_text.line}: {'not UTF-8' if isinstance(error, UnicodeEncodeError) else error}")
            continue
        # before any row is left out, so that a part is the same without them
        rows = articles.setdefault(tree_text.article, [])
        rooted = lowered(whole) if lower else whole
        tree = rootless(rooted)
        words = [word for word, _ in leaves(tree)]
        sentence = " ".join(words)
        if sentence in seen or max_words is not None and len(words) > max_words:
            continue
        seen.add(sentence)
        target = TARGET_FORMS[form](rooted if form == "release" else tree)  # the release writes a bracket for the root
        row = {"id": row_id(path, tree_text.line), "input": sentence, "target": target}
        rows.append({**row, "references": [one_line(tree)]})
    rows = [row for name in part_of(articles, part, shares, seed) for row in articles[name]]
    random.Random(seed).shuffle(rows)
    return bad + rows


def _gold_tree(text: str) -> Tree:
    """The tree of a text, stripped. Raises ValueError where there is not one tree with words."""
    text.encode("utf-8")
    trees = [tree for tree in map(stripped, parse(text)) if tree]
    if len(trees) != 1:
        raise ValueError(f"{len(trees)} trees with words")
    return trees[0]


def _tree_texts(path: str) -> Iterator[TreeText]:
    """The text of each tree of a file.

    Where a tree is not closed to the end of the file, every line from it on that begins with a bracket begins a tree.
    """
    unfinished: list[tuple[int, str]] = []
    depth = 0
    for number, raw in enumerate(read_lines(path), start=1):
        line = raw.decode("utf-8-sig", "surrogateescape")  # bytes that are not UTF-8 become lone surrogates
        article, tab, text = line.rstrip("\n").partition("\t")
        if tab and not unfinished and "(" not in article:
            yield TreeText(number, article, text)
            continue
        if not line.strip():
            continue
        unfinished.append((number, line))
        depth += line.count("(") - line.count(")")
        if depth <= 0:
            yield _joined(unfinished)
            unfinished, depth = [], 0
    starts = [place for place, (_, line) in enumerate(unfinished) if place == 0 or line.startswith("(")]
    for start, end in pairwise([*starts, len(unfinished)]):
        yield _joined(unfinished[start:end])


def _joined(lines: list[tuple[int, str]]) -> TreeText:
    return TreeText(lines[0][0], f"{lines[0][0]:09}", "".join(line for _, line in lines))
