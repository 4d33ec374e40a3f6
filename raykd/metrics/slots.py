"""Metrics on slot filling, for answers in the forms of `raykd.data.tasks.slots`."""

from __future__ import annotations

from raykd.data.tasks import slots
from raykd.errors import DataError
from raykd.metrics.text import _check


def chunk_f1(predictions: list[str], references: list[list[str]]) -> float:
    """Chunk F1 in percent: chunks of equal label and extent, counted over all rows (CoNLL; seqeval's default).

    Of several right answers the first counts. Its words are the input that a prediction's words are aligned to.
    Raises DataError if no right answer has a chunk, where seqeval returns 0.
    """
    found, right, hits = _counts(predictions, references)
    return 100 * 2 * hits / (found + right)


def chunk_precision(predictions: list[str], references: list[list[str]]) -> float:
    """Share of the predicted chunks, in percent, that are right, as `chunk_f1` counts them; 0 if there are none."""
    found, _, hits = _counts(predictions, references)
    return 100 * hits / found if found else 0.0


def chunk_recall(predictions: list[str], references: list[list[str]]) -> float:
    """Share of the right chunks, in percent, that were predicted, as `chunk_f1` counts them."""
    _, right, hits = _counts(predictions, references)
    return 100 * hits / right


def intent_accuracy(predictions: list[str], references: list[list[str]]) -> float:
    """Share of rows, in percent, whose intent is that of one of the right answers, in the forms `top` and `intent`.

    Raises DataError for a row of which no right answer has an intent.
    """
    _check(predictions, references)
    hits = 0
    for number, (prediction, right) in enumerate(zip(predictions, references, strict=True)):
        intents = {slots.intent(answer) for answer in right} - {None}
        if not intents:
            raise DataError(f"intent_accuracy: the right answers to prediction {number} have no intent")
        hits += slots.intent(prediction) in intents
    return 100 * hits / len(predictions)


def _counts(predictions: list[str], references: list[list[str]]) -> tuple[int, int, int]:
    """How many chunks were predicted, are right, and both."""
    _check(predictions, references)
    found = right = hits = 0
    for prediction, (answer, *_) in zip(predictions, references, strict=True):
        text = " ".join(slots.words(answer))
        predicted, gold = (set(slots.chunks(slots.tags(text, said))) for said in (prediction, answer))
        found, right, hits = found + len(predicted), right + len(gold), hits + len(predicted & gold)
    if right == 0:
        raise DataError("no right answer has a slot")
    return found, right, hits
