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

import re
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher

from raykd.data.tasks.formats import Format

PENN = re.compile(r"\(\S+ [^\s()]+\)")  # a part of speech and its word, which no target form has

Tree = tuple[str, list]  # label, children: trees or words
Bracket = tuple[int, int, str]  # first word, the word after the last, label
DEEPEST = 200  # brackets within brackets; what is deeper is no tree
ROOTS = ("", "TOP", "ROOT", "S1")  # a bracket around the whole that says nothing
PIECES = re.compile(r"\([^\s()]*|\)|[^\s()]+")


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


def gold_tree(answers: Iterable[str]) -> Tree | None:
    """The first of several right answers that is a gold tree with parts of speech."""
    for answer in answers:
        if PENN.search(answer):
            try:
                (tree,) = parse(answer)
                return clean(tree)
            except ValueError:
                continue
    return None


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


TARGET_FORMS: dict[str, Callable[[Tree], str]] = {"unlabelled": unlabelled, "labelled": labelled, "release": release}


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
