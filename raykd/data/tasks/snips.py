"""A reader of Snips utterances (Coucke et al. 2018), for slot filling."""

from __future__ import annotations

import json
import re

from raykd.data.tasks.parts import SHARES, check_part, part_of, require_known
from raykd.data.tasks.slot_rows import FORMS, Sentence, filled_lines, slot_row


def snips(
    path: str,
    part: str,
    *,
    form: str = "interleaved",
    shares: dict[str, float] | None = None,
    seed: int = 0,
    lower: bool = False,
) -> list[dict | str]:
    """The rows of a part of a file of Snips utterances, `{intent, data: [{text, entity?}]}` a line, plain or gzip.

    `shares` are the parts' shares of the distinct utterances, default 0.1 test, 0.1 dev, 0.8 train; what they leave
    is unused. A part does not change with those after it. Utterances equal but for blanks and case are in one part;
    those with the same words are one row, whose `references` are the further targets. Rows come in random order.

    Words are what blanks separate. A word of which only a piece is an entity, `Madonna's`, belongs to it whole; of
    two entities in a word the first has it. `lower` lowers words, not labels.

    A line that cannot be read is a text in every part. Raises RecipeError for a part, form or shares that make no
    sense, DataError for a file that cannot be read.
    """
    shares = SHARES if shares is None else shares
    require_known("snips", "form", form, FORMS)
    check_part("snips", part, shares)
    bad: list[dict | str] = []
    utterances: dict[str, dict[str, dict]] = {}  # equal but for case, then the rows by input
    for line in filled_lines(path):
        row = slot_row(path, [line], _utterance, form, lower)
        if isinstance(row, str):
            bad.append(row)
            continue
        first = utterances.setdefault(row["input"].lower(), {}).setdefault(row["input"], row)
        if row["target"] not in (first["target"], *first.get("references", ())):
            first.setdefault("references", []).append(row["target"])
    names = part_of(utterances, part, shares, seed)
    return bad + [row for name in names for row in utterances[name].values()]


def _utterance(lines: list[str]) -> Sentence:
    record = json.loads(lines[0])
    if not isinstance(record, dict) or not isinstance(record.get("intent"), str):
        raise ValueError("no intent")
    pieces = record.get("data")
    if not isinstance(pieces, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in pieces):
        raise ValueError("data is no list of {text, entity?}")
    owners = [number for number, piece in enumerate(pieces) for _ in piece["text"]]  # of each character
    words, tags, before = [], [], None
    for word in re.finditer(r"\S+", "".join(piece["text"] for piece in pieces)):
        inside = (n for n in owners[word.start() : word.end()] if pieces[n].get("entity") is not None)
        owner = next(inside, None)
        words.append(word[0])
        tags.append("O" if owner is None else f"{'I' if owner == before else 'B'}-{pieces[owner]['entity']}")
        before = owner
    return Sentence(words, tags, record["intent"])
