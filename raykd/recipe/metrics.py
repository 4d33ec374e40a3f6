"""The sections `metrics` and `dev_metrics`: how predictions are scored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from raykd.recipe.names import MetricName
from raykd.recipe.section import Section


class Metric(Section):
    """A metric that scores predictions."""

    kind: MetricName = Field(min_length=1, description="a name in METRICS of a file of raykd.metrics, or module:NAME")


def _check_sections(value: Any) -> Any:
    """The same value. Raises ValueError for a metric that is a plain name, as recipes had them before."""
    plain = [metric for metric in value if isinstance(metric, str)] if isinstance(value, list) else []
    if plain:
        raise ValueError(f"expected sections, [{{kind: {plain[0]:.60}}}], instead of plain names")
    return value


def _check_kinds(value: list[Metric]) -> list[Metric]:
    """The same metrics. Raises ValueError for a kind that is there twice: its scores would have one name."""
    kinds = metric_kinds(value)
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice is not None:
        raise ValueError(f"kind {twice:.60} is there twice")
    return value


Metrics = Annotated[list[Metric], BeforeValidator(_check_sections), AfterValidator(_check_kinds)]


def metric_kinds(metrics: Iterable[Metric]) -> list[str]:
    """The kinds of metrics, in their order; scores have these names."""
    return [metric.kind for metric in metrics]
