"""Rows of slot filling from the sentences of a file, for its readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raykd.data.tasks.intents import intent_name
from raykd.data.tasks.interleaved import interleaved
from raykd.data.tasks.lines import read_lines, row_id
from raykd.data.tasks.slots import TAG, to_iob2
from raykd.data.tasks.top import top

# how a target is written from words, tags and the intent, by the name of its form
FORMS: dict[str, Callable[[list[str], list[str], str | None], str]] = {
    "interleaved": interleaved,
    "top": top,
    "intent": intent_name,
}


class Line(NamedTuple):
    """A line of a file: its number, from 1, and its bytes."""

    number: int
    text: bytes


class Sentence(NamedTuple):
    """An utterance: its words, a tag for each, and the intent, where the file states one."""

    words: list[str]
    tags: list[str]
    intent: str | None


def filled_lines(path: str) -> Iterator[Line]:
    """The lines that are not blank, of a plain file or a gzip. Raises DataError for a file that cannot be read."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield Line(number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def slot_row(
    path: str, lines: list[Line], parse: Callable[[list[str]], Sentence], form: str, lower: bool = False
) -> dict | str:
    """The row {id, input, target} of a sentence, or a text that says why it is none.

    parse   reads the sentence from its lines; raises ValueError with what is wrong with them
    lower   lower the words, not the labels
    """
    number = lines[0].number
    try:
        words, tags, intent = parse([line.text.decode("utf-8") for line in lines])
        if not words or len(words) != len(tags):
            raise ValueError(f"{len(words)} words, {len(tags)} tags")
        for tag in tags:
            if not TAG.fullmatch(tag):
                raise ValueError(f"{tag!r:.16} is no tag")
        words = [word.lower() for word in words] if lower else words
        target = FORMS[form](words, to_iob2(tags), intent)
    except (ValueError, RecursionError) as error:
        kinds = {json.JSONDecodeError: "not JSON", UnicodeDecodeError: "not UTF-8", RecursionError: "nested too deep"}
        return f"line {number}: {kinds.get(type(error), str(error))}"
    return {"id": row_id(path, number), "input": " ".join(words), "target": target}
