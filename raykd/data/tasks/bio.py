"""A reader of words with BIO tags, for slot filling."""

from __future__ import annotations

import json
from itertools import groupby

from raykd.data.tasks.parts import require_known
from raykd.data.tasks.slot_rows import FORMS, Sentence, filled_lines, slot_row


def bio(path: str, *, form: str = "interleaved") -> list[dict | str]:
    """The rows of a file of words with BIO tags, plain or gzip, in one of three layouts that its first line tells:

    - `BOS words EOS<TAB>O tags intent`, a sentence a line, as in atis.train.w-intent.iob;
    - `{"que": "words", "ans": "tags"}` a line, MCKD's records;
    - else `word ... tag` a line and blank lines between sentences (CoNLL; columns between the two are ignored).

    An I- that continues no chunk becomes a B-. A sentence that cannot be read is a text with its first line. Raises
    RecipeError for an unknown form, DataError for a file that cannot be read.
    """
    require_known("bio", "form", form, FORMS)
    lines = list(filled_lines(path))
    first = lines[0].text.strip() if lines else b""
    if first.startswith(b"BOS ") and b"\t" in first:
        return [slot_row(path, [line], _bos_to_eos, form) for line in lines]
    if first.startswith(b"{") and first.endswith(b"}"):
        return [slot_row(path, [line], _record, form) for line in lines]
    # of consecutive lines, number and place differ by the same
    sentences = groupby(enumerate(lines), key=lambda placed: placed[1].number - placed[0])
    return [slot_row(path, [line for _, line in sentence], _columns, form) for _, sentence in sentences]


def _bos_to_eos(lines: list[str]) -> Sentence:
    left, _, right = lines[0].partition("\t")
    words, tags = left.split(), right.split()
    if words[:1] + words[-1:] != ["BOS", "EOS"] or len(tags) < 2:
        raise ValueError("not BOS words EOS, a tab, O tags intent")
    return Sentence(words[1:-1], tags[1:-1], tags[-1])


def _record(lines: list[str]) -> Sentence:
    record = json.loads(lines[0])
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in ("que", "ans")):
        raise ValueError("no texts que and ans")
    return Sentence(record["que"].split(), record["ans"].split(), None)


def _columns(lines: list[str]) -> Sentence:
    columns = [line.split() for line in lines]
    for place, fields in enumerate(columns):
        if len(fields) < 2:
            raise ValueError(f"{fields[0]!r:.12} has no tag, word {place + 1}")
    return Sentence([fields[0] for fields in columns], [fields[-1] for fields in columns], None)
