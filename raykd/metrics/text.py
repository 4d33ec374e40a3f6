"""Metrics of texts. Tokens are what blanks separate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from raykd.errors import DataError
from raykd.metrics.counts import check_references


def phoneme_error_rate(predictions: list[str], references: list[list[str]]) -> float:
    """Phoneme error rate in percent: token edits over tokens of the references, both summed over all rows.

    Of several references the nearest counts (as in Yao and Zweig, Interspeech 2015): the one with the fewest edits per
    token. The rate can exceed 100. Raises DataError where all references are empty.
    """
    check_references(predictions, references)
    edits = tokens = 0
    for prediction, of_row in zip(predictions, references, strict=True):
        row_edits, row_tokens = _nearest(prediction.split(), [reference.split() for reference in of_row])
        edits += row_edits
        tokens += row_tokens
    if tokens == 0:
        raise DataError("phoneme_error_rate: the references are all empty")
    return 100 * edits / tokens


def word_error_rate(predictions: list[str], references: list[list[str]]) -> float:
    """Share of rows, in percent, whose tokens are those of no reference.

    This is the word error rate of grapheme-to-phoneme conversion, where a row is a word (Yao and Zweig 2015); it
    is not speech recognition's, which counts edits.
    """
    check_references(predictions, references)
    rows = zip(predictions, references, strict=True)
    wrong = sum(prediction.split() not in [r.split() for r in of_row] for prediction, of_row in rows)
    return 100 * wrong / len(predictions)


def exact_match(predictions: list[str], references: list[list[str]]) -> float:
    """Share of rows, in percent, whose text is one of the references; only surrounding blanks are ignored."""
    check_references(predictions, references)
    rows = zip(predictions, references, strict=True)
    hits = sum(prediction.strip() in [r.strip() for r in of_row] for prediction, of_row in rows)
    return 100 * hits / len(predictions)


def bleu(predictions: list[str], references: list[list[str]]) -> float:
    """Corpus BLEU, 0 to 100, as sacrebleu computes it by default (13a tokens, exponential smoothing; Post 2018)."""
    import sacrebleu

    check_references(predictions, references)
    return sacrebleu.BLEU().corpus_score(predictions, _streams(references)).score


def chrf(predictions: list[str], references: list[list[str]]) -> float:
    """Corpus chrF2, 0 to 100, as sacrebleu computes it by default (character 6-grams; Popović 2015)."""
    import sacrebleu

    check_references(predictions, references)
    return sacrebleu.CHRF().corpus_score(predictions, _streams(references)).score


def _streams(references: list[list[str]]) -> list[Sequence[str]]:
    """References as sacrebleu takes them: the first of every row, then the second, ..., None where a row has fewer."""
    return list(zip_longest(*references))


def _nearest(predicted: list[str], references: list[list[str]]) -> tuple[int, int]:
    """Edits to the nearest reference, and its length in tokens; of equally near ones, the first."""
    counts = [(edit_distance(predicted, reference), len(reference)) for reference in references]
    return min(counts, key=lambda c: c[0] / c[1] if c[1] else float("inf"))


def edit_distance(left: list[str], right: list[str]) -> int:
    """The fewest insertions, deletions and substitutions that turn one list into the other (Levenshtein)."""
    before = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        now = [i]
        for j, b in enumerate(right, start=1):
            now.append(min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (a != b)))
        before = now
    return before[-1]


METRICS = {
    "phoneme_error_rate": phoneme_error_rate,
    "word_error_rate": word_error_rate,
    "exact_match": exact_match,
    "bleu": bleu,
    "chrf": chrf,
}
LOWER_IS_BETTER = ("phoneme_error_rate", "word_error_rate")
