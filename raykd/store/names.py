"""Operations on the names of rows: arrays of (key, sample) pairs, 20 bytes each."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raykd.store.schema import ROW, SPAN


def row_names(rows: pa.Table) -> np.ndarray:
    """(N,) ROW: the (key, sample) of each row of a table."""
    names = np.empty(rows.num_rows, ROW)
    keys = rows["key"].combine_chunks()
    start = 16 * keys.offset
    names["key"] = np.frombuffer(keys.buffers()[1] or b"", "S16", offset=0)[start // 16 : start // 16 + len(keys)]
    names["sample"] = rows["sample"].to_numpy()
    return names


def new_rows(names: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """(N,) bool: which names are new, neither in a block of `seen` nor a repetition among themselves.

    The new names are added to `seen`, a list of sorted blocks. Blocks of similar size are joined, so that there are
    few; they take 20 bytes per row.
    """
    names = names.view("S20")
    fresh = np.zeros(len(names), bool)
    unique, first = np.unique(names, return_index=True)
    fresh[first] = True
    for block in seen:
        at = np.minimum(np.searchsorted(block, names), len(block) - 1)
        fresh &= block[at] != names
    if len(unique):
        seen.append(unique)
    while len(seen) > 1 and len(seen[-2]) <= 2 * len(seen[-1]):
        seen.append(np.sort(np.concatenate([seen.pop(), seen.pop()])))
    return fresh


def sample_spans(names: np.ndarray) -> np.ndarray:
    """An array of SPAN: (key, start, stop) for each run of a key's consecutive sample numbers."""
    names = np.sort(names.view("S20")).view(ROW)
    key, sample = names["key"], names["sample"]
    starts = np.ones(len(names), bool)
    starts[1:] = (key[1:] != key[:-1]) | (sample[1:] != sample[:-1] + 1)
    first = np.flatnonzero(starts)
    spans = np.empty(len(first), SPAN)
    spans["key"], spans["start"] = key[first], sample[first]
    spans["stop"] = sample[np.append(first, len(names))[1:] - 1] + 1
    return spans
