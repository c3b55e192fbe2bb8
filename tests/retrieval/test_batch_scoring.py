"""Batch scoring: the contract of R.parquet and O.parquet, on a real Ray cluster."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctxrec.core import cli
from ctxrec.core.config import Config, DiversityConfig, EvaluateConfig
from ctxrec.core.dataset_spec import ContextSpec
from ctxrec.core.errors import UserError
from ctxrec.recommend import main
from ctxrec.retrieval.batch_scoring import _output_schema, recommend
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.request_files import check_requests, raw_requests
from ctxrec.retrieval.retriever import load_retriever
from ctxrec.retrieval.slate.rules import load_rules

NOW = 1_700_000_000


@pytest.fixture(scope="module")
def retriever(tiny_run):
    return load_retriever(tiny_run)


def write(path, columns) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=16)
    return str(path)


def run(tiny_run, tmp_path, columns, *, k=5, files=1, **options):
    (tmp_path / "R").mkdir()
    table = pa.table(columns)
    for number, rows in enumerate(np.array_split(np.arange(len(table)), files)):
        pq.write_table(table.take(rows), tmp_path / "R" / f"part-{number}.parquet")
    requests = str(tmp_path / "R")
    out = str(tmp_path / "out" / "O.parquet")
    config = Config(evaluate=EvaluateConfig(**options))
    num_rows = recommend(tiny_run, requests, out, k=k, config=config)
    answers = pq.read_table(out)
    assert num_rows == answers.num_rows == len(next(iter(columns.values())))
    assert answers.schema.names == ["request_id", "item_ids", "scores"]
    assert answers.schema.field("item_ids").type == pa.list_(pa.string())
    assert answers.schema.field("scores").type == pa.list_(pa.float32())
    return answers


def test_rows_keep_their_order_over_many_blocks_and_equal_the_retriever(ray_cluster, tiny_run, tmp_path, retriever):
    rng = np.random.default_rng(0)
    users = [f"u{n}" for n in rng.integers(70, size=150)]  # u60 to u69 are unknown
    devices = [["tv", "phone", "fridge", None][n] for n in rng.integers(4, size=150)]
    ids = rng.permutation(150)
    answers = run(
        tiny_run,
        tmp_path,
        {
            "request_id": pa.array(ids, pa.int32()),
            "user_id": users,
            "timestamp": pa.array([NOW + n for n in range(150)], pa.int64()),
            "device": devices,
            "basket_value": pa.array([None if n % 3 else n / 10 for n in range(150)], pa.float32()),
            "query": ["red shoe"] * 150,
        },
        files=3,
        batch_size=13,
        actors=2,
    )
    assert answers.schema.field("request_id").type == pa.int32()
    assert answers["request_id"].to_pylist() == ids.tolist()
    raw = [
        RawRequest(
            user_id=users[n],
            timestamp=NOW + n,
            context={"query": "red shoe"}
            | ({"device": devices[n]} if devices[n] else {})
            | ({} if n % 3 else {"basket_value": float(np.float32(n / 10))}),
        )
        for n in range(150)
    ]
    requests, _ = retriever.recommender.make_requests(raw)
    for n, (positions, scores) in enumerate(retriever.top_k(requests, 5)):
        assert answers["item_ids"][n].as_py() == retriever.item_ids(positions)
        np.testing.assert_allclose(answers["scores"][n].as_py(), scores, rtol=1e-5, atol=1e-5)


def test_histories_missing_values_and_unknown_ids(ray_cluster, tiny_run, tmp_path, retriever):
    answers = run(
        tiny_run,
        tmp_path,
        {
            "request_id": ["given", "stored", "empty", "unknown item", "nobody", "\U0001f600 user"],
            "user_id": ["u1", "u1", "u1", "u1", None, "\U0001f600"],
            "timestamp": pa.array([NOW, NOW, NOW, NOW, float("nan"), None], pa.float64()),
            "history": [["i3", "i7"], None, [], ["no such item", "i3"], ["i3", None], None],
            "ignored": [1] * 6,
        },
        k=1000,
    )
    lists = dict(zip(answers["request_id"].to_pylist(), answers["item_ids"].to_pylist(), strict=True))
    everything = set(retriever.recommender.item_ids)
    stored, _ = retriever.recommender.make_requests([RawRequest(user_id="u1", timestamp=NOW)])
    seen = set(retriever.item_ids(stored.history.items))
    assert set(lists["given"]) == everything - {"i3", "i7"}
    assert set(lists["stored"]) == everything - seen and seen
    assert set(lists["empty"]) == set(lists["\U0001f600 user"]) == everything
    assert set(lists["unknown item"]) == set(lists["nobody"]) == everything - {"i3"}
    scores = answers["scores"].to_pylist()
    assert all((np.diff(row) <= 0).all() and np.isfinite(row).all() for row in scores)


def test_contexts_that_the_model_does_not_know_are_named(tiny_run, tmp_path, caplog):
    columns = {"request_id": [1, 2, 3, 4], "user_id": ["u1"] * 4, "timestamp": [NOW] * 4}
    run(tiny_run, tmp_path, columns | {"device": ["tv", "fridge", None, "fridge"]})
    (told,) = [message for message in caplog.messages if "context device" in message]
    assert "1 of 3 values are none that the model knows, such as 'fridge'" in told


def test_the_requests_are_never_replaced(tiny_run, tmp_path):
    path = tmp_path / "requests.parquet"
    pq.write_table(pa.table({"request_id": ["1"], "user_id": ["u1"], "timestamp": [1.7e9]}), path)
    before = path.read_bytes()
    for out in (path, tmp_path / "." / "requests.parquet"):
        with pytest.raises(UserError, match=r"is a file of --requests, which it would replace"):
            recommend(tiny_run, str(path), str(out), k=3)
    assert path.read_bytes() == before


def test_no_requests_make_an_empty_file(tiny_run, tmp_path):
    columns = {"request_id": pa.array([], pa.string()), "user_id": pa.array([], pa.string())}
    answers = run(tiny_run, tmp_path, columns | {"timestamp": pa.array([], pa.float64())})
    assert answers.schema.field("request_id").type == pa.string()


def test_several_files_are_read_in_order(ray_cluster, tiny_run, tmp_path):
    folder = tmp_path / "R"
    folder.mkdir()
    for part in range(3):
        ids = [part * 10 + n for n in range(10)]
        columns = {"request_id": ids, "user_id": [f"u{n}" for n in ids], "timestamp": [NOW] * 10}
        write(folder / f"part-{part}.parquet", columns)
    out = str(tmp_path / "O.parquet")
    # The second time with diversity and rules, as the retriever has them.
    (tmp_path / "rules.toml").write_text('[[block]]\nitems = ["i3", "i6"]\n[[pin]]\nitems = ["i9"]\n')
    diversity = DiversityConfig(strength=0.7, rules=str(tmp_path / "rules.toml"))
    made = load_retriever(tiny_run, diversity=diversity, rules=load_rules(diversity.rules))
    requests, _ = made.recommender.make_requests([RawRequest(user_id=f"u{n}", timestamp=NOW) for n in range(30)])
    for config in (Config(), Config(diversity=diversity)):
        assert recommend(tiny_run, str(folder), out, k=3, config=config) == 30
        answers = pq.read_table(out)
        assert answers["request_id"].to_pylist() == list(range(30))
    assert answers["item_ids"].to_pylist() == [made.item_ids(items) for items, _ in made.top_k(requests, 3)]
    (tmp_path / "rules.toml").write_text('[[block]]\nitems = ["nothing"]')
    with pytest.raises(UserError, match="a block rule names the item 'nothing'"):
        recommend(tiny_run, str(folder), out, k=3, config=Config(diversity=diversity))


GOOD = {"request_id": ["a"], "user_id": ["u1"], "timestamp": [NOW]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["u1"], "timestamp": [NOW]}, r"column 'request_id' is missing; found user_id, timestamp"),
        ({"request_id": ["a"], "user_id": ["u1"]}, r"column 'timestamp' is missing"),
        ({"request_id": ["a"], "timestamp": [NOW]}, r"neither 'user_id' nor 'history'"),
        (GOOD | {"timestamp": ["yesterday"]}, r"column 'timestamp' is string; expected epoch seconds"),
        (GOOD | {"timestamp": [NOW * 1000]}, r"timestamp 1\.7e\+12 is outside.*divide milliseconds by 1000"),
        (GOOD | {"timestamp": [float("inf")]}, r"timestamp inf is outside"),
        (GOOD | {"timestamp": [NOW * 10**9 + 123_456_789]}, r"outside the years.*divide nanoseconds by 10\^9"),
        (GOOD | {"timestamp": [NOW * 10**6 + 1]}, r"outside the years.*divide microseconds by 10\^6"),
        (
            GOOD | {"history": [[{"id": "i3"}]]},
            r"the structs of 'history' have the unknown field 'id'; expected item_id",
        ),
        (GOOD | {"history": [[{"action": "buy"}]]}, r"no field 'item_id'"),
        (GOOD | {"history": [[["i3"]]]}, r"column 'history' is list<.*expected a list of item ids"),
        (GOOD | {"history": [[{"item_id": "i3", "timestamp": "noon"}]]}, r"timestamp of 'history' is string"),
        (GOOD | {"history": [[{"item_id": "i3", "timestamp": NOW * 1000}]]}, r"timestamp of the history 1\.7e\+12"),
        (GOOD | {"history": [[{"item_id": "i3", "context": {"weather": "x"}}]]}, r"unknown key 'weather'; valid"),
        (GOOD | {"history": [[{"item_id": "i3", "context": {"basket_value": "x"}}]]}, r"expected numbers"),
        (GOOD | {"basket_value": ["much"]}, r"column 'basket_value' is string; expected numbers"),
        (GOOD | {"history": ["i3"]}, r"column 'history' is string; expected a list of item ids"),
    ],
)
def test_a_wrong_file_is_a_users_mistake_and_writes_nothing(tiny_run, tmp_path, columns, message):
    requests = write(tmp_path / "R.parquet", columns)
    with pytest.raises(UserError, match=message):
        recommend(tiny_run, requests, str(tmp_path / "O.parquet"), k=5, config=Config())
    assert [p.name for p in tmp_path.iterdir()] == ["R.parquet"]


CONTEXT = ContextSpec(categorical=("device",), numeric=("basket_value",), text=("search",))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        # Lists and structs were read as the texts of Python, which no user and no category has.
        ({"user_id": [["u1"]]}, r"column 'user_id' is list<.*expected one value a request"),
        ({"user_id": [{"id": "u1"}]}, r"column 'user_id' is struct<.*expected one value a request"),
        ({"device": [["tv"]]}, r"column 'device' is list<"),
        ({"search": [["red", "hat"]]}, r"column 'search' is list<"),
        ({"user_id": pa.array([None], pa.string())}, r"'a' has neither user_id nor history.*an empty history"),
        (
            {"user_id": [" "], "history": pa.array([None], pa.list_(pa.string()))},
            r"'a' has neither user_id nor history",
        ),
        ({"history": [[{"item_id": "i3", "value": float("inf")}]]}, r"value of the history is inf; expected numbers"),
        ({"basket_value": [1e300]}, r"basket_value is 1e\+300; expected numbers from -3\.4e\+38 to 3\.4e\+38"),
    ],
)
def test_a_value_that_no_log_has_is_named_before_anything_is_computed(tmp_path, columns, message):
    requests = write(tmp_path / "R.parquet", GOOD | columns)
    with pytest.raises(UserError, match=message):
        check_requests([requests], CONTEXT)


def test_somebody_without_a_name_has_a_history(tmp_path):
    nobody = GOOD | {"user_id": pa.array([None], pa.string()), "history": pa.array([[]], pa.list_(pa.string()))}
    for columns in (nobody, {name: values for name, values in nobody.items() if name != "user_id"}):
        assert check_requests([write(tmp_path / "R.parquet", columns)], CONTEXT)[1] == 1


def test_missing_and_infinite_numbers_of_the_context_are_missing(tmp_path):
    columns = {name: values * 3 for name, values in GOOD.items()} | {"basket_value": [None, float("nan"), float("inf")]}
    assert check_requests([write(tmp_path / "R.parquet", columns)], CONTEXT)[1] == 3


@pytest.mark.parametrize("name", GOOD)
def test_a_column_that_stands_twice_is_a_users_mistake(tmp_path, name):
    table = pa.table(GOOD)
    pq.write_table(table.append_column(name, table.column(name)), tmp_path / "R.parquet")
    with pytest.raises(UserError, match=f"R.parquet has two columns '{name}'; expected each name once"):
        check_requests([str(tmp_path / "R.parquet")], CONTEXT)


def test_files_of_several_types_of_request_ids_are_a_users_mistake(tmp_path):
    ids = [["a"], [1], pa.array([1], pa.int32())]
    files = [write(tmp_path / f"{n}.parquet", GOOD | {"request_id": own}) for n, own in enumerate(ids)]
    with pytest.raises(UserError, match=r"1.parquet: column 'request_id' is int64, and in .*0.parquet it is string"):
        _output_schema(files)
    assert (
        _output_schema(files[1:]).field("request_id").type == pa.int64() == _output_schema(files[:0:-1]).field(0).type
    )


@pytest.mark.parametrize("column", ["request_id", "user_id", "timestamp"])
def test_damage_in_the_middle_of_a_file_is_named_before_anything_is_computed(tmp_path, column):
    """It was a traceback of a task where the column was no timestamp."""
    columns = {"request_id": list(range(64)), "user_id": [f"u{n}" for n in range(64)], "timestamp": [NOW] * 64}
    path = Path(write(tmp_path / "R.parquet", columns))
    assert check_requests([str(path)], ContextSpec()) == (list(columns), 64)
    group = pq.ParquetFile(path).metadata.row_group(2)
    chunk = next(group.column(n) for n in range(3) if group.column(n).path_in_schema == column)
    begin, content = chunk.dictionary_page_offset, bytearray(path.read_bytes())
    content[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"R\.parquet cannot be read .*Write it again") as told:
        check_requests([str(path)], ContextSpec())
    assert "\n" not in str(told.value)
    path.write_bytes(content[:-9])
    with pytest.raises(UserError, match=r"R\.parquet is no Parquet file"):
        check_requests([str(path)], ContextSpec())


def test_timestamps_as_arrow_timestamps_and_ids_as_numbers():
    moment = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "request_id": [1, 2],
            "user_id": pa.array([196.0, None], pa.float64()),  # pandas makes floats of ints with gaps
            "timestamp": pa.array([moment, None], pa.timestamp("ms", "UTC")),
            "store_id": [7, 8],
            "history": [None, [242, 50]],
        }
    )
    first, second = raw_requests(table, ContextSpec(categorical=("store_id",)), now_s=5.0)
    assert first == RawRequest(user_id="196", timestamp=float(NOW), context={"store_id": "7"}, history=None)
    assert second == RawRequest(
        user_id=None,
        timestamp=5.0,
        context={"store_id": "8"},
        history=[RawEvent(item_id="242"), RawEvent(item_id="50")],
    )
    fine = table.set_column(2, "timestamp", pa.array([NOW * 10**9 + 1_789, None], pa.timestamp("ns")))
    assert raw_requests(fine, ContextSpec(), now_s=5.0)[0].timestamp == NOW + 1e-6


def command(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["recommend", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    return stopped.value.code


def test_the_command(ray_cluster, tiny_run, tmp_path, monkeypatch, capsys):
    requests, out = write(tmp_path / "R.parquet", GOOD), str(tmp_path / "O.parquet")
    given = ("--run", tiny_run, "--requests", requests, "--out", out)
    assert command(monkeypatch, *given, "--k", "3") == 0
    assert "1 requests answered" in capsys.readouterr().out
    assert len(pq.read_table(out)["item_ids"][0]) == 3
    for k in ("0", "-1"):
        assert command(monkeypatch, *given, "--k", k) == 2
        assert f"--k is {k}; expected at least 1" in capsys.readouterr().err
    assert command(monkeypatch, "--run", "missing", *given[2:], "--k", "3") == 2
    assert "found nothing at" in capsys.readouterr().err
    assert command(monkeypatch, *given[:2], "--requests", "missing.parquet", *given[4:], "--k", "3") == 2
    assert "no file found at missing.parquet" in capsys.readouterr().err


def test_a_column_of_queries_is_read_unless_the_context_has_one_of_that_name(tmp_path):
    columns = {"request_id": [1, 2], "user_id": ["a", "b"], "timestamp": [NOW, NOW], "query": ["quiet sci-fi", None]}
    table = pa.table(columns)
    assert [request.query for request in raw_requests(table, ContextSpec(), now_s=5.0)] == ["quiet sci-fi", None]
    of_context, _ = raw_requests(table, ContextSpec(text=("query",)), now_s=5.0)
    assert of_context.query is None and of_context.context == {"query": "quiet sci-fi"}
    file = str(tmp_path / "requests.parquet")
    pq.write_table(table, file)
    assert check_requests([file], ContextSpec()) == (["request_id", "user_id", "timestamp", "query"], 2)
    pq.write_table(pa.table(columns | {"query": ["x" * 1001, "y"]}), file)
    with pytest.raises(UserError, match=r"the longest query is 1001; expected at most 1,000 characters"):
        check_requests([file], ContextSpec())
    assert check_requests([file], ContextSpec(text=("query",)))[1] == 2, "a text of the context may be longer"
    pq.write_table(pa.table(columns | {"query": [["x"], ["y"]]}), file)
    with pytest.raises(UserError, match=r"column 'query' is list.*expected one value a request"):
        check_requests([file], ContextSpec())


def test_a_history_of_structs_is_read_as_over_http():
    moment = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
    event = {"item_id": 242, "action": "buy", "timestamp": moment, "context": {"store_id": 7, "basket": 2**53 + 1}}
    bare = {"item_id": 50, "action": None, "timestamp": None, "context": None}
    gone = {"item_id": None, "action": "buy", "timestamp": None, "context": None}
    rows = {"history": [[event, bare, gone, None], [], None], "request_id": [1, 2, 3], "timestamp": [NOW, NOW, NOW]}
    table = pa.table(rows)
    context = ContextSpec(categorical=("store_id",), numeric=("basket",))
    first, second, third = [request.history for request in raw_requests(table, context, now_s=5.0)]
    assert first == [
        RawEvent("242", action="buy", timestamp=float(NOW), context={"store_id": "7", "basket": 2.0**53}),
        RawEvent("50"),
    ]
    assert second == [] and third is None
    numbers = table.set_column(0, "history", pa.array([[{"item_id": "a", "timestamp": NOW + 0.5}], None, []]))
    assert raw_requests(numbers, context, now_s=5.0)[0].history == [RawEvent("a", timestamp=NOW + 0.5)]
