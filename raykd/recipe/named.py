"""Sections by names of the user's: `teachers: {NAME: ...}`, `passes: {NAME: ...}`, `data.test: {NAME: ...}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def check_one_named(value: Any, noun: str, example: str) -> None:
    """Raise ValueError where a mapping is not one section by a name of the user's. Other values are left to pydantic.

    value    what a recipe has there, before it is validated
    noun     what the section describes, such as "teacher"
    example  the content of the right mapping, for the message, such as "main: {model: ...}"
    """
    if not isinstance(value, Mapping):
        return
    names = ", ".join(map(str, value)) or "nothing"
    if not value or not all(part is None or isinstance(part, (Mapping, BaseModel)) for part in value.values()):
        raise ValueError(f"expected one {noun} by its name, such as {{{example}}}, found {names:.80}")
    if len(value) > 1:
        raise ValueError(f"one {noun} is used so far, found {names:.80}")
    for name in value:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"expected a name of letters, digits and _ that begins with no digit, found {name!r:.80}")
