"""Metrics of a replica for Prometheus. One answer covers all replicas of a machine.

The replicas write their numbers to files in one folder, and the replica that is asked adds them up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess, values

from ctxrec.live.store import StoreError

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of this process; make it once."""

    def __init__(self, folder: str):
        os.makedirs(folder, exist_ok=True)
        os.environ[_FOLDER] = folder
        values.ValueClass = values.get_value_class()  # Ray may have loaded the client before the folder was known
        self._folder = folder
        own: dict[str, Any] = {"registry": CollectorRegistry()}
        self.requests = Counter("ctxrec_requests", "HTTP requests", ["route", "status"], **own)
        self.request_seconds = Histogram(
            "ctxrec_request_seconds",
            "From the first byte read to the last one written",
            ["route"],
            buckets=_SECONDS,
            **own,
        )
        self.stage_seconds = Histogram(
            "ctxrec_stage_seconds",
            "Parts of a recommendation's time: parse, wait for the batch before, history, filter, tower, memory, search, rerank, arrange, serialise",
            ["stage"],
            buckets=_SECONDS,
            **own,
        )
        self.call_requests = Histogram("ctxrec_call_requests", "Requests of a call", buckets=_REQUESTS, **own)
        self.fallbacks = Counter("ctxrec_fallbacks", "Answers to users of whom nothing was known", **own)
        self.degraded = Counter("ctxrec_degraded", "Answers without what the history store holds", **own)
        self.events = Counter("ctxrec_events", "Events that were accepted", **own)
        self.events_not_exported = Gauge(
            "ctxrec_events_not_exported",
            "Posted events that no event file has yet; an alarm when it rises for several event_files_every_s",
            multiprocess_mode="livemax",
            **own,
        )
        self.export_failures = Counter(
            "ctxrec_export_failures", "Rounds in which files of events, items and users could not be written", **own
        )
        self.store_failures = Counter(
            "ctxrec_store_failures",
            "Failed calls of the store of events, items and users: busy, or damaged, full, read-only or denied, which an operator must mend",
            ["kind"],
            **own,
        )
        for kind in StoreError.KINDS:
            self.store_failures.labels(kind)  # 0 from the start, so that an alarm sees the first one
        self.other_services = Gauge(
            "ctxrec_other_services", "Other services that use the same store", multiprocess_mode="livemax", **own
        )
        self.items = Counter("ctxrec_item_changes", "Items that were put in or taken out", **own)
        self.users = Counter("ctxrec_user_changes", "Users whose attributes were stored or taken away", **own)
        self.swaps = Counter("ctxrec_model_swaps", "Changes of the model while serving", ["result"], **own)
        arm = ["experiment", "arm"]
        self.arm_answers = Counter("ctxrec_arm_answers", "Answers of an A/B test", [*arm, "version"], **own)
        self.arm_events = Counter("ctxrec_arm_events", "Events of users in an A/B test", [*arm, "action"], **own)
        self.list_events = Counter(
            "ctxrec_list_events",
            "First events of users after a list, by the version of the list and whether it had the item",
            ["version", "listed"],
            **own,
        )
        self.histories = Counter(
            "ctxrec_histories", "What was made of a history: kept from before, or read anew", ["result"], **own
        )
        self.rule_changes = Counter("ctxrec_rule_changes", "Changes of the rule file", ["result"], **own)
        self.waiting = Gauge("ctxrec_waiting", "Requests that wait or are computed", multiprocess_mode="livesum", **own)
        self.live_items = Gauge(
            "ctxrec_live_items", "Items searched beside the index", multiprocess_mode="livemax", **own
        )
        self.model = Gauge("ctxrec_model_info", "Replicas by model", ["version"], multiprocess_mode="livesum", **own)
        self._forget_the_dead()

    def count_list_event(self, version: str, listed: bool) -> None:
        """Count the first event of a user after a list of a version."""
        self.list_events.labels(version, "yes" if listed else "no").inc()

    def stages(self, seconds: Mapping[str, float]) -> None:
        """Count how many seconds each stage of a batch took."""
        for stage, value in seconds.items():
            self.stage_seconds.labels(stage).observe(value)

    def render(self) -> bytes:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=self._folder)
        return prometheus_client.generate_latest(registry)

    def close(self) -> None:
        multiprocess.mark_process_dead(os.getpid(), path=self._folder)

    def _forget_the_dead(self) -> None:
        """Remove the gauges of killed processes; their counters stay."""
        for name in os.listdir(self._folder):
            found = re.fullmatch(r"gauge_live\w*_(\d+)\.db", name)
            if found and not os.path.exists(f"/proc/{found[1]}"):
                multiprocess.mark_process_dead(int(found[1]), path=self._folder)
