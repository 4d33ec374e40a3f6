"""Metrics of constituency trees, for texts in the forms of `raykd.data.tasks.trees`.

They need a gold tree with parts of speech among a row's references; `raykd.data.tasks.penn` puts it there. Where there
is none, the first reference's brackets are right, and a word without a letter or digit is punctuation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raykd.data.tasks.release_trees import release_repair, release_words
from raykd.data.tasks.trees import ROOTS, Bracket, aligned, brackets, gold_tree, leaves, parse, read
from raykd.errors import DataError
from raykd.metrics.counts import Counts, check_references

# parts of speech that are words to the release's scorer; all others are punctuation to it
WORDS = frozenset(
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH VB VBD VBG VBN VBP VBZ"
    " WDT WP WP$ WRB".split()
)
DELETED = frozenset(", : `` '' .".split())  # the parts of speech that EVALB deletes, by COLLINS.prm
EQUAL = {"PRT": "ADVP"}  # labels that COLLINS.prm takes for the same


@dataclass(frozen=True)
class _Gold:
    """A sentence's gold tree: its words, whether each is a word to the release and to EVALB, and its brackets."""

    words: list[str]
    release: list[bool]
    evalb: list[bool]
    brackets: list[Bracket]


class _SentenceScores(NamedTuple):
    """Scores of one sentence, 0 to 1."""

    f1: float
    precision: float
    recall: float


def release_bracket_f1(predictions: list[str], references: list[list[str]]) -> float:
    """Unlabelled bracket F1 of each sentence without punctuation, their mean in percent (Zhao et al. 2024's release).

    Predictions are repaired as in the release. A prediction that is no tree, or has another number of words, scores 0;
    so does every sentence of one word. Words are not compared.
    """
    rows = zip(predictions, _golds(predictions, references), strict=True)
    scores = [_release_scores(prediction, gold).f1 for prediction, gold in rows]
    return 100 * sum(scores) / len(scores)


def bracket_f1(predictions: list[str], references: list[list[str]]) -> float:
    """Unlabelled bracket F1 over all sentences, in percent: brackets of two words or more, punctuation deleted.

    A prediction is aligned to the sentence's words, so that one wrong word costs little. Raises DataError where no
    sentence has a bracket.
    """
    predicted = expected = common = 0
    for prediction, gold in zip(predictions, _golds(predictions, references), strict=True):
        spans, right = _spans(aligned(gold.words, prediction), gold.evalb), _spans(gold.brackets, gold.evalb)
        predicted, expected, common = predicted + len(spans), expected + len(right), common + len(spans & right)
    if expected == 0:
        raise DataError("no reference has a bracket of two words")
    return Counts(predicted, expected, common).f1


def labelled_bracket_f1(predictions: list[str], references: list[list[str]]) -> float:
    """Labelled bracket F1 over all sentences, in percent, as EVALB has it with COLLINS.prm.

    Punctuation and TOP are deleted, ADVP and PRT are the same. A prediction that is no tree, or whose words are not the
    sentence's, has no bracket and misses the gold ones; EVALB leaves such a sentence out. Raises DataError where no
    sentence has a bracket.
    """
    return _count_labelled(predictions, references).f1


def labelled_bracket_precision(predictions: list[str], references: list[list[str]]) -> float:
    """Share of the predicted labelled brackets, in percent, that are right, as `labelled_bracket_f1` counts them."""
    return _count_labelled(predictions, references).precision


def labelled_bracket_recall(predictions: list[str], references: list[list[str]]) -> float:
    """Share of the gold labelled brackets, in percent, that were predicted, as `labelled_bracket_f1` counts them."""
    return _count_labelled(predictions, references).recall


# ------------------------------------------------------------------------------------------- for the report


def label_recall(predictions: list[str], references: list[list[str]]) -> dict[str, tuple[int, int]]:
    """By label: how many of its gold brackets the predictions have, whatever their label, and how many there are.

    As the release counts: repaired predictions, without its punctuation, brackets of two words or more.
    """
    counts: dict[str, tuple[int, int]] = {}
    for prediction, gold in zip(predictions, _golds(predictions, references), strict=True):
        spans = _release_spans(prediction, gold) or set()
        for start, end, label in set(_without(gold.brackets, gold.release)):
            if end - start > 1:
                hits, of_label = counts.get(label, (0, 0))
                counts[label] = hits + ((start, end) in spans), of_label + 1
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


class _Agreed(NamedTuple):
    """A sentence's F1 between teacher and student, and the F1 of each, 0 to 1."""

    agreement: float
    teacher_f1: float
    student_f1: float


def agreement(teacher: list[str], student: list[str], references: list[list[str]]) -> Agreement:
    """Agreement of teacher and student on the same sentences, as the release reports it (its scorer's third mode).

    teacher, student: the predictions of each.
    """
    golds = _golds(teacher, references)
    check_references(student, references)
    rows: list[_Agreed] = []
    both_trees = 0
    for of_teacher, of_student, gold in zip(teacher, student, golds, strict=True):
        teacher_spans, student_spans = _release_spans(of_teacher, gold), _release_spans(of_student, gold)
        agreed = 0.0
        if teacher_spans is not None and student_spans is not None:
            agreed = _f1(teacher_spans, student_spans)
            both_trees += 1
        rows.append(
            _Agreed(
                agreed,
                _release_scores(of_teacher, gold).f1,
                _release_scores(of_student, gold).f1,
            )
        )
    order = sorted(rows, key=lambda row: row.agreement)
    ends = [round(len(order) * tenth / 10) for tenth in range(11)]
    whole = _decile(rows)
    return Agreement(
        mean=whole.agreement,
        both_trees=both_trees,
        teacher_f1=whole.teacher_f1,
        student_f1=whole.student_f1,
        deciles=[_decile(order[start:end]) for start, end in zip(ends, ends[1:], strict=False) if end > start],
    )


def _decile(rows: Sequence[_Agreed]) -> Decile:
    return Decile(
        rows=len(rows),
        agreement=sum(row.agreement for row in rows) / len(rows),
        teacher_f1=sum(row.teacher_f1 for row in rows) / len(rows),
        student_f1=sum(row.student_f1 for row in rows) / len(rows),
        better=sum(row.student_f1 > row.teacher_f1 for row in rows),
        worse=sum(row.student_f1 < row.teacher_f1 for row in rows),
    )


# ------------------------------------------------------------------------------------------- counting


def _golds(predictions: list[str], references: list[list[str]]) -> list[_Gold]:
    check_references(predictions, references)
    return [_gold(of_row) for of_row in references]


def _gold(references: list[str]) -> _Gold:
    tree = gold_tree(references)
    if tree is None:
        words, of_reference = read(references[0])
        plain = [any(letter.isalnum() for letter in word) for word in words]
        return _Gold(words=words, release=plain, evalb=plain, brackets=of_reference)
    pairs = leaves(tree)
    return _Gold(
        words=[word for word, _ in pairs],
        release=[tag in WORDS for _, tag in pairs],
        evalb=[tag not in DELETED for _, tag in pairs],
        brackets=brackets(tree),
    )


def _without(brackets: list[Bracket], is_word: list[bool]) -> list[Bracket]:
    """Brackets in places of the words alone, without punctuation; brackets around no word are left out."""
    before = [0]
    for counts in is_word:
        before.append(before[-1] + counts)
    return [Bracket(before[a], before[b], label) for a, b, label in brackets if before[a] < before[b]]


def _spans(brackets: list[Bracket], is_word: list[bool]) -> set[tuple[int, int]]:
    """(first word, the word after the last) of the brackets around two words or more, in places of the words alone."""
    return {(start, end) for start, end, _ in _without(brackets, is_word) if end - start > 1}


def _release_spans(prediction: str, gold: _Gold) -> set[tuple[int, int]] | None:
    """The spans of a prediction repaired as in the release; None where it is no tree over as many words."""
    repaired = release_repair(" ".join(gold.words), prediction)
    try:
        words = release_words(repaired)
    except ValueError:
        return None
    if len(words) != len(gold.words):
        return None
    return _spans(read(repaired)[1], gold.release)


def _release_scores(prediction: str, gold: _Gold) -> _SentenceScores:
    spans, right = _release_spans(prediction, gold), _spans(gold.brackets, gold.release)
    hits = len(spans & right) if spans else 0
    if not spans or not hits:
        return _SentenceScores(0.0, 0.0, 0.0)
    return _SentenceScores(_f1(spans, right), hits / len(spans), hits / len(right))


def _f1(spans: set, right: set) -> float:
    """F1 of two sets of spans, 0 to 1."""
    return 2 * len(spans & right) / (len(spans) + len(right)) if spans or right else 0.0


def _count_labelled(predictions: list[str], references: list[list[str]]) -> Counts:
    """The labelled brackets of all sentences. Raises DataError where no sentence has one."""
    predicted = expected = common = 0
    for prediction, gold in zip(predictions, _golds(predictions, references), strict=True):
        words, of_prediction = read(prediction)
        is_right_tree = words == gold.words and _is_tree(prediction)
        labelled = _labelled(of_prediction if is_right_tree else [], gold.evalb)
        right = _labelled(gold.brackets, gold.evalb)
        common += (labelled & right).total()
        predicted, expected = predicted + labelled.total(), expected + right.total()
    if expected == 0:
        raise DataError("no reference has a bracket")
    return Counts(predicted, expected, common)


def _is_tree(prediction: str) -> bool:
    try:
        return len(parse(prediction)) == 1
    except ValueError:
        return False


def _labelled(brackets: list[Bracket], is_word: list[bool]) -> Counter[Bracket]:
    """How often there is each bracket, without roots and punctuation, its label as in COLLINS.prm."""
    in_place = _without([bracket for bracket in brackets if bracket.label not in ROOTS], is_word)
    return Counter(bracket._replace(label=EQUAL.get(bracket.label, bracket.label)) for bracket in in_place)


METRICS = {
    "bracket_f1": bracket_f1,
    "labelled_bracket_f1": labelled_bracket_f1,
    "labelled_bracket_precision": labelled_bracket_precision,
    "labelled_bracket_recall": labelled_bracket_recall,
    "release_bracket_f1": release_bracket_f1,
}
