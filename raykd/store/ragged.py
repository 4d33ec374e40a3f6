"""Rows of different lengths as one flat array, without a Python object for each value."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raykd.errors import StoreError

MOST_VALUES = 2**31 - 1  # values of a list column at most: Arrow's offsets are int32


class Ragged(NamedTuple):
    """N rows: row i is values[offsets[i] : offsets[i + 1]]."""

    values: np.ndarray  # (offsets[-1],)
    offsets: np.ndarray  # (N + 1,) int, from 0

    def row(self, number: int) -> np.ndarray:
        """The values of a row, as a view."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def lengths(self) -> np.ndarray:
        """(N,) how many values each row has."""
        return np.diff(self.offsets)


def ragged(column: pa.ChunkedArray) -> Ragged:
    """A list column as values and offsets: views of its memory where Arrow allows."""
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy()
    return Ragged(array.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0])


def list_array(name: str, values: np.ndarray, lengths: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """Values as an Arrow array of lists of these lengths.

    Raises StoreError, with the column's `name`, for more than MOST_VALUES values.
    """
    if values.size > MOST_VALUES:
        raise StoreError(f"{values.size} values of {name} are too many for one shard: make shard_rows smaller")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel().astype(kind.to_pandas_dtype(), copy=False), kind))
