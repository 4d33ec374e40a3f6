"""Metrics on constituency trees, for answers in the forms of `raykd.data.tasks.trees`.

They ask for a gold tree with parts of speech among a row's right answers; `treebanks.penn` puts it there. Where there
is none, the first right answer's brackets are right, and a word without a letter or digit is punctuation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raykd.data.tasks.trees import (
    ROOTS,
    Bracket,
    aligned,
    brackets,
    gold_tree,
    leaves,
    parse,
    read,
    release_repair,
    release_words,
)
from raykd.errors import DataError
from raykd.metrics.text import _check

# words to the release's scorer; what has another part of speech it takes for punctuation
WORDS = frozenset(
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH VB VBD VBG VBN VBP VBZ"
    " WDT WP WP$ WRB".split()
)
DELETED = frozenset(", : `` '' .".split())  # COLLINS.prm's punctuation, of EVALB
EQUAL = {"PRT": "ADVP"}  # labels that it takes for the same


@dataclass(frozen=True)
class _Gold:
    """What is right of a sentence: its words, which of them are words to the release and to EVALB, and its brackets."""

    words: list[str]
    release: list[bool]
    evalb: list[bool]
    brackets: list[Bracket]


def release_bracket_f1(predictions: list[str], references: list[list[str]]) -> float:
    """Unlabelled bracket F1 of each sentence without punctuation, their mean in percent (Zhao et al. 2024's release).

    Predictions are mended as the release does. One that is no tree, or of another number of words, scores 0; so does
    every sentence of one word. Words are not compared.
    """
    found = [_release(p, gold)[0] for p, gold in zip(predictions, _golds(predictions, references), strict=True)]
    return 100 * sum(found) / len(found)


def bracket_f1(predictions: list[str], references: list[list[str]]) -> float:
    """Unlabelled bracket F1 over all sentences, in percent: brackets of two words or more, punctuation deleted.

    A prediction is aligned to the sentence's words, so that one wrong word costs little. Raises DataError where no
    sentence has a bracket.
    """
    hits = said = right = 0
    for prediction, gold in zip(predictions, _golds(predictions, references), strict=True):
        mine = _spans(aligned(gold.words, prediction), gold.evalb)
        theirs = _spans(gold.brackets, gold.evalb)
        hits, said, right = hits + len(mine & theirs), said + len(mine), right + len(theirs)
    if right == 0:
        raise DataError("no right answer has a bracket of two words")
    return 100 * 2 * hits / (said + right)


def labelled_bracket_f1(predictions: list[str], references: list[list[str]]) -> float:
    """Labelled bracket F1 over all sentences, in percent, as EVALB has it with COLLINS.prm.

    Punctuation and TOP are deleted, ADVP and PRT are the same. A prediction that is no tree, or whose words are not the
    sentence's, has no bracket and misses the gold ones; EVALB leaves such a sentence out. Raises DataError where no
    sentence has a bracket.
    """
    hits, said, right = _labelled(predictions, references)
    return 100 * 2 * hits / (said + right)


def labelled_bracket_precision(predictions: list[str], references: list[list[str]]) -> float:
    """Share of the predicted labelled brackets, in percent, that are right, as `labelled_bracket_f1` counts them."""
    hits, said, _ = _labelled(predictions, references)
    return 100 * hits / said if said else 0.0


def labelled_bracket_recall(predictions: list[str], references: list[list[str]]) -> float:
    """Share of the right labelled brackets, in percent, that were predicted, as `labelled_bracket_f1` counts them."""
    hits, _, right = _labelled(predictions, references)
    return 100 * hits / right


# ------------------------------------------------------------------------------------------- for a closer look


def label_recall(predictions: list[str], references: list[list[str]]) -> dict[str, tuple[int, int]]:
    """By label: how many of its gold brackets the predictions have, whatever they call them, and how many there are.

    As the release counts: mended predictions, without its punctuation, brackets of two words or more.
    """
    counts: dict[str, tuple[int, int]] = {}
    for prediction, gold in zip(predictions, _golds(predictions, references), strict=True):
        said = _release_spans(prediction, gold)
        for start, end, label in set(_moved(gold.brackets, gold.release)):
            if end - start > 1:
                hits, all_ = counts.get(label, (0, 0))
                counts[label] = hits + ((start, end) in (said or set())), all_ + 1
    return counts


@dataclass(frozen=True)
class Decile:
    """Sentences of like agreement: means of agreement and F1, 0 to 1; of how many the student is better, or worse."""

    rows: int
    agreement: float
    teacher_f1: float
    student_f1: float
    better: int
    worse: int


@dataclass(frozen=True)
class Agreement:
    """How far teacher and student agree: mean F1 between their brackets, 0 to 1; deciles by rising agreement."""

    mean: float
    both_trees: int
    teacher_f1: float
    student_f1: float
    deciles: list[Decile]


def agreement(teacher: list[str], student: list[str], references: list[list[str]]) -> Agreement:
    """Agreement of teacher and student on the same sentences, as the release reports it (its scorer's third mode)."""
    golds = _golds(teacher, references)
    _check(student, references)
    rows: list[tuple[float, float, float]] = []
    both = 0
    for one, other, gold in zip(teacher, student, golds, strict=True):
        mine, theirs = _release_spans(one, gold), _release_spans(other, gold)
        both += mine is not None and theirs is not None
        agreed = _f1(mine, theirs) if mine is not None and theirs is not None else 0.0
        rows.append((agreed, _release(one, gold)[0], _release(other, gold)[0]))

    def mean(part: Sequence[tuple], column: int) -> float:
        return sum(row[column] for row in part) / len(part)

    order = sorted(rows, key=lambda row: row[0])
    ends = [round(len(order) * tenth / 10) for tenth in range(11)]
    parts = [order[a:b] for a, b in zip(ends, ends[1:], strict=False) if b > a]
    deciles = [
        Decile(
            *(len(part), mean(part, 0), mean(part, 1), mean(part, 2)),
            *(sum(s > t for _, t, s in part), sum(s < t for _, t, s in part)),
        )
        for part in parts
    ]
    return Agreement(mean(rows, 0), both, mean(rows, 1), mean(rows, 2), deciles)


# ------------------------------------------------------------------------------------------- counting


def _golds(predictions: list[str], references: list[list[str]]) -> list[_Gold]:
    _check(predictions, references)
    return [_gold(right) for right in references]


def _gold(right: list[str]) -> _Gold:
    tree = gold_tree(right)
    if tree is None:
        words, found = read(right[0])
        plain = [any(letter.isalnum() for letter in word) for word in words]
        return _Gold(words, plain, plain, found)
    pairs = leaves(tree)
    tags = [tag for _, tag in pairs]
    return _Gold(
        [word for word, _ in pairs],
        [tag in WORDS for tag in tags],
        [tag not in DELETED for tag in tags],
        brackets(tree),
    )


def _moved(found: list[Bracket], kept: list[bool]) -> list[Bracket]:
    """Brackets in places of the words that are kept; those of none are left out."""
    before = [0]
    for keep in kept:
        before.append(before[-1] + keep)
    return [(before[a], before[b], label) for a, b, label in found if before[a] < before[b]]


def _spans(found: list[Bracket], kept: list[bool]) -> set[tuple[int, int]]:
    return {(start, end) for start, end, _ in _moved(found, kept) if end - start > 1}


def _release_spans(prediction: str, gold: _Gold) -> set[tuple[int, int]] | None:
    """A mended prediction's brackets; None where it is no tree over as many words."""
    mended = release_repair(" ".join(gold.words), prediction)
    try:
        words = release_words(mended)
    except ValueError:
        return None
    if len(words) != len(gold.words):
        return None
    return _spans(read(mended)[1], gold.release)


def _release(prediction: str, gold: _Gold) -> tuple[float, float, float]:
    """F1, precision and recall of a sentence, 0 to 1."""
    said, right = _release_spans(prediction, gold), _spans(gold.brackets, gold.release)
    hits = len(said & right) if said else 0
    if not said or not hits:
        return 0.0, 0.0, 0.0
    return _f1(said, right), hits / len(said), hits / len(right)


def _f1(said: set, right: set) -> float:
    return 2 * len(said & right) / (len(said) + len(right)) if said or right else 0.0


def _labelled(predictions: list[str], references: list[list[str]]) -> tuple[int, int, int]:
    """How many labelled brackets are predicted and right, predicted, right."""
    hits = said = right = 0
    for prediction, gold in zip(predictions, _golds(predictions, references), strict=True):
        words, found = read(prediction)
        mine = _counted(found if words == gold.words and _is_tree(prediction) else [], gold.evalb)
        theirs = _counted(gold.brackets, gold.evalb)
        hits += (mine & theirs).total()
        said, right = said + mine.total(), right + theirs.total()
    if right == 0:
        raise DataError("no right answer has a bracket")
    return hits, said, right


def _is_tree(prediction: str) -> bool:
    try:
        return len(parse(prediction)) == 1
    except ValueError:
        return False


def _counted(found: list[Bracket], kept: list[bool]) -> Counter[Bracket]:
    moved = _moved([bracket for bracket in found if bracket[2] not in ROOTS], kept)
    return Counter((start, end, EQUAL.get(label, label)) for start, end, label in moved)
