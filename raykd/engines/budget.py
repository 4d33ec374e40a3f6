"""Batches of a token budget, which is fixed, or doubled as long as batches get faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from raykd.errors import EngineError


@dataclass
class Budget:
    """Padded tokens of a batch; where `growing`, doubled while whole batches get faster by more than 10 %."""

    tokens: int
    growing: bool
    best: float = 0.0  # tokens per second at half this size
    rates: list[float] = field(default_factory=list)  # tokens per second at this size

    def learn(self, size: int, seconds: float) -> None:
        """Adapt to the time that a batch of `size` padded tokens took."""
        if not self.growing or size < 0.75 * self.tokens:
            return
        self.rates.append(size / seconds)
        if len(self.rates) < 2:  # the better of two: one may have been disturbed
            return
        rate, self.rates = max(self.rates), []
        if rate > 1.1 * self.best:
            self.best, self.tokens = rate, 2 * self.tokens
        else:
            self.tokens, self.growing = self.tokens // 2, False

    def shrink(self, size: int) -> None:
        """Halve the budget for good, because a batch of `size` padded tokens did not fit into memory."""
        self.tokens, self.growing = max(1, min(self.tokens, size) // 2), False


def in_batches(sizes: list[int], budget: Budget, batch: Callable[[list[int]], list]) -> list:
    """The result of each row, in order.

    sizes   tokens of each row
    batch   returns the results of the rows with these numbers; it is called with the largest rows first

    A batch that does not fit into the GPU's memory is halved. Raises EngineError where one row alone does not fit.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    results: list = [None] * len(sizes)
    start = 0
    while start < len(order):
        rows = order[start : start + max(1, budget.tokens // sizes[order[start]])]
        size = sizes[order[start]] * len(rows)
        began, row_results = time.perf_counter(), None
        try:
            row_results = batch(rows)
        except torch.cuda.OutOfMemoryError:
            if len(rows) == 1:
                raise EngineError(f"one row of {size} tokens does not fit into the GPU's memory") from None
        if row_results is None:  # outside the except clause, whose traceback keeps the batch's tensors alive
            budget.shrink(size)
            torch.cuda.empty_cache()
            continue
        budget.learn(size, time.perf_counter() - began)
        for row, result in zip(rows, row_results, strict=True):
            results[row] = result
        start += len(rows)
    return results
