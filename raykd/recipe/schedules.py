"""The learning rate's schedules: names and options of `transformers.get_scheduler`. Nothing here needs transformers.

A test compares them with the installed transformers. Its `reduce_lr_on_plateau` and `greedy` are left out: their rate
is no function of the step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

SHAPES = ("linear", "cosine", "1-sqrt")  # values of warmup_type and decay_type
# name -> the options that its function takes
SCHEDULES: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
}
WHOLE = ("timescale", "num_decay_steps", "num_stable_steps")  # options that count steps
SHAPED = ("warmup_type", "decay_type")


def require_schedule(name: str, options: dict[str, Any]) -> None:
    """Raise ValueError, in one line, for a schedule that does not exist, and for options that it cannot work with."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule: no such schedule: {name!r}; {_near(name, SCHEDULES)}")
    known = SCHEDULES[name]
    for option, value in options.items():
        if not known:
            raise ValueError(f"schedule_options do nothing: the schedule is {name}")
        if option not in known:
            raise ValueError(f"schedule_options.{option}: {name} has no such option; {_near(option, known)}")
        _require_value(option, value)
    if name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and ("min_lr" in options) == (
        "min_lr_rate" in options
    ):
        raise ValueError(f"schedule_options: {name} needs either min_lr or min_lr_rate")
    if name == "warmup_stable_decay" and "num_decay_steps" not in options:
        raise ValueError(f"schedule_options: {name} needs num_decay_steps")


def _require_value(option: str, value: Any) -> None:
    if option in SHAPED:
        if value not in SHAPES:
            raise ValueError(f"schedule_options.{option}: expected one of {', '.join(SHAPES)}, found {value!r:.60}")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"schedule_options.{option}: expected a number, found {value!r:.60}")
    if option in WHOLE and (not isinstance(value, int) or value < 1):
        raise ValueError(f"schedule_options.{option}: expected a whole number above 0, found {value!r:.60}")
    if value < 0:
        raise ValueError(f"schedule_options.{option}: expected a number of 0 or more, found {value!r:.60}")


def _near(name: str, known: Iterable[str]) -> str:
    """The name that was probably meant, else all names."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
