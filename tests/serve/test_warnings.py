"""What an answer warns of: every kind is in the API's schema and in its description, and unknown items are named."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from paths import REPO

import ctxrec
from ctxrec.core.config import Config
from ctxrec.retrieval.batch_scoring import recommend
from ctxrec.retrieval.no_effect import unknown_in_lists, unknown_of
from serve.api import RecommendRequest
from serve.api_answers import FieldWarning
from serve.engine import answer_json, load_engine

NOW = 893286638.0


def kinds_in_code() -> set[str]:
    """Kinds of every `Note` and of every warning that is written as a dictionary with a type."""
    found = set()
    for path in (*(REPO / "ctxrec" / "retrieval").rglob("*.py"), *(REPO / "serve").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Note":
                found.add(ast.literal_eval(node.args[1]))
            elif isinstance(node, ast.Constant) and node.value in typing.get_args(
                FieldWarning.model_fields["type"].annotation
            ):
                found.add(node.value)
    return found


def test_the_list_of_warnings_is_that_of_the_code():
    schema = set(typing.get_args(FieldWarning.model_fields["type"].annotation))
    text = (REPO / "serve" / "HTTP_API.md").read_text(encoding="utf-8")
    table = text.split("### Warnings")[1].split("\n\n")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) - {"type"} == schema == kinds_in_code()


def test_the_first_unknown_values_are_named():
    assert unknown_of(["a", "b"], {"a", "b"}.__contains__) is None
    found = unknown_of(["a", "x", "x", "y", "z", "w"], {"a"}.__contains__)
    assert found.told("items") == "5 of 6 are no items ('x', 'y', 'z', ...)"
    assert len(unknown_of(["v" * 1000], set().__contains__).told("items")) < 200
    assert unknown_in_lists("history", pa.array(["a", None]), pa.chunked_array([["a"]])) is None
    told = unknown_in_lists("history", pa.array(["a", "x"]), pa.chunked_array([["a"]]))
    assert told == "the column history: 1 of 2 ids are no items of the catalogue, such as 'x'; these have no effect"


def test_unknown_items_of_a_request_are_named_in_every_way_to_ask(tiny_run, tmp_path, caplog):
    engine = load_engine(tiny_run, 4)

    def warned(**body) -> list[tuple]:
        request = RecommendRequest.model_validate({"k": 3, "context": {"timestamp": NOW}} | body)
        (answer,) = engine.recommend([[request]])[0].answers
        return [(tuple(w["loc"]), w["type"], w["msg"]) for w in answer_json(answer).get("warnings", [])]

    fine = {"k": 2, "history": ["i1"], "exclude": ["i2"], "allow": ["i3", "i4"], "dislike": ["i5"]}
    assert warned(**fine) == []
    lists = [field for field in fine if field != "k"]
    for field in lists:
        (found,) = warned(**(fine | {field: [*fine[field], "gone"]}))
        text = f"{field}: 1 of {len(fine[field]) + 1} are no items of the catalogue ('gone'), so these have no effect"
        assert found == (("body", field), "unknown_item", text)
    (found,) = warned(history=["i1"], allow=["gone", "lost"])
    assert found[2].endswith("('gone', 'lost'), so the list is empty")
    (found,) = warned(history=[{"item_id": "i1", "action": "veiw"}])
    assert found[:2] == (("body", "history"), "unknown_action") and "'veiw'" in found[2]
    recommender = engine.retriever.recommender
    recommender.features = dataclasses.replace(
        recommender.features, actions=()
    )  # a log without actions knows none either
    (found,) = warned(history=[{"item_id": "i1", "action": "veiw"}])
    assert found[:2] == (("body", "history"), "unknown_action")
    model = ctxrec.load(tiny_run)
    for field in lists:
        with pytest.warns(UserWarning, match=f"{field}: 1 of . are no items of the catalogue"):
            model.recommend(**(fine | {field: [*fine[field], "gone"]}))
    with pytest.warns(UserWarning, match="history: 1 of 2 are no items"):
        model.explain(None, "i1", history=["i1", "gone"])
    table = pa.table(
        {"request_id": [0], "user_id": ["u1"], "timestamp": [NOW], "history": [["i1", "gone"]], "dislike": [["no"]]}
    )
    pq.write_table(table, tmp_path / "R.parquet")
    with caplog.at_level("WARNING"):
        recommend(tiny_run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=3, config=Config())
    assert "the column history: 1 of 2 ids are no items of the catalogue, such as 'gone'" in caplog.text
    assert "the column dislike: 1 of 1 ids are no items of the catalogue, such as 'no'" in caplog.text


def test_unknown_users_are_named_in_every_way_to_ask(tiny_run, tmp_path, caplog, recwarn):
    (answer,) = load_engine(tiny_run, 4).recommend([[RecommendRequest(user_id="gone", k=3)]])[0].answers
    assert answer.fallback
    model = ctxrec.load(tiny_run)
    for ask in (
        lambda: model.recommend(["u1", "gone"], k=3),
        lambda: model.explain("gone", "i1"),
    ):
        with pytest.warns(UserWarning, match=r"^user: 1 of . are no users that the model knows \('gone'\)"):
            ask()
    recwarn.clear()
    model.recommend("u1", k=3)
    model.recommend("gone", k=3, history=["i1"])
    assert not recwarn.list
    history = pa.array([None, None, ["i1"], None], pa.list_(pa.string()))
    rows = {"request_id": [*"abcd"], "user_id": ["u1", "gone", "gone", "lost"], "timestamp": [NOW] * 4}
    pq.write_table(pa.table(rows | {"history": history}), tmp_path / "R.parquet")
    with caplog.at_level("WARNING"):
        recommend(tiny_run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=3, config=Config())
    (line,) = [one for one in caplog.messages if "does not know the user" in one]
    assert line.endswith("(2 of 4 requests, such as 'b')")


def test_what_says_nothing_is_said_in_every_way_to_ask(tiny_run, tmp_path, caplog):
    device = next(iter(load_engine(tiny_run, 4).retriever.recommender.features.context_categories))
    asked = {"history": [{"item_id": "i1", "action": "", "context": {device: None}}], "query": " "}
    text = "says nothing; it counts as if it were left out"
    told = [
        f"query: a blank text {text}",
        f"context {device}: null {text}",
        f"history: action: a blank text {text}",
        f"history: context {device}: null {text}",
    ]
    body = RecommendRequest.model_validate({"k": 3, **asked, "context": {"timestamp": NOW, device: None}})
    (answer,) = load_engine(tiny_run, 4).recommend([[body]])[0].answers
    found = [(w["msg"], w["type"]) for w in answer_json(answer)["warnings"]]
    assert sorted(found) == sorted((one, "says_nothing") for one in told)
    model, context = ctxrec.load(tiny_run), {"timestamp": NOW, device: None}
    for ask in (
        lambda: model.recommend(k=3, **asked, context=context),
        lambda: model.explain(None, "i3", **asked, context=context),
    ):
        with pytest.warns(UserWarning) as caught:
            ask()
        assert sorted(str(one.message) for one in caught) == sorted(told)
    rows = {"request_id": [0, 1], "user_id": ["u1"] * 2, "timestamp": [NOW] * 2, "query": ["", "red"]}
    rows |= {device: pa.array([None, ""], pa.string()), "exclude": pa.array([None, None], pa.list_(pa.string()))}
    pq.write_table(pa.table(rows), tmp_path / "R.parquet")
    with caplog.at_level("WARNING"):
        recommend(tiny_run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=3, config=Config())
    assert "the column query: 1 of 2 values are blank texts, which say nothing, as a null does" in caplog.text
    for name in (device, "exclude"):
        assert (
            f"the column {name} has no effect: all of its values are null or blank, which says nothing" in caplog.text
        )


SHORT = [
    ({"allow": []}, "the list is empty: of 40 items, allow leaves 0"),
    ({"exclude": [f"i{n}" for n in range(40)]}, "the list is empty: of 40 items, exclude leaves 0"),
    ({"filter": {"category": []}}, "the list is empty: of 40 items, filter leaves 0"),
    (
        {"allow": ["i3", "i4", "i5"], "exclude": ["i3"]},
        "the list has 2 of 10 items: of 40 items, allow leaves 3, exclude 2",
    ),
    (
        {"allow": ["i1", "i4"]},
        "the list has 1 of 10 items: of 40 items, allow leaves 2, what the user has not had yet 1",
    ),
    ({"k": 50}, "the list has 39 of 50 items: of 40 items, what the user has not had yet leaves 39"),
]


@pytest.mark.parametrize(("asked", "told"), SHORT)
def test_a_short_list_says_why_over_http_and_in_python(tiny_run, asked, told):
    asked = {"k": 10, "history": ["i1"]} | asked
    request = RecommendRequest.model_validate({"context": {"timestamp": NOW}} | asked)
    (answer,) = load_engine(tiny_run, 4).recommend([[request]])[0].answers
    warned = [w for w in answer_json(answer)["warnings"] if w["type"] == "short_list"]
    assert [(tuple(w["loc"]), w["msg"]) for w in warned] == [(("body", "k"), told)]
    with pytest.warns(UserWarning, match=f"^{re.escape(told)}$"):
        ctxrec.load(tiny_run).recommend(**asked)


def test_a_list_of_all_items_that_were_to_be_ranked_is_not_short(tiny_run, recwarn):
    asked = {"k": 10, "history": ["i1"], "allow": ["i3", "i4", "i3"]}
    request = RecommendRequest.model_validate({"context": {"timestamp": NOW}} | asked)
    (answer,) = load_engine(tiny_run, 4).recommend([[request]])[0].answers
    assert len(answer.item_ids) == 2 and "warnings" not in answer_json(answer)
    assert len(ctxrec.load(tiny_run).recommend(**asked)) == 2 and not recwarn.list


def test_a_file_of_requests_is_told_the_same(tiny_run, tmp_path, caplog):
    rules = pa.struct([("category", pa.list_(pa.string()))])
    table = pa.table(
        {
            "request_id": ["a", "b", "c", "d"],
            "user_id": ["u1"] * 4,
            "timestamp": [NOW] * 4,
            "history": [["i1"]] * 4,
            "allow": pa.array([[], None, [], ["i3", "i4", "i5"]], pa.list_(pa.string())),
            "exclude": pa.array([None, None, None, ["i3", "none"]], pa.list_(pa.string())),
            "filter": pa.array([None, {"category": ["no such"]}, None, None], rules),
        }
    )
    pq.write_table(table, tmp_path / "R.parquet")
    with caplog.at_level("WARNING"):
        recommend(tiny_run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=10, config=Config())
    lines = [record.getMessage() for record in caplog.records]
    assert "the list is empty: of 40 items, allow leaves 0 (2 of 4 requests, such as 'a')" in lines
    assert "filter category: 'no such' is no value of any item (1 of 4 requests, such as 'b')" in lines
    assert not any("filter leaves 0" in line for line in lines), "one reason is enough"
    assert "the list has 2 of 10 items: of 40 items, allow leaves 3, exclude 2 (1 of 4 requests, such as 'd')" in lines
    assert any("the column exclude: 1 of 2 ids are no items of the catalogue" in line for line in lines)
    assert pq.read_table(tmp_path / "O.parquet").column_names == ["request_id", "item_ids", "scores"]


def test_probabilities_of_a_request_with_words_or_dislikes_are_no_rates(tiny_run, tmp_path, caplog, recwarn):
    engine, model = load_engine(tiny_run, 4), ctxrec.load(tiny_run)
    plain = {"history": ["i1"], "k": 3, "probability": True}
    text = "probability: it was fitted to requests without {}, which change the scores; take it as an order"
    cases = [({}, ""), ({"query": "red shoe"}, "a query"), ({"dislike": ["i5"]}, "dislikes"), ({"dislike": ["gone"]}, ""),
             ({"query": "red", "dislike": ["i5"]}, "a query and dislikes")]  # fmt: skip
    for more, named in cases:
        (answer,) = engine.recommend([[RecommendRequest.model_validate(plain | more)]])[0].answers
        told = [w for w in answer_json(answer).get("warnings", []) if w["type"] == "not_calibrated"]
        assert [w["loc"] for w in told] == ([["body", "probability"]] if named else [])
        recwarn.clear()
        model.recommend(**plain, **more)
        in_python = [str(one.message) for one in recwarn.list if "fitted" in str(one.message)]
        assert in_python == [w["msg"] for w in told] and all(text.format(named) in one for one in in_python)
    rows = {"request_id": [0, 1, 2], "user_id": ["u1"] * 3, "timestamp": [NOW] * 3, "probability": [True, True, False]}
    dislikes = pa.array([None, ["i5"], ["i5"]], pa.list_(pa.string()))
    pq.write_table(pa.table(rows | {"dislike": dislikes}), tmp_path / "R.parquet")
    with caplog.at_level("WARNING"):
        recommend(tiny_run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=3, config=Config())
    (line,) = [one for one in caplog.messages if "fitted" in one]
    assert line.endswith("(1 of 3 requests, such as 1)")
