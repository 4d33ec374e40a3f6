"""Slot filling: which words of an utterance say what, and what its speaker intends.

Three target forms, all of pieces that blanks separate:

- `interleaved`: each word and its BIO tag, `play O Madonna B-artist` (MCKD's release, Zhao et al. 2024).
- `top`: brackets with labels, `[IN:PlayMusic play [SL:artist Madonna ] ]` (Gupta et al. 2018), here without nesting.
  A word that would read as a bracket has a backslash before it.
- `intent`: the intent's name alone.

A tag is `O`, `B-label` or `I-label`; a label holds no blank and no square bracket.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path

from raykd.data.tasks.formats import Format
from raykd.data.tasks.parts import SHARES, check_part, part_of, require_known
from raykd.errors import DataError

LABEL = re.compile(r"[^\s\[\]]+")
TAG = re.compile(rf"O|[BI]-{LABEL.pattern}")
INTENT = re.compile(rf"\[IN:({LABEL.pattern})")
SLOT = re.compile(rf"\[SL:({LABEL.pattern})")
OPENING = re.compile(r"\[(IN|SL):")
LIKE_A_BRACKET = re.compile(r"\\*(\]$|\[(IN|SL):)")


def interleaved(words: list[str], tags: list[str], intent: str | None = None) -> str:
    """The target `word tag word tag ...`; the intent is not in it. Raises ValueError for unequal numbers."""
    return " ".join(f"{word} {tag}" for word, tag in zip(words, tags, strict=True))


def top(words: list[str], tags: list[str], intent: str | None) -> str:
    """The target in brackets. Raises ValueError for unequal numbers, and without an intent that can be a label."""
    label = intent_only(words, tags, intent)
    pieces = [[_escaped(word)] for word, _ in zip(words, tags, strict=True)]
    for slot, start, end in chunks(tags):
        pieces[start].insert(0, f"[SL:{slot}")
        pieces[end - 1].append("]")
    return " ".join([f"[IN:{label}", *sum(pieces, []), "]"])


def intent_only(words: list[str], tags: list[str], intent: str | None) -> str:
    """The target that is the intent's name. Raises ValueError without one that can be a label."""
    if intent is None or not LABEL.fullmatch(intent):
        raise ValueError("no intent" if intent is None else f"intent {intent!r:.40} holds a blank or a bracket")
    return intent


FORMS: dict[str, Callable[[list[str], list[str], str | None], str]] = {
    "interleaved": interleaved,
    "top": top,
    "intent": intent_only,
}


def chunks(tags: list[str]) -> list[tuple[str, int, int]]:
    """Each chunk's label, first word and the word after its last.

    An I- that continues no chunk of its label begins one, as for conlleval and seqeval's default.
    """
    found: list[tuple[str, int, int]] = []
    for place, tag in enumerate(tags):
        kind, _, label = tag.partition("-")
        if kind == "I" and found and (found[-1][0], found[-1][2]) == (label, place):
            found[-1] = (label, found[-1][1], place + 1)
        elif kind in ("B", "I"):
            found.append((label, place, place + 1))
    return found


def begun(tags: list[str]) -> list[str]:
    """The same chunks in tags of which every I- continues a chunk."""
    starts = {start for _, start, _ in chunks(tags)}
    return [f"B{tag[1:]}" if place in starts else tag for place, tag in enumerate(tags)]


def words(answer: str) -> list[str]:
    """The words of an answer in the form `interleaved` or `top`."""
    return _read(answer, [])[0]


def tags(input: str, answer: str) -> list[str]:
    """A tag for each word of the input, from an answer in the form `interleaved` or, if it opens a bracket, `top`.

    Where the answer's words are not the input's, they are aligned (difflib): words changed one for one keep their
    tags, words that the answer lacks are O. What is no tag is O, too. An I- may stand without a B- before it.
    """
    right = input.split()
    said, found = _read(answer, right)
    if said == right:
        return found
    aligned = ["O"] * len(right)
    for _, start, end, said_start, said_end in SequenceMatcher(None, right, said, autojunk=False).get_opcodes():
        if end - start == said_end - said_start:  # the same words, or as many others
            aligned[start:end] = found[said_start:said_end]
    return aligned


def intent(answer: str) -> str | None:
    """The label of the first `[IN:` bracket, or an answer that is one label and nothing else; else None."""
    found = INTENT.search(answer) or re.fullmatch(rf"\s*({LABEL.pattern})\s*", answer)
    return found[1] if found else None


def _read(answer: str, right: list[str]) -> tuple[list[str], list[str]]:
    """What an answer, however damaged, gives for words, and a tag for each."""
    pieces = answer.split()
    said, found = pieces[::2], pieces[1::2]
    if len(said) == len(found) and all(map(TAG.fullmatch, found)):  # never in brackets: the last piece is a tag
        return said, found
    if any(map(OPENING.match, pieces)):
        return _read_top(pieces, set(right))
    if said != right:
        said, found = [], []
        for piece in pieces:  # a tag belongs to the word before it; any other piece, or a second tag, is a word
            if TAG.fullmatch(piece) and len(found) < len(said):
                found.append(piece)
            else:
                found += ["O"] * (len(said) - len(found))
                said.append(piece)
    found += ["O"] * (len(said) - len(found))
    return said, [tag if TAG.fullmatch(tag) else "O" for tag in found]


def _read_top(pieces: list[str], right: set[str]) -> tuple[list[str], list[str]]:
    said, found, tag = [], [], "O"
    for piece in pieces:
        if OPENING.match(piece):
            slot = SLOT.match(piece)
            tag = f"B-{slot[1]}" if slot else "O"
            continue
        word = _unescaped(piece)
        closes = piece == "]" or bool(right) and word.endswith("]") and word not in right  # some write `Madonna]`
        word = word.rstrip("]") if closes else word
        if word:
            said.append(word)
            found.append(tag)
        tag = "O" if closes or tag == "O" else f"I{tag[1:]}"
    return said, found


def _escaped(word: str) -> str:
    return f"\\{word}" if LIKE_A_BRACKET.match(word) else word


def _unescaped(piece: str) -> str:
    return piece[1:] if piece.startswith("\\") and LIKE_A_BRACKET.match(piece) else piece


def invalid_interleaved(input: str, answer: str) -> str | None:
    """Why the answer is no `interleaved` target of this input, in one line; None if it is one."""
    pieces = answer.split()
    if len(pieces) % 2:
        return f"{len(pieces)} pieces, expected a tag for each word"
    before = "O"
    for tag in pieces[1::2]:
        if not TAG.fullmatch(tag):
            return f"{tag!r:.40} is no tag"
        if tag.startswith("I-") and before[1:] != tag[1:]:
            return f"{tag!r:.40} continues nothing: before it is {before!r:.40}"
        before = tag
    return _other_words(input.split(), pieces[::2])


def invalid_top(input: str, answer: str) -> str | None:
    """Why the answer is no `top` target of this input, in one line; None if it is one."""
    first, *pieces = answer.split() or [""]
    if not INTENT.fullmatch(first):
        return f"begins with {first!r:.40}, expected [IN: and an intent"
    said, slot, filled = [], "", 0
    for left, piece in zip(reversed(range(len(pieces))), pieces, strict=True):
        if OPENING.match(piece):
            if slot or not SLOT.fullmatch(piece):
                return f"{piece!r:.40} within {slot or first!r:.40}"
            slot, filled = piece, len(said)
        elif piece != "]":
            said.append(_unescaped(piece))
        elif slot:
            if filled == len(said):
                return f"{slot!r:.40} holds no word"
            slot = ""
        elif left:
            return "goes on after the intent is closed"
        else:
            return _other_words(input.split(), said)
    return f"{slot or first!r:.40} is not closed"


def invalid_intent(input: str, answer: str) -> str | None:
    """Why the answer is no intent's name, in one line; None if it can be one."""
    name = answer.strip()
    return None if LABEL.fullmatch(name) else f"{name!r:.40} is no label" if name else "no intent"


def _other_words(right: list[str], said: list[str]) -> str | None:
    if not right:
        return "the input is empty"
    for place, (expected, word) in enumerate(zip(right, said, strict=False), start=1):
        if word != expected:
            return f"word {place} is {word!r:.40}, the input's is {expected!r:.40}"
    return None if len(said) == len(right) else f"{len(said)} words, the input has {len(right)}"


def repair_interleaved(input: str, answer: str) -> str:
    """The answer if it is well formed, else its `tags` after the input's words."""
    if invalid_interleaved(input, answer) is None:
        return answer
    return interleaved(input.split(), begun(tags(input, answer)))


def repair_top(input: str, answer: str) -> str:
    """The answer if it is well formed, else its `tags` as brackets, in those of its intent or of `IN:none`."""
    if invalid_top(input, answer) is None:
        return answer
    opening = INTENT.search(answer)
    return top(input.split(), tags(input, answer), opening[1] if opening else "none")


def repair_intent(input: str, answer: str) -> str:
    """The answer if it is well formed, else the intent in it or `none`."""
    return answer if invalid_intent(input, answer) is None else intent(answer) or "none"


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
    for line in _lines(path):
        row = _row(path, [line], _snips, form, lower)
        if isinstance(row, str):
            bad.append(row)
            continue
        first = utterances.setdefault(row["input"].lower(), {}).setdefault(row["input"], row)
        if row["target"] not in (first["target"], *first.get("references", ())):
            first.setdefault("references", []).append(row["target"])
    names = part_of(utterances, part, shares, seed)
    return bad + [row for name in names for row in utterances[name].values()]


def bio(path: str, *, form: str = "interleaved") -> list[dict | str]:
    """The rows of a file of words with BIO tags, plain or gzip, in one of three layouts that its first line tells:

    - `BOS words EOS<TAB>O tags intent`, a sentence a line, as in atis.train.w-intent.iob;
    - `{"que": "words", "ans": "tags"}` a line, MCKD's records;
    - else `word ... tag` a line and blank lines between sentences (CoNLL; columns between the two are ignored).

    An I- that continues no chunk becomes a B-. A sentence that cannot be read is a text with its first line. Raises
    RecipeError for an unknown form, DataError for a file that cannot be read.
    """
    require_known("bio", "form", form, FORMS)
    lines = list(_lines(path))
    first = lines[0][1].strip() if lines else b""
    if first.startswith(b"BOS ") and b"\t" in first:
        return [_row(path, [line], _bos_to_eos, form) for line in lines]
    if first.startswith(b"{") and first.endswith(b"}"):
        return [_row(path, [line], _record, form) for line in lines]
    # of consecutive lines, number and place differ by the same
    sentences = groupby(enumerate(lines), key=lambda found: found[1][0] - found[0])
    return [_row(path, [line for _, line in sentence], _columns, form) for _, sentence in sentences]


Line = tuple[int, bytes]
Sentence = tuple[list[str], list[str], str | None]  # words, tags, intent


def _lines(path: str) -> Iterator[Line]:
    """The lines that are not blank, with their numbers, of a plain file or a gzip."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _row(
    path: str, lines: list[Line], read: Callable[[list[str]], Sentence], form: str, lower: bool = False
) -> dict | str:
    """The row of a sentence, or why it is none; `read` raises ValueError with what is wrong with the lines."""
    number = lines[0][0]
    try:
        words, tags, intent = read([line.decode("utf-8") for _, line in lines])
        if not words or len(words) != len(tags):
            raise ValueError(f"{len(words)} words, {len(tags)} tags")
        for tag in tags:
            if not TAG.fullmatch(tag):
                raise ValueError(f"{tag!r:.16} is no tag")
        words = [word.lower() for word in words] if lower else words
        target = FORMS[form](words, begun(tags), intent)
    except (ValueError, RecursionError) as error:
        kinds = {json.JSONDecodeError: "not JSON", UnicodeDecodeError: "not UTF-8", RecursionError: "nested too deep"}
        return f"line {number}: {kinds.get(type(error), str(error))}"
    return {"id": f"{Path(path).name.partition('.')[0]}:{number}", "input": " ".join(words), "target": target}


def _snips(lines: list[str]) -> Sentence:
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
    return words, tags, record["intent"]


def _bos_to_eos(lines: list[str]) -> Sentence:
    left, _, right = lines[0].partition("\t")
    words, tags = left.split(), right.split()
    if words[:1] + words[-1:] != ["BOS", "EOS"] or len(tags) < 2:
        raise ValueError("not BOS words EOS, a tab, O tags intent")
    return words[1:-1], tags[1:-1], tags[-1]


def _record(lines: list[str]) -> Sentence:
    record = json.loads(lines[0])
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in ("que", "ans")):
        raise ValueError("no texts que and ans")
    return record["que"].split(), record["ans"].split(), None


def _columns(lines: list[str]) -> Sentence:
    columns = [line.split() for line in lines]
    for place, fields in enumerate(columns):
        if len(fields) < 2:
            raise ValueError(f"{fields[0]!r:.12} has no tag, word {place + 1}")
    return [fields[0] for fields in columns], [fields[-1] for fields in columns], None


INTERLEAVED = Format(invalid_interleaved, repair_interleaved)
TOP = Format(invalid_top, repair_top)
INTENT_NAME = Format(invalid_intent, repair_intent)
