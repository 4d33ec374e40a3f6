"""The progress of a training: counters, which every checkpoint holds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from raykd.errors import TrainingError
from raykd.training.planner import Cursor
from raykd.training.sharder import GlobalBatch


@dataclass
class Progress:
    """Counts since the training began, over all workers and interruptions.

    step             optimizer steps; tokens: target tokens; examples: rows; each epoch counts anew
    padded_tokens    tokens computed, with padding; real_tokens: without
    epoch_progress   epochs done, a fraction included; evaluated_epoch_progress: at the last evaluation
    seconds          of steps, waiting included; waited_seconds: of waiting for batches
    best_score       of the best evaluation, higher is better; best_loss, best_step: its dev loss and its step
    worse            evaluations since the best one
    cursor           the next batch
    """

    step: int = 0
    tokens: int = 0
    examples: int = 0
    padded_tokens: int = 0
    real_tokens: int = 0
    epoch_progress: float = 0.0
    evaluated_epoch_progress: float = 0.0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    best_step: int = 0
    best_loss: float = math.inf
    best_score: float = -math.inf
    worse: int = 0
    cursor: Cursor = Cursor()

    def add(self, batch: GlobalBatch, seconds: float, waited_seconds: float) -> None:
        """Count a batch that was trained on."""
        self.step += 1
        self.tokens += batch.tokens
        self.examples += batch.rows
        self.padded_tokens += batch.padded_tokens
        self.real_tokens += batch.real_tokens
        self.epoch_progress, self.cursor = batch.epoch_progress, batch.next_cursor
        self.seconds += seconds
        self.waited_seconds += waited_seconds

    def add_evaluation(self, score: float, dev_loss: float) -> None:
        """Count an evaluation: a new best one, or one more towards patience."""
        if score > self.best_score:
            self.best_score, self.best_loss, self.best_step, self.worse = score, dev_loss, self.step, 0
        else:
            self.worse += 1
        self.evaluated_epoch_progress = self.epoch_progress

    def forget_best(self) -> None:
        """Make the next evaluation the best: the best model is lost."""
        self.best_score, self.worse = -math.inf, 0

    def metrics(self) -> dict[str, float]:
        """The counters that a line of the log holds."""
        rate = self.tokens / max(self.seconds, 1e-9)
        counts = {"epoch": self.epoch_progress, "examples": self.examples, "tokens": self.tokens}
        return {**counts, "seconds": self.seconds, "tokens_per_second": rate}

    def state(self) -> dict[str, Any]:
        """The counters as JSON values, for a checkpoint."""
        return asdict(self)


def progress_from(state: dict[str, Any]) -> Progress:
    """The progress in a checkpoint's state. Raises TrainingError if another version of raykd wrote it."""
    try:
        return Progress(**{**state, "cursor": Cursor(*state["cursor"])})
    except (TypeError, KeyError) as error:
        raise TrainingError(f"the checkpoint is of another version of raykd: {error}") from None
