"""Which of the fields that a sweep searched mattered."""

from __future__ import annotations

import warnings
from typing import Any

from raykd.recipe.space import Objective
from raykd.report.render import short_value

LEAST_TRIALS = 8  # of fewer nothing can be said


def field_importance(done: list[dict[str, Any]], goal: Objective) -> dict[str, float]:
    """By field its share, 0 to 1, in what sets good trials apart from others (PED-ANOVA, Watanabe et al. 2023).

    Only of fields that every finished trial has; empty where there are too few trials, or nothing differs.
    """
    scored = [t for t in done if goal.metric in t["metrics"]]
    names = [name for name in (scored[0]["point"] if scored else {}) if all(name in t["point"] for t in scored)]
    names = [name for name in names if len({str(t["point"][name]) for t in scored}) > 1]
    if len(scored) < LEAST_TRIALS or not names:
        return {}
    import optuna

    domains = {name: _domain([t["point"][name] for t in scored]) for name in names}
    numeric = [name for name, domain in domains.items() if isinstance(domain, optuna.distributions.FloatDistribution)]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize" if goal.direction == "min" else "maximize")
    for t in scored:
        point = {n: float(t["point"][n]) if n in numeric else short_value(t["point"][n]) for n in names}
        value = t["metrics"][goal.metric]
        study.add_trial(optuna.trial.create_trial(params=point, distributions=domains, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _domain(values: list[Any]) -> Any:
    """Optuna's distribution of a field that has these values."""
    import optuna

    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        low, high = float(min(values)), float(max(values))
        return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 10)
    return optuna.distributions.CategoricalDistribution(sorted({short_value(value) for value in values}))
