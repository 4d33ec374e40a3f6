"""TODO: docstring."""

from __future__ import annotations

from raykd.data.examples import (
    Example,
)
from raykd.run.folder import Run
from raykd.stages.labelling import TEACHER_LINEAGE, Labelling
from raykd.stages.rows import output_format

PREVIEWED, SHOWN = 1000, 8  # inputs of a labelling that are judged, and answers that are shown, by `raykd label`


def preview_pseudo_targets(run: Run, given: Labelling) -> list[str]:
    """A few answers of a labelling, a line each, and how many of the first thousand inputs' are not of the format."""
    form, name = output_format(run), run.recipe.pseudo_targets.format
    answers = [e for several in given.answers(0, TEACHER_LINEAGE, PREVIEWED) for e in several]
    reasons = [form.invalid(e.input, e.target or "") for e in answers]

    def line(example: Example, reason: str | None) -> str:
        shown = (" ".join((text or "").split()) for text in (example.input, example.target))
        return " => ".join(f"{text:.60}" for text in shown) + (f"   ({reason})" if reason else "")

    lines = [line(e, reason) for e, reason in list(zip(answers, reasons, strict=True))[:SHOWN]]
    if name != "text":
        wrong = sum(reason is not None for reason in reasons)
        lines.append(f"{wrong} of the first {len(answers)} answers are not of the format {name}")
    return lines
