"""`prepare` and time zones: times without an offset, hours of events, and what a person is told of it."""

from __future__ import annotations

import dataclasses
import datetime
import zoneinfo
from itertools import pairwise

import pytest
from prepared_logs import LAST, LOG, histories, run, write_csv, write_spec

from ctxrec.core import schema
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.ingest.guess import guess, sample_files
from ctxrec.ingest.guess.spec_text import spec_text
from ctxrec.ingest.prepare_report import summary
from ctxrec.ingest.source import fingerprint, inspect_source

NEW_YORK = zoneinfo.ZoneInfo("America/New_York")
IN_NEW_YORK = LOG + 'timezone = "America/New_York"\n' + LAST
BEGIN = int(datetime.datetime(2024, 3, 8, tzinfo=NEW_YORK).timestamp())  # two days before the clock is put forward
MOMENTS = [BEGIN + 5_000 * n for n in range(60)]


def test_local_texts_equal_epoch_numbers_of_the_same_instants(ray_cluster, tmp_path):
    found = {}
    for form in ("text", "epoch"):
        folder = tmp_path / form
        folder.mkdir()
        shown = [datetime.datetime.fromtimestamp(at, NEW_YORK).replace(tzinfo=None).isoformat() for at in MOMENTS]
        times = shown if form == "text" else MOMENTS
        write_csv(folder, [(f"u{n % 5}", f"i{n % 7}", at) for n, at in enumerate(times)])
        data = run(folder, IN_NEW_YORK)
        found[form] = histories(data)
        assert "from 2024-03-08T00:00:00 to 2024-03-11T10:56:40 (America/New_York)" in summary(data)
    assert repr(found["text"]) == repr(found["epoch"]), "as texts, because missing numbers are no numbers"
    for user in found["text"].values():
        local = [datetime.datetime.fromtimestamp(us / 1e6, NEW_YORK) for us in user[schema.EVENT_TIMES]]
        assert user["hour"] == [at.hour for at in local] and user["weekday"] == [at.weekday() for at in local]
        assert user[schema.EVENT_GAPS][1:] == [b.timestamp() - a.timestamp() for a, b in pairwise(local)]
    offsets = {datetime.datetime.fromtimestamp(at, NEW_YORK).utcoffset() for at in MOMENTS}
    assert len(offsets) == 2, "the log reaches over a change of the clock"


def test_positions_are_said_to_be_no_clock(ray_cluster, tmp_path):
    write_csv(tmp_path, [(f"u{n % 6}", f"i{n % 7}", n // 6) for n in range(60)])
    data = run(tmp_path, LOG + LAST)
    assert "note: times look like positions (0 to 9), not a clock: hour, weekday and month say nothing" in summary(data)
    assert data.features.clock is False
    for user in histories(data).values():
        assert set(user["hour"]) == {0} and set(user["weekday"]) == {3} and set(user["month"]) == {1}


def test_a_folder_that_was_prepared_before_zones_is_reused(tmp_path):
    write_csv(tmp_path, [("u1", "i1", BEGIN)])
    prints = []
    for zone in ("", 'timezone = "UTC"\n', 'timezone = "Asia/Shanghai"\n'):
        source = inspect_source(load_spec(write_spec(tmp_path, LOG + zone + LAST)))
        prints.append(fingerprint(source, load_config(None, ())))
    assert prints[0] == prints[1] != prints[2]
    older = load_spec(write_spec(tmp_path, LOG + LAST)).to_dict()
    assert older["events"].pop("timezone") == "UTC"
    spec = load_spec(write_spec(tmp_path, LOG + LAST))
    assert type(spec).from_dict(older) == spec


def test_a_wrong_zone_in_a_spec_names_those_that_are_spelled_alike(tmp_path):
    with pytest.raises(UserError, match=r'events.timezone is \'Asia/Shanghia\'.* such as "Asia/Shanghai"'):
        load_spec(write_spec(tmp_path, LOG + 'timezone = "Asia/Shanghia"\n'))
    with pytest.raises(UserError, match=r"valid keys are path, .*timezone"):
        load_spec(write_spec(tmp_path, LOG + 'time_zone = "UTC"\n'))


@pytest.mark.parametrize(
    ("times", "line", "doubt"),
    [
        (
            ["2024-03-08T08:00:00", "2024-03-08T09:30:00"],
            '# timezone = "UTC"',
            "names no time zone; it is read as UTC. Name",
        ),
        (["2024-03-08T08:00:00Z", "2024-03-08T09:30:00Z"], '# timezone = "UTC"', None),
        ([BEGIN, BEGIN + 60], '# timezone = "UTC"', None),
        ([3, 10], None, "timestamp: times look like positions (3 to 10), not a clock"),
        ([3, 3_000_000], None, "times are small (3 to 3e+06) and are read as seconds since 1970"),
    ],
)
def test_init_writes_the_key_and_says_what_it_is_not_sure_of(tmp_path, times, line, doubt):
    write_csv(tmp_path, [(f"u{n % 5}", f"i{n % 7}", times[n % 2]) for n in range(60)])
    made = guess([sample_files(str(tmp_path / "events.csv"))])
    text = " ".join(spec_text(made, folder=str(tmp_path)).replace("\n#?  ", "").split())
    assert ("# timezone" in text) is (line is not None) and (line or "") in text
    assert (doubt or "") in text and ("names no time zone" in text) is (doubt is not None and "no time zone" in doubt)


def test_a_context_column_called_timezone_is_a_feature(ray_cluster, tmp_path):
    rows = [(f"u{n % 5}", f"i{n % 7}", BEGIN + 60 * n, "east" if n % 2 else "west") for n in range(60)]
    write_csv(tmp_path, rows, header="user_id,item_id,timestamp,timezone")
    data = run(tmp_path, LOG + '[events.context]\ncategorical = ["timezone"]\n' + LAST)
    assert sorted(data.features.context_categories["timezone"]) == ["east", "west"]
    assert "the column 'timezone' is a feature, so a request cannot name a time zone of its own" in summary(data)
    assert dataclasses.asdict(data.features)["clock"] is True
