"""The export of posted events: what it counts, and what it says."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, Counter, Gauge

from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.live.opening import open_store
from ctxrec.live.store import LoggedEvent
from serve.journal import FileWriter


def fake_metrics() -> SimpleNamespace:
    own = CollectorRegistry()
    return SimpleNamespace(
        events_not_exported=Gauge("waiting", "", registry=own),
        export_failures=Counter("failures", "", registry=own),
        other_services=Gauge("others", "", registry=own),
    )


def test_a_failed_export_is_counted_and_another_service_on_the_store_is_named(tmp_path: Path, caplog):
    spec = DatasetSpec.from_dict({"name": "t", "events": {"path": "events.csv"}})
    store = open_store(str(tmp_path / "store"))
    store.append([LoggedEvent("u", "i", 1)])
    metrics = fake_metrics()
    (tmp_path / "file").write_text("")  # a file where a folder should be
    places = {"events": str(tmp_path / "file" / "events"), "items": str(tmp_path / "items")}
    writer = FileWriter(store, **places, spec=spec, every_s=3600, service="first", metrics=metrics)
    writer.stop()
    assert metrics.events_not_exported._value.get() == 1 and metrics.export_failures._value.get() == 1
    places["events"] = str(tmp_path / "events")
    with caplog.at_level(logging.ERROR):
        second = FileWriter(store, **places, spec=spec, every_s=3600, service="second", metrics=metrics)
    assert "another service uses the same store (first)" in caplog.text and metrics.other_services._value.get() == 1
    second.stop()
    assert metrics.events_not_exported._value.get() == 0 and len(list((tmp_path / "events").iterdir())) == 1
    store.close()
