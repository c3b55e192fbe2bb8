"""Every key of a dataset spec does something: without it, or with another value, the prepared data differ or an error says why.

The keys come from the dataclasses of the spec, so a new key without a case fails here. The tasks of `prepare` run in this
process, one after another, as Ray would run them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from here import prepare_here

from ctxrec.core import schema, storage
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.data.events import histories_from_table
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import split_requests
from ctxrec.ingest import pipeline

SPEC: dict[str, Any] = {
    "name": "walk",
    "events": {
        "path": "events.csv", "user": "who", "item": "what", "time": "at", "timezone": "UTC", "action": "did",
        "value": "stars", "delimiter": ",", "encoding": "utf-8",
        "context": {"categorical": ["device"], "numeric": ["basket"], "text": ["search"]},
        "actions": {"buy": 1.0, "view": 0.5},
    },
    "items": {
        "path": "items.csv", "id": "sku", "text": ["title"], "categorical": ["kinds"], "numeric": ["price"],
        "image": "photo", "audio": "sound", "separators": {"kinds": "|"}, "delimiter": ",", "encoding": "utf-8",
    },
    "users": {
        "path": "users.csv", "id": "who", "text": ["about"], "categorical": ["likes"], "numeric": ["age"],
        "separators": {"likes": "|"}, "delimiter": ",", "encoding": "utf-8",
    },
    "graph": {
        "path": "kg.csv", "head": "h", "relation": "r", "tail": "t", "delimiter": ",", "encoding": "utf-8",
    },
    "split": {"strategy": "temporal", "valid": 0.2, "test": 0.2, "repeats": False},
}  # fmt: skip
# Another value of each key, which must change what is prepared; LEFT_OUT takes the key away.
LEFT_OUT = object()
CASES: dict[str, Any] = {
    "name": "other",
    "events": {"path": "events.csv"},  # all other keys of the section at their defaults: columns are missing
    "events.path": "fewer.csv",
    "events.user": "friend",
    "events.item": "other",
    "events.time": "later",
    "events.time_format": "%d.%m.%Y",
    "events.decimal": ",",
    "items.decimal": ",",
    "users.decimal": ",",
    "graph.decimal": ",",
    "events.timezone": "Asia/Tokyo",
    "events.action": LEFT_OUT,
    "events.value": LEFT_OUT,
    "events.delimiter": ";",
    "events.encoding": "utf-16",
    "events.context": LEFT_OUT,
    "events.context.categorical": [],
    "events.context.numeric": [],
    "events.context.text": [],
    "events.actions": {"buy": 1.0, "view": -1.0},
    "items": LEFT_OUT,
    "items.path": "events.csv",
    "items.id": "title",
    "items.text": [],
    "items.categorical": ["photo"],
    "items.numeric": [],
    "items.image": LEFT_OUT,
    "items.audio": LEFT_OUT,
    "items.separators": {},
    "items.delimiter": ";",
    "items.encoding": "utf-16",
    "users": LEFT_OUT,
    "users.path": "items.csv",
    "users.id": "about",
    "users.text": [],
    "users.categorical": [],
    "users.numeric": [],
    "users.separators": {},
    "users.delimiter": ";",
    "users.encoding": "utf-16",
    "graph": LEFT_OUT,
    "graph.path": "items.csv",
    "graph.head": "t",
    "graph.relation": "t",
    "graph.tail": "r",
    "graph.delimiter": ";",
    "graph.encoding": "utf-16",
    "split": LEFT_OUT,
    "split.strategy": "last",
    "split.valid": 0.4,
    "split.test": 0.4,
    "split.repeats": True,
}


def keys_of(section: type, prefix: str = "") -> Iterator[str]:
    """Every key of a section of the spec, and of the sections in it."""
    hints = typing.get_type_hints(section)
    for part in dataclasses.fields(section):
        yield prefix + part.name
        kinds = [
            kind for kind in (hints[part.name], *typing.get_args(hints[part.name])) if dataclasses.is_dataclass(kind)
        ]
        for kind in kinds:
            yield from keys_of(kind, f"{prefix}{part.name}.")


def test_every_key_has_a_case():
    known = set(keys_of(DatasetSpec))
    # What another key of the events means is walked where it is read.
    assert known - CASES.keys() <= {key for key in known if key.startswith("events.feedback")}, (
        "a new key needs a case here"
    )
    assert CASES.keys() <= known


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    events = ["who,friend,what,other,at,later,did,stars,device,basket,search"]
    for n in range(60):
        user, item, at = n % 6, (n * 7 + n // 6) % 10, 1_600_000_000 + n * 5_000
        did, device = ("buy", "view")[n % 2], ("tv", "phone")[n % 3 == 0]
        events.append(
            f"u{user},f{user % 2},i{item},x{item % 3},{at},{at + 10**7},{did},{n % 5},{device},{n / 7:.3f},hat {n % 4}"
        )
    texts = {
        "events.csv": events,
        "fewer.csv": events[:40],
        "items.csv": ["sku,title,kinds,price,photo,sound"]
        + [f"i{n},a hat {n // 2},k{n % 2}|all,{n},p{n}.png,s{n}.wav" for n in range(10)],
        "users.csv": ["who,about,likes,age", *(f"u{n},reads {n // 2} books,chess|films,{20 + n}" for n in range(6))],
        "kg.csv": ["h,r,t", *(f"i{n},made by,m{n % 2}" for n in range(10))],
    }
    for name, lines in texts.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def here(monkeypatch):
    prepare_here(monkeypatch)


def prepared(shop: Path, raw: dict[str, Any], out: Path) -> Any:
    """All that a spec gives: tables, features and counts, or the text of an error."""
    sections = {
        name: {**part, "path": str(shop / part["path"])} if isinstance(part, dict) and "path" in part else part
        for name, part in raw.items()
    }
    try:
        spec = DatasetSpec.from_dict(sections)
        data = pipeline.prepare(spec, str(out), load_config(None, ["prepare.buckets=1"]))
    except UserError as error:
        return str(error)
    return content(data)


def content(data: PreparedData) -> Any:
    told = {key: data.meta[key] for key in ("features", "counts", "split") if key in data.meta}
    media = storage.join(data.path, schema.MEDIA)
    files = data.media_kinds if storage.exists(media) else None
    table = data.read_bucket(0)
    requests = split_requests(histories_from_table(table, data.features), schema.TEST, repeats=data.spec.split.repeats)
    targets = (requests.target_offsets, requests.target_items)
    return data.spec.name, told, files, data.items.to_pylist(), table.to_pylist(), [part.tolist() for part in targets]


def changed(key: str) -> dict[str, Any]:
    """The spec with the case of a key."""
    raw = {name: part.copy() if isinstance(part, dict) else part for name, part in SPEC.items()}
    raw["events"]["context"] = raw["events"]["context"].copy()
    *outer, last = key.split(".")
    place: dict[str, Any] = raw
    for part in outer:
        place = place[part]
    if CASES[key] is LEFT_OUT:
        del place[last]
    else:
        place[last] = CASES[key]
    if key == "items.categorical":
        raw["items"]["separators"] = {}
    if key == "users.categorical":
        raw["users"]["separators"] = {}
    if key == "events.action":
        del raw["events"]["actions"]
    return raw


def test_every_key_changes_what_is_prepared(here, shop, tmp_path):
    plain = prepared(shop, SPEC, tmp_path / "plain")
    assert not isinstance(plain, str), plain
    for key in CASES:
        found = prepared(shop, changed(key), tmp_path / key)
        assert found != plain, key
        if isinstance(found, str):
            section = key.split(".")[0]
            assert section in found or str(shop) in found or "column" in found, f"{key}: {found}"
