"""The Grafana dashboard asks for metrics and labels that the service has."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from paths import REPO

SERVICE_METRICS = REPO / "serve" / "service_metrics.py"
DASHBOARD = REPO / "cluster" / "grafana-dashboard.json"
# In a process of its own: the client library is told once a process where its files lie.
RENDER = """
import sys
from serve.service_metrics import Metrics
made = Metrics(sys.argv[1])
made.requests.labels("/v1/recommend", "200").inc()
made.request_seconds.labels("/v1/recommend").observe(0.01)
made.stages({"tower": 0.001})
made.call_requests.observe(1)
for counter in (made.fallbacks, made.degraded, made.events, made.items, made.export_failures):
    counter.inc()
made.swaps.labels("done").inc()
made.arm_answers.labels("test", "arm", "v1").inc()
made.arm_events.labels("test", "arm", "click").inc()
made.count_list_event("v1", True)
made.histories.labels("kept").inc()
made.rule_changes.labels("done").inc()
made.model.labels("v1").set(1)
for gauge in (made.waiting, made.live_items, made.events_not_exported, made.other_services):
    gauge.set(1)
print(made.render().decode())
"""


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> dict[str, set[str]]:
    """Names of the labels of each metric that the service has."""
    command = [sys.executable, "-c", RENDER, str(tmp_path_factory.mktemp("metrics"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, set[str]] = {}
    for name, inside in re.findall(r"^(ctxrec_\w+)(?:\{(.*?)\})? ", done.stdout, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', inside))
    return found


def check(queries: list[str], labels: dict[str, set[str]]) -> set[str]:
    """Hold metrics and labels of the queries to the service's; returns the metrics."""
    asked = set()
    for query in queries:
        names = re.findall(r"ctxrec_\w+", query)
        asked |= set(names)
        for name in names:
            assert name in labels, f"{name} of {query}"
        known = set().union(*(labels[name] for name in names))
        used = set(re.findall(r"[{,](\w+)=", query))
        for group in re.findall(r"(?:by|ignoring) ?\(([^)]*)\)", query):
            used |= set(re.split(r"[ ,]+", group))
        assert used <= known, f"{used - known} of {query}"
    return asked


def test_every_metric_of_the_dashboard_exists_with_its_labels(labels):
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) >= 12
    asked = check(queries, labels)
    families = {re.sub(r"_(total|sum|count|bucket)$", "", name) for name in labels}
    declared = set(re.findall(r'"(ctxrec_\w+)",', SERVICE_METRICS.read_text()))
    assert families >= declared, "a metric with labels is there once it was counted"
    assert families == {re.sub(r"_(total|sum|count|bucket)$", "", name) for name in asked}, "each metric is shown"


def test_every_alarm_of_the_runbook_asks_for_what_the_service_has(labels):
    text = (DASHBOARD.parent / "README.md").read_text()
    alarms = dict(re.findall(r"^\| ([^|]+) \| `([^`]*ctxrec_[^`]*)`", text, re.MULTILINE))
    assert len(alarms) >= 7 and check(list(alarms.values()), labels)
    rows = text.split("| what it means |")[1].split("\n\n")[0].splitlines()[2:]
    explained = {row.split("|")[1].split("(")[0].strip() for row in rows}
    assert set(alarms) <= explained, "each alarm has its meaning"
