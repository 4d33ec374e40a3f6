"""The splits of a run: files of examples for labelling, training, selecting checkpoints, and scoring."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from raykd.data.examples import Example, load_examples


class Splits:
    """The recipe's sets of examples, on disk until they are used. Targets of `unlabelled` serve the report only.

    A split that the run does not have is empty.
    """

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names = folder, names

    def file(self, name: str) -> Path:
        """The parquet file of a split."""
        return self.folder / f"{name}.parquet"

    def _examples(self, name: str) -> list[Example]:
        return list(load_examples(self.file(name))) if name in self.names else []

    unlabelled = cached_property(lambda self: self._examples("unlabelled"))
    gold = cached_property(lambda self: self._examples("gold"))
    dev = cached_property(lambda self: self._examples("dev"))
    test = cached_property(lambda self: self._examples("test"))
    control = cached_property(lambda self: self._examples("control"))
