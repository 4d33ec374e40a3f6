"""The target form `top` of slot filling: brackets with labels, `[IN:PlayMusic play [SL:artist Madonna ] ]`.

It is that of Gupta et al. 2018, here without nesting. A word that would read as a bracket has a backslash before it.
"""

from __future__ import annotations

from raykd.data.tasks.formats import Format
from raykd.data.tasks.intents import intent_name
from raykd.data.tasks.slots import INTENT, OPENING, SLOT, chunks, escaped, tags, unescaped
from raykd.data.tasks.words import other_words


def top(words: list[str], tags: list[str], intent: str | None) -> str:
    """The target in brackets. Raises ValueError for unequal numbers, and without an intent that can be a label."""
    label = intent_name(words, tags, intent)
    pieces = [[escaped(word)] for word, _ in zip(words, tags, strict=True)]
    for chunk in chunks(tags):
        pieces[chunk.start].insert(0, f"[SL:{chunk.label}")
        pieces[chunk.end - 1].append("]")
    return " ".join([f"[IN:{label}", *sum(pieces, []), "]"])


def invalid_top(input: str, target: str) -> str | None:
    """Why a text is no `top` target of this input, in one line; None if it is one."""
    first, *pieces = target.split() or [""]
    if not INTENT.fullmatch(first):
        return f"begins with {first!r:.40}, expected [IN: and an intent"
    words, slot, words_before = [], "", 0
    for left, piece in zip(reversed(range(len(pieces))), pieces, strict=True):
        if OPENING.match(piece):
            if slot or not SLOT.fullmatch(piece):
                return f"{piece!r:.40} within {slot or first!r:.40}"
            slot, words_before = piece, len(words)
        elif piece != "]":
            words.append(unescaped(piece))
        elif slot:
            if words_before == len(words):
                return f"{slot!r:.40} holds no word"
            slot = ""
        elif left:
            return "goes on after the intent is closed"
        else:
            return other_words(input.split(), words)
    return f"{slot or first!r:.40} is not closed"


def repair_top(input: str, target: str) -> str:
    """The text if it is a target of this input, else its `tags` as brackets, within its intent's or `IN:none`."""
    if invalid_top(input, target) is None:
        return target
    opening = INTENT.search(target)
    return top(input.split(), tags(input, target), opening[1] if opening else "none")


TOP = Format(invalid_top, repair_top)
FORMATS = {"top": TOP}
