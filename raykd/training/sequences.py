"""Which of its targets each row is taught in an epoch."""

from __future__ import annotations

import numpy as np

from raykd.recipe.training import Gold, Mixture, PseudoTargets, Sequences
from raykd.training.dataset import EncodedDataset


def targets_of_epoch(
    dataset: EncodedDataset, rows: np.ndarray, sequences: Sequences, seed: int, epoch: int
) -> np.ndarray:
    """Numbers of the targets that some rows are taught in an epoch: a function of its arguments alone.

    One target per row, or all its pseudo-targets (`samples: all`). A row that has only gold, or only pseudo-targets, is
    taught what it has. A row's pseudo-targets come before its gold.
    """
    starts, counts = dataset.first[rows], np.diff(dataset.first)[rows]
    golds_before = np.concatenate([[0], np.cumsum(dataset.gold)])
    golds = golds_before[starts + counts] - golds_before[starts]
    written = counts - golds
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
    return np.where(_taught_gold(sequences, golds > 0, np.random.default_rng([seed, 41, epoch])), last, turn)


def _taught_gold(mixture: Mixture, has_gold: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(R,) which rows are taught gold, of those that have gold."""
    if mixture.by == "request":
        return has_gold & (rng.random(len(has_gold)) < mixture.gold)
    rows = np.flatnonzero(has_gold)
    taught = np.zeros(len(has_gold), bool)
    taught[rng.permutation(rows)[: round(mixture.gold * len(rows))]] = True
    return taught
