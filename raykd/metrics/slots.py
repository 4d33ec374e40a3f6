"""Metrics of slot filling, for texts in the forms of `raykd.data.tasks.slots`."""

from __future__ import annotations

from raykd.data.tasks import slots
from raykd.errors import DataError
from raykd.metrics.counts import Counts, check_references


def chunk_f1(predictions: list[str], references: list[list[str]]) -> float:
    """Chunk F1 in percent: chunks of equal label and extent, counted over all rows (CoNLL; seqeval's default).

    Of several references the first counts. Its words are the input that a prediction's words are aligned to. Raises
    DataError if no reference has a chunk, where seqeval returns 0.
    """
    return _count_chunks(predictions, references).f1


def chunk_precision(predictions: list[str], references: list[list[str]]) -> float:
    """Share of the predicted chunks, in percent, that are right, as `chunk_f1` counts them; 0 if there are none."""
    return _count_chunks(predictions, references).precision


def chunk_recall(predictions: list[str], references: list[list[str]]) -> float:
    """Share of the references' chunks, in percent, that were predicted, as `chunk_f1` counts them."""
    return _count_chunks(predictions, references).recall


def intent_accuracy(predictions: list[str], references: list[list[str]]) -> float:
    """Share of rows, in percent, whose intent is that of one of the references, in the forms `top` and `intent`.

    Raises DataError for a row of which no reference has an intent.
    """
    check_references(predictions, references)
    hits = 0
    for number, (prediction, of_row) in enumerate(zip(predictions, references, strict=True)):
        intents = {slots.intent(reference) for reference in of_row} - {None}
        if not intents:
            raise DataError(f"intent_accuracy: the references of prediction {number} have no intent")
        hits += slots.intent(prediction) in intents
    return 100 * hits / len(predictions)


def _count_chunks(predictions: list[str], references: list[list[str]]) -> Counts:
    """The chunks of all rows. Raises DataError if no reference has one."""
    check_references(predictions, references)
    predicted = expected = common = 0
    for prediction, (reference, *_) in zip(predictions, references, strict=True):
        input_ = " ".join(slots.words(reference))
        written, right = (set(slots.chunks(slots.tags(input_, target))) for target in (prediction, reference))
        predicted, expected, common = predicted + len(written), expected + len(right), common + len(written & right)
    if expected == 0:
        raise DataError("no reference has a slot")
    return Counts(predicted, expected, common)


METRICS = {
    "chunk_f1": chunk_f1,
    "chunk_precision": chunk_precision,
    "chunk_recall": chunk_recall,
    "intent_accuracy": intent_accuracy,
}
