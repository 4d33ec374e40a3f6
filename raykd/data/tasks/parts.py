"""Parts of a data file that share no row: test, dev, train or others, by shares and a seed."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from itertools import accumulate
from typing import TypedDict

from raykd.errors import RecipeError

SHARES = {"test": 0.1, "dev": 0.1, "train": 0.8}


class Cut(TypedDict, total=False):
    """How a reader cuts a file into parts: the share of each part, default SHARES, and a seed, default 0."""

    shares: dict[str, float] | None
    seed: int


def require_known(reader: str, argument: str, name: str, names: Collection[str]) -> None:
    """Raises RecipeError, in one line, for an argument's value that a reader does not know."""
    if name not in names:
        raise RecipeError(f"{reader}: {argument} {name!r}, expected one of {', '.join(names)}")


def check_part(reader: str, part: str, shares: dict[str, float]) -> None:
    """Raises RecipeError, in one line, for a part without a share, and for shares that are no fractions of a whole."""
    require_known(reader, "part", part, shares)
    numbers = all(isinstance(share, (int, float)) and share >= 0 for share in shares.values())
    if not numbers or not sum(shares.values()) <= 1 + 1e-9:  # 0.1, 0.1 and 0.8 are more than 1 by rounding
        raise RecipeError(f"{reader}: shares {shares!r}, expected fractions that sum to 1 at most")


def part_of(names: Iterable[str], part: str, shares: dict[str, float], seed: int) -> list[str]:
    """The names in a part, in random order; a part does not change with the shares of the parts after it."""
    order = sorted(names)
    random.Random(seed).shuffle(order)
    ends = [round(share * len(order)) for share in (0, *accumulate(shares.values()))]
    start, end = ends[list(shares).index(part) :][:2]
    return order[start:end]
