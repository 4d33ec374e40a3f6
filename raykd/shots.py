"""Which examples a prompt shows: the first ones, others drawn for each input, or the most similar ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from raykd.data import Example
from raykd.errors import DataError
from raykd.recipe import Shots

Chooser = Callable[[list[str]], list[list[Example]]]


def chooser(shots: Shots | None, rows: Sequence[Example]) -> Chooser:
    """A function from inputs to the examples of each, in the order in which they are shown, of the candidates `rows`.

    An input is no example of its own, so it may have one less. What is drawn depends on the input alone, so that runs with other seeds find the
    answers in the store. Raises DataError where there are too few candidates.
    """
    if shots is None:
        return lambda texts: [[] for _ in texts]
    if len(rows) < shots.count:
        raise DataError(f"prompt.shots.rows: {len(rows)} rows, prompt.shots.count asks for {shots.count}")
    rank = {"first": _first, "random": _drawn, "bm25": _bm25, "embedding": _embedding}[shots.choose](shots, rows)

    def choose(texts: list[str]) -> list[list[Example]]:
        found = []
        for text, order in zip(texts, rank(texts), strict=True):
            others = [rows[i] for i in order if rows[i].input != text][: shots.count]
            nearest = shots.choose in ("bm25", "embedding") and shots.nearest != "first"
            found.append(others[::-1] if nearest else others)
        return found

    return choose


Rank = Callable[[list[str]], list[Sequence[int]]]  # inputs to numbers of candidates, the best first


def _first(shots: Shots, rows: Sequence[Example]) -> Rank:
    return lambda texts: [range(len(rows))] * len(texts)


def _drawn(shots: Shots, rows: Sequence[Example]) -> Rank:
    count = min(len(rows), shots.count + 1)

    def rank(texts: list[str]) -> list[Sequence[int]]:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
        return [np.random.default_rng(seed).choice(len(rows), count, replace=False).tolist() for seed in seeds]

    return rank


def _bm25(shots: Shots, rows: Sequence[Example]) -> Rank:
    """By BM25 (Robertson and Zaragoza 2009) of words in lower case."""
    import bm25s

    def words(texts: Sequence[str]) -> list[list[str]]:
        return [text.lower().split() for text in texts]

    index = bm25s.BM25()
    index.index(words([row.input for row in rows]), show_progress=False)
    count = min(len(rows), shots.count + 1)

    def rank(texts: list[str]) -> list[Sequence[int]]:
        found, _ = index.retrieve(words(texts), k=count, show_progress=False)
        return found.tolist()

    return rank


def _embedding(shots: Shots, rows: Sequence[Example]) -> Rank:
    """By the cosine of mean token embeddings of an encoder (Liu et al. 2022, KATE)."""
    from raykd import models

    assert shots.encoder is not None
    embed = models.embedder(shots.encoder)
    known_RH = embed([row.input for row in rows])
    count = min(len(rows), shots.count + 1)

    def rank(texts: list[str]) -> list[Sequence[int]]:
        near_TR = embed(texts) @ known_RH.T
        top = np.argpartition(-near_TR, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(near_TR, top, 1), axis=1, kind="stable")
        return np.take_along_axis(top, order, 1).tolist()

    return rank
