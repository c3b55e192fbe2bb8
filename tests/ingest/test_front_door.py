"""From a file as somebody finds it to prepared data: what `init` writes is what `prepare` takes, and the numbers are right."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_logs import LAST, LOG, histories, rejected, run, write_csv

from ctxrec.core import schema
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest.guess import guess, sample_files
from ctxrec.ingest.guess.spec_text import spec_text
from ctxrec.ingest.pipeline import prepare
from ctxrec.ingest.prepare_report import summary

BEGIN = datetime.datetime(2021, 1, 1, 8, 26)
MOMENTS = [BEGIN + datetime.timedelta(hours=7 * n) for n in range(120)]
PRICES = [n + 0.25 + 1000 * (n % 2) for n in range(120)]


def german(number: float) -> str:
    """A number with a decimal comma and points between its thousands."""
    return f"{number:,.2f}".translate(str.maketrans(",.", ".,"))


def by_form(row: str, header: str) -> str:
    """A text file of 120 rows; `row` is a format with u, i, t and p for user, item, time and price."""
    rows = [
        row.format(
            u=f"{n % 9:03d}", i=f"A{n % 13}", t=at, p=german(price), p_us=f"{price:,.2f}", ms=at.timestamp() * 1000
        )
        for n, (at, price) in enumerate(zip(MOMENTS, PRICES, strict=True))
    ]
    return "\n".join([header, *rows]) + "\n"


FILES = {
    "semicolons and decimal commas": ("a.csv", by_form("{u};{i};{t:%d.%m.%Y %H:%M};{p}", "Kunde;Artikel;Datum;Preis"), "utf-8"),
    "tildes": ("a.csv", by_form("{u}~{i}~{t:%Y-%m-%d %H:%M}~{p_us}", "customer~sku~date~price"), "utf-8"),
    "a mark of the byte order": ("a.csv", by_form('{u},{i},{t:%d/%m/%Y %H:%M},"{p}"', "user,item,date,price"), "utf-8-sig"),
    "UTF-16": ("a.csv", by_form("{u}\t{i}\t{t:%d.%m.%y %H.%M}\t{p}", "Kundennr\tArtikelnr\tDatum\tPreis"), "utf-16"),
    "dates of the US": ("a.csv", by_form('{u},{i},{t:%m/%d/%Y %I:%M %p},"{p_us}"', "user_id,sku,order date,price"), "utf-8"),
    "quoted line ends": ("a.csv", by_form('{u},{i},{t:%d-%b-%Y %H:%M},"{p}","a ""b""\nc"', "user,item,date,price,note"), "utf-8"),
    "lines of JSON": (
        "a.jsonl",
        by_form('{{"user": "{u}", "item": "{i}", "at": "{t:%d/%m/%Y %H:%M}", "price": "{p}"}}', "").lstrip("\n"),
        "utf-8",
    ),
    "digits": ("a.csv", by_form("{u};{i};{t:%Y%m%d%H%M};{p}", "user;item;zeit;price"), "cp1252"),
    "milliseconds as floats": ("a.csv", by_form("{u}|{i}|{t:%s}.0|{p}", "user|item|ts|price").replace(".0|", "000.0|"), "utf-8"),
    "times of web servers": ("a.csv", by_form("{u}\t{i}\t{t:%d/%b/%Y:%H:%M:%S +0000}\t{p}", "user\titem\ttime\tprice"), "utf-8"),
}  # fmt: skip


def front_door(folder, *paths) -> PreparedData:
    """`ctxrec init` and then `ctxrec prepare`."""
    found = guess([sample_files(str(path)) for path in paths])
    (folder / "dataset.toml").write_text(spec_text(found, folder=str(folder)), encoding="utf-8")
    return prepare(load_spec(str(folder / "dataset.toml")), str(folder / "out"), load_config(None, ()))


@pytest.mark.parametrize("shape", FILES)
def test_a_file_as_somebody_finds_it_is_read_whole(ray_cluster, tmp_path, shape):
    name, text, encoding = FILES[shape]
    (tmp_path / name).write_bytes(text.encode(encoding))
    data = front_door(tmp_path, tmp_path / name)
    assert data.meta["counts"]["events"] == 120 and not data.meta["counts"]["rejects"], summary(data)
    rows = histories(data)
    assert len(rows) == 9
    moments = sorted(time for row in rows.values() for time in row[schema.EVENT_TIMES])
    assert moments == [int(at.replace(tzinfo=datetime.UTC).timestamp() * 1e6) for at in MOMENTS]
    prices = sorted(value for row in rows.values() for value in row["values"])
    np.testing.assert_allclose(prices, sorted(PRICES), rtol=1e-6)


def test_a_catalogue_and_users_with_decimal_commas(ray_cluster, tmp_path):
    write_csv(tmp_path, [(f"u{n % 5}", f"i{n % 7}", f"{n % 28 + 1:02d}.03.2021") for n in range(60)])
    rows = "\n".join(f"i{n};Thing number {n};{german(n * 400.5)}" for n in range(7))
    (tmp_path / "items.csv").write_text(f"item_id;title;Preis\n{rows}\n")
    rows = "\n".join(f"u{n};{n},5" for n in range(5))
    (tmp_path / "users.csv").write_text(f"user_id;age\n{rows}\n")
    data = front_door(tmp_path, *(tmp_path / f"{name}.csv" for name in ("events", "items", "users")))
    assert data.spec.items.decimal == data.spec.users.decimal == "," and data.spec.events.decimal is None
    assert data.items.column("num_Preis").to_pylist() == [pytest.approx(n * 400.5) for n in range(7)]
    assert {user: row["user_age"] for user, row in histories(data).items()} == {f"u{n}": n + 0.5 for n in range(5)}


def test_rows_that_do_not_fit_the_format_are_rejected_with_a_reason(ray_cluster, tmp_path):
    times = [f"{n % 28 + 1:02d}/03/2021" for n in range(60)]
    times[7], times[9] = "03/31/2021", "2021-03-04"
    write_csv(tmp_path, [(f"u{n % 5}", f"i{n % 7}", at) for n, at in enumerate(times)])
    data = run(tmp_path, LOG + 'time_format = "%d/%m/%Y"\n' + LAST)
    assert data.meta["counts"]["rejects"]["unparsable time"] == 2
    assert {"03/31/2021", "2021-03-04"} <= set(rejected(tmp_path).column("timestamp").to_pylist())
    assert "times are texts of the form %d/%m/%Y, from 2021-03-01" in summary(data)
    assert "\n  note: 2 times of 60 cannot be read, and their rows are rejected. Correct time_format under" in summary(
        data
    )
    write_csv(tmp_path, [(f"u{n % 5}", f"i{n % 7}", times[n] if n % 5 else "soon") for n in range(60)])
    assert "\n  warning: 14 times of 60 cannot be read" in summary(
        run(tmp_path, LOG + 'time_format = "%d/%m/%Y"\n' + LAST)
    )


def test_times_that_cannot_be_read_name_the_key(ray_cluster, tmp_path):
    write_csv(tmp_path, [(f"u{n % 5}", f"i{n % 7}", f"{n % 28 + 1:02d}/03/2021 08:26") for n in range(60)])
    told = r'To read such as .*, write time_format = "%d/%m/%Y %H:%M" under \[events\]\. Rejected rows are kept in'
    with pytest.raises(UserError, match=told):
        run(tmp_path, LOG + LAST)
    with pytest.raises(UserError, match=r'Correct time_format .* which is "%m.%d.%Y", such as "%d/%m/%Y %H:%M" for '):
        run(tmp_path, LOG + 'time_format = "%m.%d.%Y"\n' + LAST)
    write_csv(tmp_path, [(f"u{n % 5}", f"i{n % 7}", "spring") for n in range(60)])
    with pytest.raises(
        UserError, match=r'name it as time_format under \[events\], such as time_format = "%d/%m/%Y %H:%M" for'
    ):
        run(tmp_path, LOG + LAST)


def test_a_format_for_a_column_without_texts_is_a_users_mistake(ray_cluster, tmp_path):
    table = pa.table(
        {"user_id": ["u"] * 9, "item_id": ["i"] * 9, "timestamp": pa.array(MOMENTS[:9], pa.timestamp("us"))}
    )
    pq.write_table(table, tmp_path / "events.parquet")
    spec = LOG.replace("csv", "parquet") + 'time_format = "%d/%m/%Y"\n'
    with pytest.raises(
        UserError, match=r"events.time_format is .* is timestamp\[us\], and a format is for texts; leave"
    ):
        run(tmp_path, spec + LAST)


def test_posted_events_stand_beside_a_log_of_texts(ray_cluster, tmp_path):
    """A service stores timestamps; the format is for the texts of the log alone."""
    write_csv(tmp_path, [(f"u{n % 5}", f"i{n % 7}", f"{n % 28 + 1:02d}/03/2021") for n in range(60)])
    posted = pa.table(
        {"user_id": ["new"], "item_id": ["i1"], "timestamp": pa.array(MOMENTS[:1], pa.timestamp("us", tz="UTC"))}
    )
    (tmp_path / "live" / "events").mkdir(parents=True)
    pq.write_table(posted, tmp_path / "live" / "events" / "a.parquet")
    (tmp_path / "dataset.toml").write_text('name = "t"\n' + LOG + 'time_format = "%d/%m/%Y"\n' + LAST)
    spec = load_spec(str(tmp_path / "dataset.toml"))
    data = prepare(spec, str(tmp_path / "out"), load_config(None, ()), live=str(tmp_path / "live"))
    (time,) = histories(data)["new"][schema.EVENT_TIMES]
    assert time == int(BEGIN.replace(tzinfo=datetime.UTC).timestamp() * 1e6)
    assert json.loads(json.dumps(data.meta))["spec"]["events"]["time_format"] == "%d/%m/%Y"
