"""One-line messages about recipes, of at most LONGEST characters."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 600
MOST = 5  # errors that one message names
VALUE = 80  # characters of a value
FIELD = 120  # characters of a field's name
PLACE = 200  # characters of the file's name


def shortened(text: str, most: int) -> str:
    """A text in one line, of at most `most` characters: the middle of a longer one is left out."""
    if len(text) > most:
        end = most // 3
        text = f"{text[: most - end - 5]} ... {text[-end:]}"
    return "".join(c if c.isprintable() else " " for c in text)


def one_message(where: str, lines: Sequence[str]) -> str:
    """The lines of several errors in one, after the place `where` they are from; those that do not fit are counted."""
    place, shown = shortened(where, PLACE), list[str]()
    room = LONGEST - len(place) - 20
    for line in lines[:MOST]:
        line = shortened(line, room if not shown else LONGEST)
        if shown and len(line) + 2 > room:
            break
        shown.append(line)
        room -= len(line) + 2
    more = len(lines) - len(shown)
    return f"{place}: {'; '.join(shown)}" + (f"; and {more} more" if more else "")
