"""Metrics: texts in, a number out.

A metric is `metric(predictions, references) -> float`, with a list of references per prediction. Rates are in percent.
Every metric raises DataError where there is nothing to score. A file of this package ends with METRICS, a literal dict
from the names that recipes have to its metrics, and with LOWER_IS_BETTER, a literal tuple of those of which less is
better, if it has such. A file that stands there is known; recipes are checked against it without importing it.
"""

from __future__ import annotations

from collections.abc import Callable

from raykd.recipe import modules, names

Metric = Callable[[list[str], list[list[str]]], float]


def get(name: str, field: str = "metrics") -> Metric:
    """The metric of that name, or a user's own as `module:function`; `field` of the recipe names it.

    Raises RecipeError if there is none.
    """
    return names.load(names.METRIC, name, field)


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better: of a loss, and of what LOWER_IS_BETTER in its file names."""
    name = metric.removeprefix("test/")  # as trials of a sweep report it
    module, _, function = name.rpartition(":")
    file = modules.find_module(names.known_names(names.METRIC).get(name, module) or "raykd.metrics")
    return name.endswith("loss") or file is not None and function in modules.literal(file, "LOWER_IS_BETTER")
