"""The preview of a labelling that `raykd label` prints."""

from __future__ import annotations

import itertools

from raykd.data.examples import Example
from raykd.data.sources import StoredSource
from raykd.run.session import Session
from raykd.stages.labelling import TEACHER_LINEAGE, read_samples
from raykd.stages.rows import output_format

JUDGED_INPUTS, SHOWN_LINES = 1000, 8  # inputs whose pseudo-targets are judged; pseudo-targets that are shown


def preview_pseudo_targets(session: Session, stored: StoredSource) -> list[str]:
    """Lines for the console: some pseudo-targets of the labelling's first source, and how many are invalid.

    The last line counts the invalid ones, which do not have the recipe's format, among the pseudo-targets of the first
    JUDGED_INPUTS inputs; there is no such line for the format text, which every text has.
    """
    form, name = output_format(session), session.recipe.pseudo_targets.format
    samples = read_samples(stored, stored.sources[0], TEACHER_LINEAGE, JUDGED_INPUTS)
    pseudo_targets = list(itertools.chain.from_iterable(samples))
    reasons = [form.invalid(e.input, e.target or "") for e in pseudo_targets]

    def line(example: Example, reason: str | None) -> str:
        texts = (" ".join((text or "").split()) for text in (example.input, example.target))
        return " => ".join(f"{text:.60}" for text in texts) + (f"   ({reason})" if reason else "")

    lines = [line(e, reason) for e, reason in list(zip(pseudo_targets, reasons, strict=True))[:SHOWN_LINES]]
    if name != "text":
        invalid = sum(reason is not None for reason in reasons)
        lines.append(f"{invalid} of the first {len(pseudo_targets)} pseudo-targets are not of the format {name}")
    return lines
