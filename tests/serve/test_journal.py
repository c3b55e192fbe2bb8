"""The export of posted events: what it counts, and what it says."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.live.opening import open_store
from ctxrec.live.store import LoggedEvent, StoreError
from serve.api_answers import FieldWarning
from serve.journal import MAX_WARNINGS, FileWriter, Journal, without_effect
from serve.store_failures import StoreFailures, store_unavailable


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
    places = {
        "events": str(tmp_path / "file" / "events"),
        "items": str(tmp_path / "items"),
        "users": str(tmp_path / "users"),
    }
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


def test_a_damaged_store_is_counted_logged_once_and_told_from_a_busy_one(tmp_path: Path, caplog, monkeypatch):
    monkeypatch.setattr("ctxrec.live.sqlite._BUSY_S", 0.05)
    failures = Counter("store_failures", "", ["kind"], registry=CollectorRegistry())
    store = open_store(str(tmp_path), on_failure=StoreFailures(SimpleNamespace(store_failures=failures)))
    journal = Journal(store, lambda contexts: None)
    holder = sqlite3.connect(tmp_path / "live.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    (busy,) = journal.append([[LoggedEvent("u", "i", 1)]])
    holder.execute("ROLLBACK")
    holder.close()
    assert journal.append([[LoggedEvent("u", "i", 1)]]) == [1]
    os.truncate(tmp_path / "live.sqlite", 0)
    first, second = (journal.append([[LoggedEvent("u", "i", 1)]])[0] for _ in range(2))
    assert [error.kind for error in (busy, first, second)] == ["busy", "damaged", "damaged"]
    assert [failures.labels(kind)._value.get() for kind in ("busy", "damaged", "full")] == [1, 2, 0]
    lines = [record.getMessage() for record in caplog.records if record.name == "serve.store_failures"]
    assert len(lines) == 2 and "is damaged; this is logged once" in lines[1] and "live.sqlite was emptied" in lines[1]
    assert "try again" in store_unavailable(busy, "the events").detail
    answer = store_unavailable(first, "the events")
    assert answer.status_code == 503 and "is damaged; the events may not be stored" in answer.detail
    assert "try again" not in answer.detail and str(tmp_path) not in answer.detail
    store.close()


@pytest.mark.parametrize("kind", StoreError.KINDS)
def test_every_kind_of_failure_has_an_answer(kind):
    answer = store_unavailable(StoreError("secret", kind), "the items")
    assert (
        answer.status_code == 503 and "the items may not be stored" in answer.detail and "secret" not in answer.detail
    )


def test_what_has_no_effect_is_named_once_with_its_first_place():
    def event(item: str, action: str | None = None) -> LoggedEvent:
        return LoggedEvent("u", item, 1, action=action)

    def found(events, actions=("view", "buy")) -> list[tuple]:
        warnings = without_effect(events, actions=actions, known_items={"i1": 0, "i2": 1})
        assert all(FieldWarning.model_validate(warning) for warning in warnings)
        return [(w["type"], *w["loc"][1:], w["msg"].split(" event")[0]) for w in warnings]

    assert found([event("i1", "view"), event("i2"), event("i2", "buy")]) == []
    assert found([event("i1", "view"), event("i1", "veiw"), event("new", "veiw"), event("i2", "View")]) == [
        ("unknown_action", "events", 1, "action", "'veiw' (2"),
        ("unknown_item", "events", 2, "item_id", "'new' (1"),
        ("unknown_action", "events", 3, "action", "'View' (1"),
    ]
    at = [LoggedEvent("u", "i1", 1, context={"device": d, "place": "home"}) for d in ("tv", "fridge", "fridge")]
    (unknown,) = without_effect(
        at, actions=(), known_items={"i1": 0}, unknown_context=lambda c: [n for n, v in c.items() if v == "fridge"]
    )
    assert unknown["loc"] == ["body", "events", 1, "context", "device"] and unknown["type"] == "unknown_value"
    assert unknown["msg"].startswith("'fridge' (2 events) is no value that the model knows")
    (without,) = without_effect([event("i1", "view")], actions=(), known_items={"i1": 0})
    assert "its log has no actions" in without["msg"]
    assert len(found([event(f"n{n}") for n in range(1000)])) == MAX_WARNINGS
