"""Which target each row is taught in an epoch: where sequences come from, apart from the loss."""

from __future__ import annotations

import numpy as np

from raykd.recipe.training import Gold, Mixture, PseudoTargets, Sequences
from raykd.training.dataset import EncodedDataset


def targets_of_epoch(
    found: EncodedDataset, rows: np.ndarray, sequences: Sequences, seed: int, epoch: int
) -> np.ndarray:
    """Numbers of the targets that the rows are taught in an epoch: a function of its arguments alone.

    A row without a target of the kind that is asked for is taught the kind it has.
    """
    starts, counts = found.first[rows], np.diff(found.first)[rows]
    before = np.concatenate([[0], np.cumsum(found.gold)])
    golds = before[starts + counts] - before[starts]
    written = counts - golds  # which come before a row's gold
    if isinstance(sequences, PseudoTargets) and sequences.samples == "all":
        return np.concatenate(
            [
                np.zeros(0, np.int64),
                *(np.arange(s, s + (w or c)) for s, c, w in zip(starts, counts, written, strict=True)),
            ]
        )
    turn = starts + np.where(written > 0, epoch % np.maximum(written, 1), 0)
    if isinstance(sequences, PseudoTargets):
        return turn
    last = starts + counts - 1
    if isinstance(sequences, Gold):
        return np.where(golds > 0, last, turn)
    return np.where(_gold(sequences, golds > 0, np.random.default_rng([seed, 41, epoch])), last, turn)


def _gold(mixture: Mixture, has: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which of the rows that have gold are taught it."""
    if mixture.by == "request":
        return has & (rng.random(len(has)) < mixture.gold)
    both = np.flatnonzero(has)
    taught = np.zeros(len(has), bool)
    taught[rng.permutation(both)[: round(mixture.gold * len(both))]] = True
    return taught
