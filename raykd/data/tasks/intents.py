"""The target form `intent` of slot filling: the name of the speaker's intent alone."""

from __future__ import annotations

from raykd.data.tasks.formats import Format
from raykd.data.tasks.slots import LABEL, intent


def intent_name(words: list[str], tags: list[str], intent: str | None) -> str:
    """The target that is the intent's name. Raises ValueError without one that can be a label."""
    if intent is None or not LABEL.fullmatch(intent):
        raise ValueError("no intent" if intent is None else f"intent {intent!r:.40} holds a blank or a bracket")
    return intent


def invalid_intent(input: str, target: str) -> str | None:
    """Why a text is no intent's name, in one line; None if it can be one."""
    name = target.strip()
    return None if LABEL.fullmatch(name) else f"{name!r:.40} is no label" if name else "no intent"


def repair_intent(input: str, target: str) -> str:
    """The text if it can be an intent's name, else the intent in it or `none`."""
    return target if invalid_intent(input, target) is None else intent(target) or "none"


INTENT_NAME = Format(invalid_intent, repair_intent)
FORMATS = {"intent": INTENT_NAME}
