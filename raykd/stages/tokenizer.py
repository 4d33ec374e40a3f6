"""The stage `tokenizer`: one tokenizer for all models that begin with random weights."""

from __future__ import annotations

from pathlib import Path

from raykd.data.splits import Splits
from raykd.models.tokenizers import build_tokenizer, load_tokenizer
from raykd.run.session import Session


def shared_tokenizer(session: Session, splits: Splits) -> str:
    """The folder of the tokenizer that models with random weights share; empty if the recipe has none.

    It is built from the inputs, and from the targets of gold and control splits.
    """
    spec = session.recipe.tokenizer
    if spec is None:
        return ""

    def work(folder: Path) -> tuple[dict, dict]:
        pairs = splits.gold + splits.control
        texts = [e.input for e in pairs + splits.unlabelled] + [e.target or "" for e in pairs]
        roles = (session.recipe.teacher, session.recipe.student)
        generates = any(role.model.kind == "config" and role.task == "generation" for role in roles)
        build_tokenizer(spec, texts, folder, generates)
        return {"tokenizer": str(folder), "tokens": len(load_tokenizer(folder, generates))}, {}

    return session.stage("tokenizer", "tokenizer", spec.model_dump(mode="json"), work)["tokenizer"]
