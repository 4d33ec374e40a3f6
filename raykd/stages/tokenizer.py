"""TODO: docstring."""

from __future__ import annotations

from pathlib import Path

from raykd.data.splits import Splits
from raykd.models.tokenizers import build_tokenizer, load_tokenizer
from raykd.run.session import Session


def shared_tokenizer(session: Session, rows: Splits) -> str:
    """The folder of the tokenizer that models with random weights share; empty where there is none."""
    spec = session.recipe.tokenizer
    if spec is None:
        return ""

    def work(folder: Path) -> tuple[dict, dict]:
        pairs = rows.gold + rows.control
        texts = [e.input for e in pairs + rows.unlabelled] + [e.target or "" for e in pairs]
        sides = (session.recipe.teacher, session.recipe.student)
        generates = any(side.model.kind == "config" and side.task == "generation" for side in sides)
        build_tokenizer(spec, texts, folder, generates)
        return {"tokenizer": str(folder), "tokens": len(load_tokenizer(folder, generates))}, {}

    return session.stage("tokenizer", "tokenizer", spec.model_dump(mode="json"), work)["tokenizer"]
