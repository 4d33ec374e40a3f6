"""Shots, the examples that a prompt shows: the first ones, others drawn for each input, or the most similar ones."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from raykd.data.examples import Example
from raykd.errors import DataError
from raykd.recipe.prompts import Shots

COMPARED = 256  # inputs that are compared with all candidates at once
Selector = Callable[[list[str]], list[list[Example]]]
Rank = Callable[[list[str]], list[Sequence[int]]]  # inputs to numbers of candidates, the best first


def shot_selector(shots: Shots | None, rows: Sequence[Example]) -> Selector:
    """A function from inputs to the examples of each, out of the candidates `rows`, in the order of the prompt.

    An input is never its own example, so it has fewer examples if there are no other candidates. Random draws depend
    only on the input and the candidates, so that runs with other seeds find the same prompts in the store. Raises
    DataError if there are too few candidates.
    """
    if shots is None:
        return lambda texts: [[] for _ in texts]
    if len(rows) < shots.count:
        raise DataError(f"prompt.shots.rows: {len(rows)} rows, prompt.shots.count asks for {shots.count}")
    inputs = [row.input for row in rows]
    most = min(len(rows), shots.count + max(Counter(inputs).values()))  # enough also without one input's
    rankings = {"first": _first, "random": _drawn, "bm25": _bm25, "embedding": _embedding}
    rank = rankings[shots.choose](shots, inputs, most)
    reverse = shots.choose in ("bm25", "embedding") and shots.nearest != "first"

    def select(texts: list[str]) -> list[list[Example]]:
        examples_by_input = []
        for text, order in zip(texts, rank(texts), strict=True):
            examples = list(itertools.islice((rows[i] for i in order if inputs[i] != text), shots.count))
            examples_by_input.append(examples[::-1] if reverse else examples)
        return examples_by_input

    return select


def _first(shots: Shots, inputs: list[str], most: int) -> Rank:
    return lambda texts: [range(most)] * len(texts)


def _drawn(shots: Shots, inputs: list[str], most: int) -> Rank:
    def rank(texts: list[str]) -> list[Sequence[int]]:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
        return [np.random.default_rng(seed).choice(len(inputs), most, replace=False).tolist() for seed in seeds]

    return rank


def _bm25(shots: Shots, inputs: list[str], most: int) -> Rank:
    """By BM25 (Robertson and Zaragoza 2009, as Lucene has it) of words and marks in lower case.

    Candidates that share no word with an input follow in their own order.
    """
    import bm25s

    def words(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text.lower())

    index = bm25s.BM25()
    candidates = [words(text) for text in inputs]
    if not any(candidates):
        raise DataError("prompt.shots.rows: choose: bm25 compares words, and no input has any")
    index.index(candidates, show_progress=False)
    nothing_R = np.zeros(len(candidates), np.float32)  # for an input without words, which bm25s refuses

    def rank(texts: list[str]) -> list[Sequence[int]]:
        queries = [words(text) for text in texts]
        return [_best(index.get_scores(query) if query else nothing_R, most) for query in queries]

    return rank


def _embedding(shots: Shots, inputs: list[str], most: int) -> Rank:
    """By the cosine of mean token embeddings of an encoder (Liu et al. 2022, KATE)."""
    from raykd.models.load import embedder

    assert shots.encoder is not None
    embed = embedder(shots.encoder)
    candidates_RH = np.nan_to_num(embed(inputs))  # a text without tokens has no direction

    def rank(texts: list[str]) -> list[Sequence[int]]:
        near: list[Sequence[int]] = []
        for start in range(0, len(texts), COMPARED):
            near_TR = np.nan_to_num(embed(texts[start : start + COMPARED])) @ candidates_RH.T
            near += [_best(near_R, most) for near_R in near_TR]
        return near

    return rank


def _best(scores_R: np.ndarray, most: int) -> list[int]:
    """The places of the `most` highest scores, the highest first; of equal ones the first."""
    lowest = np.partition(scores_R, -most)[-most]
    above, equal = np.flatnonzero(scores_R > lowest), np.flatnonzero(scores_R == lowest)
    ordered = above[np.argsort(-scores_R[above], kind="stable")]
    return [*ordered.tolist(), *equal[: most - len(above)].tolist()]
