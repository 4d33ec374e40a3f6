"""Where the sequences come from that a training learns: targets that are known before it, and samples written in it.

Everything here is a function of the seed, the epoch and the step, so that a resumed training learns the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from raykd.recipe.training import PassTargets, Sequences
from raykd.training.dataset import EncodedDataset


class Targets(NamedTuple):
    """Targets of some rows.

    numbers  (N,) of the dataset's targets. Where a sample is written instead, the target that it takes the place of
    sampled  (N,) bool, which of them are written anew
    """

    numbers: np.ndarray
    sampled: np.ndarray


def targets_of_epoch(dataset: EncodedDataset, rows: np.ndarray, sequences: Sequences, seed: int, epoch: int) -> Targets:
    """The targets that some rows are taught in an epoch, before `targets_of_step` decides what steps decide.

    A row that has no target of a source is taught what it has. A row's pseudo-targets come before its gold.
    """
    if sequences.shares is None:
        numbers = _union(dataset, rows, sequences, epoch)
        return Targets(numbers, np.zeros(len(numbers), bool))
    names = list(sequences.shares)
    if sequences.by in ("step", "batch"):
        main = max(sequences.stored(), key=lambda name: (sequences.shares or {})[name])
        return Targets(_of_source(dataset, rows, main, epoch), np.zeros(len(rows), bool))
    has_gold = _golds(dataset, rows) > 0
    rng = np.random.default_rng([seed, 41, epoch])
    source_of_row = np.full(len(rows), -1)
    drawn = np.flatnonzero(has_gold) if "gold" in names else np.arange(len(rows))  # the others have no choice
    bounds = np.cumsum(list(sequences.shares.values()))
    if sequences.by == "row":
        draws = rng.random(len(rows))[drawn]
        source_of_row[drawn] = np.searchsorted(bounds[:-1], draws, side="right")
    else:
        ends = np.round(bounds * len(drawn)).astype(int)
        source_of_row[rng.permutation(drawn)] = np.repeat(np.arange(len(names)), np.diff([0, *ends]))
    nominal = next((name for name in sequences.stored() if name != "gold"), "gold")
    numbers, sampled = _of_source(dataset, rows, nominal, epoch), np.zeros(len(rows), bool)
    for number, name in enumerate(names):
        own = source_of_row == number
        if name in sequences.samplers():
            sampled |= own
        else:
            numbers[own] = _of_source(dataset, rows[own], name, epoch)
    return Targets(numbers, sampled)


def targets_of_step(
    dataset: EncodedDataset, targets: Targets, sequences: Sequences, seed: int, step: int, epoch: int
) -> Targets:
    """The targets of a global batch, where `by` is step or batch: all of one source. Otherwise `targets` as they are.

    step: sources take turns, so that after every step each has had its share, as nearly as steps allow; with a half
    each, the student writes every second step (KD4Gen). batch: the source is drawn for each step (ATKD).
    """
    if sequences.shares is None or sequences.by not in ("step", "batch"):
        return targets
    names = [*sequences.stored(), *sequences.samplers()]
    shares = np.array([sequences.shares[name] for name in names])
    if sequences.by == "batch":
        name = names[int(np.random.default_rng([seed, 43, step]).choice(len(names), p=shares / shares.sum()))]
    else:
        name = names[source_of_step(shares, step)]
    if name in sequences.samplers():
        return Targets(targets.numbers, np.ones(len(targets.numbers), bool))
    rows = dataset.row_of[targets.numbers]
    return Targets(_of_source(dataset, rows, name, epoch), np.zeros(len(rows), bool))


def source_of_step(shares: np.ndarray, step: int) -> int:
    """The number of the source whose turn it is: the one that is furthest behind its share, the first of several."""
    counts = np.zeros(len(shares), int)
    for done in range(step % _period(shares)):
        counts[_furthest_behind(shares, counts, done)] += 1
    return _furthest_behind(shares, counts, step % _period(shares))


def _furthest_behind(shares: np.ndarray, counts: np.ndarray, done: int) -> int:
    return int(np.argmax(np.round(shares * (done + 1) - counts, 9)))


def _period(shares: np.ndarray) -> int:
    """The number of steps after which all shares have come out even, 1,000 at most."""
    periods = (length for length in range(1, 1000) if np.allclose(shares * length, np.round(shares * length)))
    return next(periods, 1000)


def row_seed(seed: int, step: int, name: str) -> int:
    """The seed of the sample that is written for a row in a step: it depends on nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=7).digest(), "big")


def _golds(dataset: EncodedDataset, rows: np.ndarray) -> np.ndarray:
    """(N,) how many gold targets each row has."""
    before = np.concatenate([[0], np.cumsum(dataset.gold)])
    return before[dataset.first[rows + 1]] - before[dataset.first[rows]]


def _of_source(dataset: EncodedDataset, rows: np.ndarray, name: str, epoch: int) -> np.ndarray:
    """One target of each row: its gold, or the next of its pseudo-targets; what it has where it lacks the source."""
    starts, counts, golds = dataset.first[rows], np.diff(dataset.first)[rows], _golds(dataset, rows)
    written = counts - golds
    turn = starts + np.where(written > 0, epoch % np.maximum(written, 1), 0)
    return np.where(golds > 0, starts + counts - 1, turn) if name == "gold" else turn


def _union(dataset: EncodedDataset, rows: np.ndarray, sequences: Sequences, epoch: int) -> np.ndarray:
    """The targets of all sources of a union, in the order of the rows, each once."""
    parts = [np.zeros(0, np.int64)]
    for source in sequences.union or ():
        if isinstance(source, PassTargets) and source.samples == "all":
            starts, counts = dataset.first[rows], np.diff(dataset.first)[rows]
            written = counts - _golds(dataset, rows)
            parts += [np.arange(s, s + (w or c)) for s, c, w in zip(starts, counts, written, strict=True)]
        else:
            name = source.name if isinstance(source, PassTargets) else source
            parts.append(_of_source(dataset, rows, name, epoch))
    return np.unique(np.concatenate(parts))


def sample_names(dataset: EncodedDataset, targets: Sequence[int]) -> list[str]:
    """For each target the name under which a sample is drawn in its place: its row's id, and its place there."""
    return [f"{dataset.id(int(dataset.row_of[t]))}#{int(t - dataset.first[dataset.row_of[t]])}" for t in targets]
