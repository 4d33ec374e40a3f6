"""raykd's own numbers as Ray metrics, beside Ray's and vLLM's: Prometheus finds them as `ray_raykd_...`.

All but the engines' busy share are counted in the driver, which gets all numbers. Ray must be connected.
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
    "rows_reused": "prompts whose pseudo-targets the store held already",
    "engine_deaths": "engines that died and were replaced",
    "examples_trained": "examples that students learnt, each time they learnt them",
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
    """Add to one of COUNTERS, for a stage of a run. An amount that is not above 0 is ignored."""
    if amount > 0:
        _counter(name).inc(amount, {"run": run, "stage": stage})


def stage(run: str, name: str, kind: str, going_on: bool) -> None:
    """Set the gauge of a stage: 1 while it goes on, else 0."""
    _stage().set(float(going_on), {"run": run, "stage": name, "kind": kind})


class Busy:
    """A gauge of the share of the time in which an engine had work; it is set once a second at most.

    A context manager around each piece of work, which may overlap in several threads.
    """

    def __init__(self, run: str, stage: str):
        self.tags = {"run": run, "stage": stage}
        self.lock = threading.Lock()
        self.calls, self.worked = 0, 0.0
        self.since = self.reported = time.monotonic()

    def __enter__(self) -> None:
        self._count(1)

    def __exit__(self, *_: object) -> None:
        self._count(-1)

    def _count(self, change: int) -> None:
        with self.lock:
            now = time.monotonic()
            if self.calls:
                self.worked += now - self.since
            self.since, self.calls = now, self.calls + change
            if now - self.reported >= 1:
                _busy().set(min(1.0, self.worked / (now - self.reported)), self.tags)
                self.reported, self.worked = now, 0.0
