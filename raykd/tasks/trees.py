"""Constituency trees: which words of a sentence belong together.

Three target forms, all of pieces that blanks separate:

- `unlabelled`: brackets around every constituent of more than one word, `( ( The dog ) barks )`. Unary chains are one.
- `labelled`: the same with labels, unary chains kept and parts of speech left out, `(S (NP The dog ) (VP barks ) )`.
- `release`: that of MCKD's release (Zhao et al. 2024): a bracket around every word, and around a constituent once more
  for every unary ancestor, `( ( ( The ) ( dog ) ) ( barks ) )`.

A word that holds a bracket is written as in the Penn treebank, `-LRB-` for `(`. Trees are nested pairs (label,
children), a child is a tree or a word; gold trees have a part of speech above each word.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path

from raykd.errors import DataError
from raykd.tasks import SHARES, Format, check_part, known, part_of

Tree = tuple[str, list]  # label, children: trees or words
Bracket = tuple[int, int, str]  # first word, the word after the last, label

DEEPEST = 200  # brackets within brackets; what is deeper is no tree
ROOTS = ("", "TOP", "ROOT", "S1")  # a bracket around the whole that says nothing
PIECES = re.compile(r"\([^\s()]*|\)|[^\s()]+")
PENN = re.compile(r"\(\S+ [^\s()]+\)")  # a part of speech and its word, which no target form has

# ------------------------------------------------------------------------------------------- brackets to trees


def parse(text: str) -> list[Tree]:
    """The trees of a text in brackets. Raises ValueError, in one line, for brackets that do not match."""
    whole: Tree = ("", [])
    open_: list[Tree] = [whole]
    for piece in PIECES.findall(text):
        if piece.startswith("("):
            if len(open_) > DEEPEST:
                raise ValueError(f"more than {DEEPEST} brackets within each other")
            tree: Tree = (piece[1:], [])
            open_[-1][1].append(tree)
            open_.append(tree)
        elif piece != ")":
            open_[-1][1].append(piece)
        elif len(open_) == 1:
            raise ValueError("a bracket is closed that was not opened")
        else:
            open_.pop()
    if len(open_) > 1:
        raise ValueError(f"{len(open_) - 1} brackets are not closed")
    if any(isinstance(child, str) for child in whole[1]):
        raise ValueError("words outside of brackets")
    return whole[1]


def clean(tree: Tree) -> Tree | None:
    """A gold tree without traces, function tags and a root that says nothing; None where no word is left."""
    found = stripped(tree)
    return found and rootless(found)


def stripped(tree: Tree) -> Tree | None:
    """A gold tree without traces and function tags; None where no word is left."""

    def one(tree: Tree) -> Tree | None:
        label, children = tree
        if children and all(isinstance(child, str) for child in children):
            if len(children) > 1:
                raise ValueError(f"{len(children)} words under the one part of speech {label!r:.20}")
            return None if label == "-NONE-" else (label, [_shown(children[0])])
        kept = [child for child in map(one, (c for c in children if not isinstance(c, str))) if child]
        if len(children) != sum(not isinstance(child, str) for child in children):
            raise ValueError(f"words and constituents together under {label!r:.20}")
        return (_bare(label) or "TOP", kept) if kept else None  # no target form has labels that are empty

    return one(tree)


def rootless(tree: Tree) -> Tree:
    """A tree without a root that says nothing."""
    while tree[0] in ROOTS and len(tree[1]) == 1 and not isinstance(tree[1][0], str):
        tree = tree[1][0]
    return tree


def leaves(tree: Tree) -> list[tuple[str, str]]:
    """The words of a tree, each with the label above it."""
    label, children = tree
    return [pair for c in children for pair in ([(c, label)] if isinstance(c, str) else leaves(c))]


def brackets(tree: Tree) -> list[Bracket]:
    """The constituents of a gold tree, outer ones first, parts of speech left out; extents in words."""
    found: list[Bracket] = []

    def one(tree: Tree, start: int) -> int:
        label, children = tree
        if isinstance(children[0], str):
            return start + 1
        place = len(found)
        found.append((start, start, label))
        end = start
        for child in children:
            end = one(child, end)
        found[place] = (start, end, label)
        return end

    one(tree, 0)
    return found


def one_line(tree: Tree) -> str:
    """A gold tree as text, `(S (NP (DT The) (NN dog)) ...)`."""
    label, children = tree
    return f"({label} {' '.join(c if isinstance(c, str) else one_line(c) for c in children)})"


def gold(answers: Iterable[str]) -> Tree | None:
    """The first of several right answers that is a gold tree with parts of speech."""
    for answer in answers:
        if PENN.search(answer):
            try:
                (tree,) = parse(answer)
                return clean(tree)
            except ValueError:
                continue
    return None


# ------------------------------------------------------------------------------------------- trees to targets


def unlabelled(tree: Tree) -> str:
    """The target `unlabelled` of a gold tree."""
    words = [word for word, _ in leaves(tree)]
    spans = dict.fromkeys((start, end, "") for start, end, _ in brackets(tree) if end - start > 1)
    return _written(words, list(spans) or [(0, len(words), "")])


def labelled(tree: Tree) -> str:
    """The target `labelled` of a gold tree."""
    return _written([word for word, _ in leaves(tree)], brackets(tree) or [(0, 1, "TOP")])  # counted by no metric


def release(tree: Tree) -> str:
    """The target `release` of a gold tree, as the release's code has it (its README and parserlib)."""

    def pieces(tree: Tree) -> list[str]:
        children = tree[1]
        if isinstance(children[0], str):
            return [f"( {children[0]} )"]
        found = [piece for child in children for piece in pieces(child)]
        return ["(", *found, ")"] if len(found) > 1 else found

    return " ".join(pieces(tree))


FORMS: dict[str, Callable[[Tree], str]] = {"unlabelled": unlabelled, "labelled": labelled, "release": release}


def _written(words: list[str], found: list[Bracket]) -> str:
    """Words in brackets that do not cross; of equal ones the first is outside."""
    pieces: list[str] = []
    opening = sorted(found, key=lambda b: (b[0], -b[1]))
    for place, word in enumerate(words):
        pieces += [f"({label}" for start, _, label in opening if start == place]
        pieces.append(word)
        pieces += [")"] * sum(end == place + 1 for _, end, _ in found)
    return " ".join(pieces)


def _bare(label: str) -> str:
    """A label without function tags and indices, `NP-SBJ=2` -> NP; `-LRB-` stays."""
    return re.split(r"[-=]", label, maxsplit=1)[0] or label


def _shown(word: str) -> str:
    return word.replace("(", "-LRB-").replace(")", "-RRB-")


# ------------------------------------------------------------------------------------------- targets to brackets


def words_of(input: str) -> list[str]:
    """The words of an input as they stand in its targets."""
    return [_shown(word) for word in input.split()]


def read(answer: str) -> tuple[list[str], list[Bracket]]:
    """The words of an answer in any form, however damaged, and its brackets, outer ones first; empty ones are left out.

    A bracket that is not closed ends with the answer; one too many is ignored.
    """
    words: list[str] = []
    found: list[tuple[int, int, str]] = []
    open_: list[int] = []
    for piece in PIECES.findall(answer):
        if piece.startswith("("):
            open_.append(len(found))
            found.append((len(words), -1, piece[1:]))
        elif piece != ")":
            words.append(piece)
        elif open_:
            place = open_.pop()
            found[place] = (found[place][0], len(words), found[place][2])
    closed = [(start, len(words) if end < 0 else end, label) for start, end, label in found]
    return words, [bracket for bracket in closed if bracket[0] < bracket[1]]


def aligned(words: list[str], answer: str) -> list[Bracket]:
    """The brackets of an answer in places of these words, outer ones first.

    Where the answer's words are others, they are aligned (difflib): words changed one for one keep their place, others
    have none. Of brackets that then cross, the first counts.
    """
    said, found = read(answer)
    if said == words:
        return found
    place: dict[int, int] = {}
    for _, start, end, said_start, said_end in SequenceMatcher(None, words, said, autojunk=False).get_opcodes():
        if end - start == said_end - said_start:
            place |= dict(zip(range(said_start, said_end), range(start, end), strict=True))
    kept: list[Bracket] = []
    for start, end, label in found[: 10 * len(words) + DEEPEST]:
        inside = [place[i] for i in range(start, end) if i in place]
        if not inside:
            continue
        first, last = inside[0], inside[-1] + 1
        if not any(a < first < b < last or first < a < last < b for a, b, _ in kept):
            kept.append((first, last, label))
    return kept


# ------------------------------------------------------------------------------------------- well-formed or not


def invalid_unlabelled(input: str, answer: str) -> str | None:
    """Why the answer is no `unlabelled` target of this input, in one line; None if it is one."""
    return _invalid(input, answer, labels=False)


def invalid_labelled(input: str, answer: str) -> str | None:
    """Why the answer is no `labelled` target of this input, in one line; None if it is one."""
    return _invalid(input, answer, labels=True)


def invalid_release(input: str, answer: str) -> str | None:
    """Why the answer is no tree over as many words as the input has, which is all that the release asks."""
    try:
        words = release_words(answer)
    except ValueError as error:
        return str(error)
    expected = len(input.split())
    return None if len(words) == expected else f"{len(words)} words, the input has {expected}"


def release_words(answer: str) -> list[str]:
    """The words of a tree in the form `release`. Raises ValueError where there is not one tree, and nothing else.

    No bracket has a label: what follows one is a word, as to the release.
    """
    trees = parse(answer.replace("(", "( "))
    if len(trees) != 1:
        raise ValueError(f"{len(trees)} trees")
    return [word for word, _ in leaves(trees[0])]


def _invalid(input: str, answer: str, labels: bool) -> str | None:
    right = words_of(input)
    if not right:
        return "the input is empty"
    try:
        trees = parse(answer)
    except ValueError as error:
        return str(error)
    if len(trees) != 1:
        return f"{len(trees)} trees"
    for piece in PIECES.findall(answer):
        if piece.startswith("(") and (len(piece) > 1) != labels:
            return f"{piece!r:.40} is a bracket {'without' if labels else 'with'} a label"
    said = read(answer)[0]
    for place, (expected, word) in enumerate(zip(right, said, strict=False), start=1):
        if word != expected:
            return f"word {place} is {word!r:.40}, the input's is {expected!r:.40}"
    if len(said) != len(right):
        return f"{len(said)} words, the input has {len(right)}"
    return "a bracket holds no word" if re.search(r"\([^\s()]*\s*\)", answer) else None


def repair_unlabelled(input: str, answer: str) -> str:
    """The answer if it is well formed, else its brackets around the input's words; around all of them in any case."""
    if invalid_unlabelled(input, answer) is None:
        return answer
    words = words_of(input)
    spans = {(start, end, ""): None for start, end, _ in aligned(words, answer) if end - start > 1}
    return _written(words, _not_too_deep([(0, len(words), ""), *(spans.keys() - {(0, len(words), "")})]))


def repair_labelled(input: str, answer: str) -> str:
    """The answer if it is well formed, else its brackets around the input's words, within one of all of them, `S`."""
    if invalid_labelled(input, answer) is None:
        return answer
    words = words_of(input)
    found = [(start, end, label or "X") for start, end, label in aligned(words, answer)]
    whole = [] if any(start == 0 and end == len(words) for start, end, _ in found) else [(0, len(words), "S")]
    return _written(words, _not_too_deep(whole + found))


def _not_too_deep(found: list[Bracket]) -> list[Bracket]:
    """Brackets that do not cross, without those within DEEPEST others; of equal ones the first is outside."""
    kept: list[Bracket] = []
    around: list[int] = []  # ends of the brackets that a word is in
    for bracket in sorted(found, key=lambda b: (b[0], -b[1])):
        while around and around[-1] <= bracket[0]:
            around.pop()
        if len(around) < DEEPEST:
            around.append(bracket[1])
            kept.append(bracket)
    return kept


def repair_release(input: str, answer: str) -> str:
    """The answer if it is well formed, else as the release mends it, which need not make it so."""
    return answer if invalid_release(input, answer) is None else release_repair(input, answer)


CONTRACTIONS = {"won't": "wo n't", "don't": "do n't", "can't": "ca n't"}


def release_repair(input: str, answer: str) -> str:
    """What the release's scorer makes of an answer: brackets are balanced, words parted as the input has them."""
    missing = answer.count("(") - answer.count(")")
    answer, end = answer + " )" * missing, len(answer)
    if missing < 0:
        while missing < 0 and answer.endswith(" )", 0, end):
            missing, end = missing + 1, end - 2
        answer = answer[:end]
    for mark in "/-":
        pieces = answer.split()
        for place, piece in enumerate(pieces):
            parts = piece.split(mark)
            if len(piece) > 1 and len(parts) > 1 and f" {mark} ".join(parts) in input:
                pieces[place] = f" ( {mark} ) ".join(f"( {part} )" for part in parts)
        answer = " ".join(pieces)
    pieces = answer.split()
    for place, piece in enumerate(pieces):
        parted = CONTRACTIONS.get(piece)
        if parted and parted in input:
            pieces[place] = f"( {parted} )"
        elif piece.endswith("'s") and piece not in input:
            pieces[place] = f"( {piece[:-2]} 's )"
    return re.sub(r"\(\s*", "( ", " ".join(pieces))


UNLABELLED = Format(invalid_unlabelled, repair_unlabelled)
LABELLED = Format(invalid_labelled, repair_labelled)
RELEASE = Format(invalid_release, repair_release)

# ------------------------------------------------------------------------------------------- rows


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
    known("penn", "form", form, FORMS)
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
        target = FORMS[form](rooted if form == "release" else tree)  # the release writes a bracket for the root
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
