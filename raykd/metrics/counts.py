"""What metrics count with: the check of their arguments, and precision, recall and F1 over all rows."""

from __future__ import annotations

from typing import NamedTuple

from raykd.errors import DataError


class Counts(NamedTuple):
    """How many items all predictions have, all references have, and both have in common."""

    predicted: int
    expected: int
    common: int

    @property
    def f1(self) -> float:
        """In percent."""
        return 100 * 2 * self.common / (self.predicted + self.expected)

    @property
    def precision(self) -> float:
        """Share of the predicted items that are right, in percent; 0 if there are none."""
        return 100 * self.common / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the expected items that were predicted, in percent."""
        return 100 * self.common / self.expected


def check_references(predictions: list[str], references: list[list[str]]) -> None:
    """Raises DataError unless there is a prediction, and for each prediction a reference."""
    if not predictions:
        raise DataError("no predictions to score")
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions, but references for {len(references)}")
    for number, of_row in enumerate(references):
        if not of_row:
            raise DataError(f"prediction {number} has no reference to be scored by")
