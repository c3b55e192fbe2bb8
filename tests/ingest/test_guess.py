"""`ctxrec init`: what the files of a log hold is guessed right, or is said to be unsure."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import guessed_logs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import assert_users_mistake, call
from paths import SHARED_DATA

from ctxrec.core import schema
from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.ingest.guess import Guess, guess, sample_files, sample_table
from ctxrec.ingest.guess import table_sample as sampling
from ctxrec.ingest.guess.spec_text import spec_text
from ctxrec.ingest.pipeline import prepare
from ctxrec.ingest.source import inspect_source

needs_real = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"the real data sets are not there: {SHARED_DATA}")


def of_files(paths: list[str], **options) -> Guess:
    return guess([sample_files(path) for path in paths], **options)


def made(shape: str, folder: Path) -> Guess:
    return of_files(getattr(guessed_logs, shape)(folder, np.random.default_rng(0)))


def unsure(found: Guess, key: str) -> str:
    return "\n".join(doubt.text for doubt in found.unsure if doubt.key == key)


def check_movies(found: Guess) -> None:
    spec = found.spec
    assert Path(spec.events.path).name == "ratings.csv" and "tags.csv" in unsure(found, "events")
    assert (spec.events.user, spec.events.item, spec.events.time) == ("userId", "movieId", "timestamp")
    assert spec.events.value == "rating" and spec.events.action is None and not spec.events.context.columns
    doubts = [doubt.key for doubt in found.unsure if doubt.key.startswith("events.")]
    assert doubts == ["events.feedback"], (
        "numbers of users are movies' too, and what a rating means is the owner's to say"
    )
    assert Path(spec.items.path).name == "movies.csv" and spec.items.id == "movieId"
    assert spec.items.text == ("title", "genres") and spec.items.categorical == ("genres",)
    assert spec.items.separators == {"genres": "|"} and "genres" in unsure(found, "items.separators")
    assert spec.users is None and spec.graph is None, "links.csv is no table of users"
    assert {Path(table.name).name for table in found.left_out} == {"tags.csv", "links.csv"}
    assert "tags.csv" in unsure(found, "files") and "links.csv" in unsure(found, "files")
    assert spec.split.strategy == "temporal"


def check_retail(found: Guess) -> None:
    events = found.spec.events
    assert (events.user, events.item, events.time) == ("CustomerID", "StockCode", "InvoiceDate")
    assert events.value == "Quantity" and "below 0" in unsure(found, "events.value")
    assert "missing in 2" in unsure(found, "events.user"), "a quarter of the rows has no customer"
    assert "UTC" in unsure(found, "events.time")
    context = unsure(found, "events.context")
    assert "Description is the same in all events of an item" in context
    assert "InvoiceNo" in context and "UnitPrice" in context
    assert events.context.columns in ((), ("Country",)) and found.spec.items is None


def check_hotels(found: Guess) -> None:
    events = found.spec.events
    assert (events.user, events.item, events.time, events.action) == (
        "user_id",
        "reference",
        "timestamp",
        "action_type",
    )
    assert "neither its name" in unsure(found, "events.item") and "numbers and words" in unsure(found, "events.item")
    assert "every action counts alike" in unsure(found, "events.action")
    assert set(events.context.categorical) == {"platform", "city", "device"}
    assert events.context.columns == events.context.categorical
    for column in ("session_id", "step", "current_filters", "impressions", "prices"):
        assert column in unsure(found, "events.context"), "nothing that a list has caused is context"
    assert events.value is None


def check_reviews(found: Guess) -> None:
    spec = found.spec
    assert (spec.events.user, spec.events.item, spec.events.time) == ("user_id", "item_id", "timestamp")
    assert "not a clock" in unsure(found, "events.time") and spec.split.strategy == "last"
    assert spec.items.id == "item_id" and set(spec.items.text) >= {"title", "brand", "description"}
    assert spec.items.text[0] == "title" and spec.items.categorical == ("brand",)
    assert "categories" in unsure(found, "items.columns"), "an empty column is left out and named"


def check_people(found: Guess) -> None:
    spec = found.spec
    assert (spec.events.user, spec.events.item, spec.events.value) == ("user_id", "item_id", "rating")
    assert spec.items.text == ("title", "genres") and spec.items.categorical == ("genres",)
    assert spec.items.numeric == ("year",) and not spec.items.separators
    assert [doubt.key for doubt in found.unsure] == ["events.feedback"]
    assert spec.users.id == "user_id" and set(spec.users.categorical) == {"gender", "occupation"}
    assert spec.users.numeric == ("age",)
    assert (spec.graph.head, spec.graph.relation, spec.graph.tail) == ("head", "relation", "tail")


def check_shop(found: Guess) -> None:
    spec = found.spec
    assert (spec.events.user, spec.events.item, spec.events.time) == ("customer", "sku", "at")
    assert spec.events.action == "kind" and found.actions.keys() == {"view", "cart", "purchase"}
    assert spec.events.delimiter == ";" and found.tables["events"].sample.encoding == "cp1252"
    assert "no UTF-8" in unsure(found, "events") and found.tables["events"].looks["at"].has_zone
    assert spec.events.context.categorical == ("device",) and spec.events.context.text == ("search_query",)
    assert spec.items.text == ("title", "category") and spec.items.categorical == ("category",)
    assert spec.items.numeric == ("price",) and spec.items.image == "picture"
    assert "added" in unsure(found, "items.columns")


SHAPES = {
    "movies": check_movies,
    "retail": check_retail,
    "hotels": check_hotels,
    "reviews": check_reviews,
    "people": check_people,
    "shop": check_shop,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shapes_of_known_logs_are_guessed(shape, tmp_path):
    SHAPES[shape](made(shape, tmp_path))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_of_the_files_does_not_matter(shape, tmp_path):
    paths = getattr(guessed_logs, shape)(tmp_path, np.random.default_rng(0))
    assert of_files(paths).spec == of_files(paths[::-1]).spec


@pytest.mark.parametrize("shape", SHAPES)
def test_the_written_spec_says_what_was_guessed(shape, tmp_path):
    """The text is TOML that `prepare` takes, with every column that it names in the files."""
    found = made(shape, tmp_path)
    (tmp_path / "dataset.toml").write_text(spec_text(found, folder=str(tmp_path)))
    spec = load_spec(str(tmp_path / "dataset.toml"))
    assert spec.to_dict() | {"name": ""} == found.spec.to_dict() | {"name": ""}
    inspect_source(spec)
    for line in (tmp_path / "dataset.toml").read_text().splitlines():
        assert line.startswith(("#", "  ")) or len(line) <= 160


@pytest.mark.parametrize("shape", ["movies", "shop"])
def test_prepare_takes_the_written_spec(shape, tmp_path, ray_cluster):
    paths = getattr(guessed_logs, shape)(tmp_path, np.random.default_rng(0))
    ended = call("ctxrec.init", *paths, "--out", str(tmp_path / "dataset.toml"))
    assert ended.returncode == 0, ended.stderr
    data = prepare(load_spec(str(tmp_path / "dataset.toml")), str(tmp_path / "data"), Config())
    counts = data.meta["counts"]
    assert counts["events"] == {"movies": 360, "shop": 500}[shape] and counts["items_only_in_log"] == 0
    if shape == "shop":
        assert data.meta["time_unit"] == "iso8601" and "für" in data.items.column(schema.ITEM_TEXT)[0].as_py()
    else:
        assert set(data.features.item_categories["genres"]) >= {"Action", "Comedy", "Drama"}


def test_the_command_prints_a_table_and_the_doubts(tmp_path):
    paths = guessed_logs.movies(tmp_path, np.random.default_rng(0))
    out = tmp_path / "dataset.toml"
    ended = call("ctxrec.init", *paths, "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert "events: " in ended.stdout and "360 rows, csv, delimiter ','" in ended.stdout
    row = next(line for line in ended.stdout.splitlines() if line.strip().startswith("rating"))
    assert "value" in row and "0.5 to 5" in row
    assert "not sure (" in ended.stdout and "tags.csv looks like a log too" in " ".join(ended.stdout.split())
    assert f"ctxrec prepare {out}" in ended.stdout
    before = out.read_text()
    out.write_text(before + "# mine\n")
    assert_users_mistake(call("ctxrec.init", *paths, "--out", str(out)), "is there already", "--force")
    assert out.read_text().endswith("# mine\n"), "nothing of the user's is overwritten"
    assert call("ctxrec.init", paths[0], "--out", str(out), "--force", *paths[1:]).returncode == 0, "in any order"
    assert out.read_text() == before


def test_roles_that_are_named_count(tmp_path):
    paths = guessed_logs.movies(tmp_path, np.random.default_rng(0))
    named = call("ctxrec.init", "--events", paths[3], "--items", paths[1], "--out", str(tmp_path / "d.toml"))
    assert named.returncode == 0, named.stderr
    assert load_spec(str(tmp_path / "d.toml")).events.path.endswith("tags.csv")
    assert_users_mistake(call("ctxrec.init", "--out", str(tmp_path / "e.toml")), "no file is given")
    assert_users_mistake(call("ctxrec.init", str(tmp_path / "none.csv"), "--out", str(tmp_path / "e.toml")), "none.csv")


def test_tables_in_memory_are_guessed_and_given_columns_count():
    """What `ctxrec.fit` asks for data frames whose columns say nothing."""
    rng = np.random.default_rng(0)
    log = pa.table({"a": rng.integers(0, 40, 400), "b": rng.integers(0, 60, 400), "c": 1_600_000_000 + np.arange(400)})
    tables = [sample_table("interactions", log)]
    found = guess(tables, roles={"events": "interactions"})
    assert found.spec.events.time == "c" and "by its numbers alone" in unsure(found, "events.time")
    assert "neither its name" in unsure(found, "events.user") and "neither its name" in unsure(found, "events.item")
    found = guess(tables, roles={"events": "interactions"}, columns={"user": "b", "item": "a", "time": "c"})
    assert (found.spec.events.user, found.spec.events.item) == ("b", "a")
    assert not [doubt for doubt in found.unsure if doubt.key in ("events.user", "events.item", "events.time")]
    with pytest.raises(UserError, match=r"item = 'x' is no column of interactions; found columns a, b, c"):
        guess(tables, columns={"item": "x"})


def test_a_table_of_items_tells_which_column_is_the_item():
    """Names say nothing here; the keys of the other table do."""
    rng = np.random.default_rng(0)
    log = pa.table(
        {"x": rng.integers(0, 40, 400), "y": rng.integers(500, 560, 400), "when": 1_600_000_000 + np.arange(400)}
    )
    texts = [f"{' '.join(rng.choice(guessed_logs.WORDS, 6))} {n}" for n in range(60)]
    found = guess([sample_table("t2", pa.table({"key": np.arange(500, 560), "words": texts})), sample_table("t1", log)])
    assert (found.spec.events.path, found.spec.events.item, found.spec.events.user) == ("t1", "y", "x")
    assert found.spec.items.id == "key" and found.spec.items.text == ("words",)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["spring 2020", "fall 2020"] * 50, "cannot be read as one, and no format reads nearly all"),
        (["soon", "later"] * 50, "cannot be read as one"),
        (None, "no column of log looks like a time"),
    ],
)
def test_times_that_cannot_be_read_are_said(times, said):
    log = {"user": [f"u{n % 9}" for n in range(100)], "item": [f"i{n % 13}" for n in range(100)]}
    found = guess([sample_table("log", pa.table(log | ({} if times is None else {"date": times})))])
    assert said in unsure(found, "events.time")


@pytest.mark.parametrize(("scale", "unit"), [(1, "s"), (1000, "ms"), (10**6, "us"), (10**9, "ns")])
def test_units_of_time(scale, unit):
    log = pa.table({"user": [1, 2] * 20, "item": [1, 2, 3, 4] * 10, "ts": (1_600_000_000 + np.arange(40)) * scale})
    found = guess([sample_table("log", log)])
    assert found.tables["events"].looks["ts"].time.unit == unit and not unsure(found, "events.time")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "~", "^", "\x01"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_and_encodings_are_told(delimiter, encoding, tmp_path):
    rows = [{"user": f"ü{n % 7}", "item": f"i{n % 5}", "time": 1_600_000_000 + n, "note": "a, b; c"} for n in range(60)]
    path = guessed_logs.write_csv(tmp_path / "log.csv", rows, delimiter=delimiter, encoding=encoding)
    sample = sample_files(path)
    assert sample.delimiter == delimiter and sample.rows.column_names == ["user", "item", "time", "note"]
    assert sample.rows.to_pylist() == [{name: str(value) for name, value in row.items()} for row in rows]
    assert sample.encoding_is_sure and sample.whole and sample.num_rows == 60
    (tmp_path / "d.toml").write_text(spec_text(of_files([path]), folder=str(tmp_path)))
    spec = load_spec(str(tmp_path / "d.toml"))
    assert inspect_source(spec).events[0].columns == ("user", "item", "time", "note")


def test_chinese_names_and_texts(tmp_path):
    rows = [
        {"用户编号": f"u{n % 9}", "商品编号": f"p{n % 6}", "时间": f"2024-01-{1 + n % 28:02d} 10:00:00"}
        for n in range(90)
    ]
    goods = [
        {"商品编号": f"p{n}", "标题": f"红色的木头椅子适合客厅 {n}", "类别": "家具|客厅" if n % 2 else "家具"}
        for n in range(6)
    ]
    log = guessed_logs.write_csv(tmp_path / "行为.csv", rows, encoding="gb18030")
    items = guessed_logs.write_csv(tmp_path / "商品.csv", goods, encoding="gb18030")
    found = of_files([items, log])
    assert (found.spec.events.user, found.spec.events.item, found.spec.events.time) == ("用户编号", "商品编号", "时间")
    assert found.spec.items.text[0] == "标题" and "类别" in found.spec.items.categorical
    assert found.spec.items.separators == {"类别": "|"}


def test_a_large_text_file_is_looked_at_from_its_begin_to_its_end(tmp_path, monkeypatch):
    """A column whose later values differ is not judged by its first rows."""
    monkeypatch.setattr(sampling, "MOST_BYTES", 1 << 14)
    rows = [
        {
            "user": f"u{n % 50}",
            "item": f"i{n % 70}",
            "time": 1_600_000_000 + n,
            "extra": "" if n < 9000 else f"word{n % 3}",
        }
        for n in range(10_000)
    ]
    sample = sample_files(guessed_logs.write_csv(tmp_path / "log.csv", rows))
    assert not sample.whole and len(sample.rows) < 1000
    assert abs(sample.num_rows - 10_000) < 1500, "an estimate"
    times = np.array(sample.rows.column("time").to_pylist(), np.int64) - 1_600_000_000
    assert times.min() < 100 and times.max() > 9900 and (np.diff(np.sort(times)) < 1500).all()
    assert sample.rows.column("extra").null_count < len(times)


def test_a_large_parquet_file_is_looked_at_from_its_begin_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "MOST_ROWS", 2000)
    pq.write_table(pa.table({"n": np.arange(50_000)}), tmp_path / "t.parquet", row_group_size=20_000)
    sample = sample_files(str(tmp_path / "t.parquet"))
    found = np.array(sample.rows.column("n").to_pylist())
    assert not sample.whole and sample.num_rows == 50_000 and 500 < len(found) <= 2000
    assert found.min() < 100 and found.max() > 48_000 and (np.diff(np.sort(found)) < 20_000).all()


def test_folders_and_json_lines(tmp_path):
    (tmp_path / "log").mkdir()
    for day in range(6):
        lines = [
            {"user": f"u{n % 9}", "item": n % 11, "time": f"2024-01-0{day + 1}T00:00:0{n % 10}Z"} for n in range(40)
        ]
        (tmp_path / "log" / f"{day}.jsonl").write_text(
            "\n".join(json.dumps(line | ({"tags": ["a"]} if n % 2 else {})) for n, line in enumerate(lines))
        )
    sample = sample_files(str(tmp_path / "log"))
    assert sample.num_files == 6 and sample.num_rows == 240 and not sample.whole
    found = guess([sample])
    assert (found.spec.events.user, found.spec.events.item, found.spec.events.time) == ("user", "item", "time")


def test_a_file_without_names_of_columns_is_said(tmp_path):
    (tmp_path / "u.csv").write_text("\n".join(f"{n % 9},{n % 7},{1_600_000_000 + n}" for n in range(50)))
    found = of_files([str(tmp_path / "u.csv")])
    assert "no names" in unsure(found, "events") or "not like names of columns" in unsure(found, "events")


@needs_real
def test_the_real_retail_log():
    check_retail(of_files([str(SHARED_DATA / "online-retail" / "online_retail.parquet")]))


@needs_real
def test_the_real_hotel_sessions():
    check_hotels(of_files([str(SHARED_DATA / "trivago" / "trivago_100k.parquet")]))


@needs_real
def test_the_real_reviews():
    folder = SHARED_DATA / "amazon-industrial"
    check_reviews(of_files([str(folder / "items.parquet"), str(folder / "events.parquet")]))


@needs_real
def test_the_real_movies(tmp_path):
    with zipfile.ZipFile(SHARED_DATA / "ml-latest-small" / "ml-latest-small.zip") as archive:
        archive.extractall(tmp_path)
    check_movies(of_files([str(path) for path in sorted((tmp_path / "ml-latest-small").glob("*.csv"))]))


def test_a_shop_log_of_one_table_whose_ids_look_like_times(tmp_path):
    """Ids may be as large as epoch seconds, a session is named after the user, and the price belongs to the item."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "event_time": f"2019-11-{1 + n // 60:02d} {n % 24:02d}:15:00 UTC",
            "event_type": str(rng.choice(["view", "view", "cart", "purchase"])),
            "product_id": 1_000_000 + (item := int(rng.integers(60))),
            "category_id": 2_053_013_555_631_882_655 + item % 7,
            "brand": "samsung" if item % 2 else "",
            "price": round(10 + item * 1.37, 2),
            "user_id": 520_000_000 + n % 50,
            "user_session": f"{n // 3:08x}-4a",
        }
        for n in range(900)
    ]
    found = of_files([guessed_logs.write_csv(tmp_path / "2019-Nov.csv", rows)])
    events = found.spec.events
    assert (events.user, events.item, events.time, events.action) == (
        "user_id",
        "product_id",
        "event_time",
        "event_type",
    )
    assert events.value is None and "price is the same in all events of an item" in unsure(found, "events.context")
    assert not unsure(found, "events.time"), "UTC is a zone"


def test_names_of_categories_are_no_titles(tmp_path):
    rng = np.random.default_rng(0)
    log = pa.table(
        {"customer_id": rng.integers(0, 30, 300), "article_id": rng.integers(0, 90, 300), "t_dat": ["2018-09-20"] * 300}
    )
    articles = pa.table(
        {
            "article_id": np.arange(90),
            "prod_name": [f"Strap top {n // 2}" for n in range(90)],
            "product_type_name": [["Vest top", "Bra", "Trousers"][n % 3] for n in range(90)],
            "detail_desc": [f"Jersey top with narrow straps and a rounded hem {n}" for n in range(90)],
            "on_sale": [None if n % 3 else 1.0 for n in range(90)],
        }
    )
    found = guess([sample_table("transactions", log), sample_table("articles", articles)])
    assert found.spec.items.text[0] == "prod_name" and "detail_desc" in found.spec.items.text
    assert found.spec.items.categorical == ("product_type_name", "on_sale")
    assert "taken for a mark" in unsure(found, "items.categorical")
