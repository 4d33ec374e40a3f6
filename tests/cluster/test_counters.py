"""What Prometheus would read of a run, from a real Ray."""

from __future__ import annotations

import json
import re
import time
import urllib.request

import pytest
from conftest import ROOT
from test_label import labelled

from raykd.cluster import counters

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("ray_session")]
DASHBOARD = ROOT / "docs/grafana.json"


def read(wanted: set[str]) -> dict[tuple[str, str], float]:
    """(metric, stage) -> value, of this machine's node, once all that is wanted is there."""
    import ray

    (node,) = ray.nodes()
    until = time.monotonic() + 60
    while True:
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        lines = re.findall(r"^ray_(raykd_\w+)\{(.*?)\} (\S+)$", text, flags=re.MULTILINE)
        found = {(name, dict(re.findall(r'(\w+)="(.*?)"', tags))["stage"]): float(value) for name, tags, value in lines}
        if wanted <= {name for name, _ in found} or time.monotonic() > until:
            return found
        time.sleep(1)


def test_a_pass_is_counted(tmp_path, tiny_models):
    sampling, scripted = {"n": 2, "temperature": 1.0}, {"kind": "scripted", "function": "answers:numbered"}
    labelled(tmp_path, tiny_models["llama"], 100, sampling=sampling, engine=scripted)
    _, stats = labelled(tmp_path, tiny_models["llama"], 150, sampling=sampling, engine=scripted)
    counters.add("examples_trained", 7, "run-0", "distilled")
    counters.stage("run-0", "distilled", "train", True)
    busy = counters.Busy("run-0", "busy")
    with busy:
        time.sleep(1.2)
    wanted = {"raykd_rows_labelled_total", "raykd_rows_reused_total", "raykd_stage", "raykd_engine_busy"}
    found = read(wanted | {"raykd_tokens_generated_total", "raykd_examples_trained_total"})
    assert found["raykd_rows_labelled_total", "teacher/labels"] in (100, 50)  # of one of the two runs
    assert found["raykd_rows_reused_total", "teacher/labels"] == 100 == stats["reused_rows"]
    assert found["raykd_tokens_generated_total", "teacher/labels"] > 0
    assert found["raykd_examples_trained_total", "distilled"] == 7 and found["raykd_stage", "distilled"] == 1
    assert 0.9 < found["raykd_engine_busy", "busy"] <= 1


def test_the_dashboard_asks_for_what_there_is():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for p in panels for t in p["targets"] for name in re.findall(r"ray_(raykd_\w+)", t["expr"])}
    known = {f"raykd_{name}_total" for name in counters.COUNTERS} | {"raykd_stage", "raykd_engine_busy"}
    assert asked == known
