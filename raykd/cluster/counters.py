"""raykd's own numbers as Ray metrics, beside Ray's and vLLM's: Prometheus finds them as `ray_raykd_...`.

All but the engines' busy share are counted in the driver, which hears of everything anyway. Needs a connected Ray.
`docs/grafana.json` is a dashboard of them.
"""

from __future__ import annotations

import threading
import time
from functools import cache

from ray.util.metrics import Counter, Gauge

OF_RUN = ("run", "stage")
COUNTERS = {
    "rows_labelled": "prompts that an engine answered",
    "tokens_generated": "tokens that engines wrote",
    "rows_reused": "prompts whose answers the store held already",
    "engine_deaths": "engines that died and were replaced",
    "examples_trained": "examples that students learnt, each time they were shown",
    "tokens_trained": "target tokens that students learnt",
}


@cache
def _counter(name: str) -> Counter:
    return Counter(f"raykd_{name}", description=COUNTERS[name], tag_keys=OF_RUN)


@cache
def _stage() -> Gauge:
    return Gauge("raykd_stage", description="1 while a stage goes on, then 0", tag_keys=(*OF_RUN, "kind"))


@cache
def _busy() -> Gauge:
    return Gauge("raykd_engine_busy", description="share of the time in which an engine had work", tag_keys=OF_RUN)


def add(name: str, amount: float, run: str, stage: str) -> None:
    """Count more of one of COUNTERS; nothing where there is nothing more."""
    if amount > 0:
        _counter(name).inc(amount, {"run": run, "stage": stage})


def stage(run: str, name: str, kind: str, going_on: bool) -> None:
    """Say that a stage began or ended."""
    _stage().set(float(going_on), {"run": run, "stage": name, "kind": kind})


class Busy:
    """How long an engine had work, told once a second at most; calls may come from several threads."""

    def __init__(self, run: str, stage: str):
        self.tags = {"run": run, "stage": stage}
        self.lock = threading.Lock()
        self.calls, self.worked = 0, 0.0
        self.since = self.told = time.monotonic()

    def __enter__(self) -> None:
        self._tell(1)

    def __exit__(self, *_: object) -> None:
        self._tell(-1)

    def _tell(self, change: int) -> None:
        with self.lock:
            now = time.monotonic()
            if self.calls:
                self.worked += now - self.since
            self.since, self.calls = now, self.calls + change
            if now - self.told >= 1:
                _busy().set(min(1.0, self.worked / (now - self.told)), self.tags)
                self.told, self.worked = now, 0.0
