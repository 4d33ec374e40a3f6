"""Metrics: texts in, a number out.

A metric is `metric(predictions, references) -> float`, with a list of references per prediction. Rates are in percent.
Every metric raises DataError where there is nothing to score.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable

from raykd.errors import RecipeError
from raykd.metrics.slots import chunk_f1, chunk_precision, chunk_recall, intent_accuracy
from raykd.metrics.text import bleu, chrf, exact_match, phoneme_error_rate, word_error_rate
from raykd.metrics.trees import (
    bracket_f1,
    labelled_bracket_f1,
    labelled_bracket_precision,
    labelled_bracket_recall,
    release_bracket_f1,
)

Metric = Callable[[list[str], list[list[str]]], float]

METRICS: dict[str, Metric] = {
    "phoneme_error_rate": phoneme_error_rate,
    "word_error_rate": word_error_rate,
    "exact_match": exact_match,
    "bleu": bleu,
    "chrf": chrf,
    "chunk_f1": chunk_f1,
    "chunk_precision": chunk_precision,
    "chunk_recall": chunk_recall,
    "intent_accuracy": intent_accuracy,
    "bracket_f1": bracket_f1,
    "labelled_bracket_f1": labelled_bracket_f1,
    "labelled_bracket_precision": labelled_bracket_precision,
    "labelled_bracket_recall": labelled_bracket_recall,
    "release_bracket_f1": release_bracket_f1,
}


def get(name: str) -> Metric:
    """The metric of that name, or a user's own as `module:function`. Raises RecipeError if there is none."""
    if name in METRICS:
        return METRICS[name]
    module, colon, function = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METRICS)}, or module:function"
        raise RecipeError(f"metrics: unknown metric {name!r}; {hint}")
    try:
        metric: Metric | None = getattr(importlib.import_module(module), function, None)
    except (ImportError, ValueError) as error:  # ValueError: an empty module name
        raise RecipeError(f"metrics: {name}: {error}") from None
    if not callable(metric):
        raise RecipeError(f"metrics: {name}: {module} has no function {function}")
    return metric


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric.endswith(("_rate", "loss"))
