"""A model in Python over a random world: what it answers is what the retriever finds, as tables of every kind."""

from __future__ import annotations

import dataclasses
import decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from blends import blend_of
from tolerance import assert_same_scores
from worlds import ReadWorld

from ctxrec.core.dataset_spec import ContextSpec, EventsSpec, FeedbackSpec
from ctxrec.core.errors import UserError
from ctxrec.core.schema import ITEM_TITLE
from ctxrec.data.feedback import EventKinds, graded_actions
from ctxrec.metrics.ranking import request_metrics
from ctxrec.python_api.fitted_model import Model
from ctxrec.python_api.held_out_table import evaluate_table
from ctxrec.python_api.notebook import Evaluation
from ctxrec.python_api.request_arguments import filter_rules, id_texts
from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.retriever import Retriever

NOW = 1_700_000_000
FRAMES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.Table}


@pytest.fixture(scope="module")
def world(make_world):
    return make_world()


@pytest.fixture(scope="module", params=["quick", "full"])
def recommender(world, request):
    return world.recommender(world.config(f"train.preset={request.param}"), blend=blend_of)


def model_of(recommender, kind="arrow") -> Model:
    made = Model("nowhere", kind)
    made.__dict__["_retriever"] = Retriever(recommender)  # as if it had been loaded from the run
    return made


@pytest.mark.parametrize("kind", FRAMES)
def test_tables_are_of_the_kind_that_was_asked_for(recommender, kind):
    model = model_of(recommender, kind)
    for table in (model.recommend("u1"), model.recommend(["u1", "u2"]), model.similar("i1"), model.explain("u1", "i3")):
        assert isinstance(table, FRAMES[kind]) and len(table)


def test_a_list_is_what_the_retriever_finds(recommender):
    found = model_of(recommender).recommend("u1", k=4, context={"timestamp": NOW}).to_pydict()
    requests, _ = recommender.make_requests([RawRequest(user_id="u1", timestamp=NOW)], including_now=True)
    ((items, scores),) = Retriever(recommender).top_k(requests, 4)
    assert found["item_id"] == [recommender.item_ids[p] for p in items]
    assert found["title"] == recommender.items.column(ITEM_TITLE).take(pa.array(items)).to_pylist()
    assert_same_scores(found["score"], scores)


def test_several_users_give_one_list_each(recommender):
    model = model_of(recommender)
    both = model.recommend(["u1", "nobody", "u3"], k=3, context={"timestamp": NOW})
    assert both.column("user_id").to_pylist() == ["u1"] * 3 + ["nobody"] * 3 + ["u3"] * 3
    alone = model.recommend("u3", k=3, context={"timestamp": NOW})
    assert both.column("item_id").to_pylist()[6:] == alone.column("item_id").to_pylist()
    nothing = model.recommend([], k=3)
    assert len(nothing) == 0 and nothing.column_names == ["user_id", "item_id", "score", "title"]


def test_a_history_may_have_ids_or_whole_events(recommender):
    model, context = model_of(recommender), {"timestamp": NOW, "device": "tv"}
    events = [{"item_id": "i3", "action": "buy", "timestamp": NOW - 5.0, "context": {"device": "tv"}}, "i7"]
    found = model.recommend(history=events, k=5, context=context)
    raw = RawRequest(context=context, history=[RawEvent("i3", "buy", NOW - 5.0, {"device": "tv"}), RawEvent("i7")])
    ((items, _),) = Retriever(recommender).top_k(recommender.make_requests([raw], including_now=True)[0], 5)
    assert found.column("item_id").to_pylist() == [recommender.item_ids[p] for p in items]


def test_a_context_that_the_model_does_not_know_or_read_is_said(recommender):
    is_quick = recommender.config.train.preset == "quick"
    told = "context: device has no effect" if is_quick else "context device: 'fridge' is no value that the model knows"
    with pytest.warns(UserWarning, match=told):
        model_of(recommender).recommend("u1", context={"device": "fridge"})


def test_a_kind_of_event_that_values_make_is_no_action_that_a_request_may_have(recommender, monkeypatch):
    stars = FeedbackSpec(kind="rating", positive=4, negative=2)
    made = graded_actions(EventsSpec(path="log", value="stars", feedback=stars), [])
    kinds = EventKinds.of(EventsSpec(path="log", value="stars", feedback=stars), made[""], made)
    features = dataclasses.replace(recommender.features, actions=tuple(made[""]), graded=made)
    monkeypatch.setattr(recommender, "features", features)
    monkeypatch.setattr(recommender.maker, "kinds", kinds)
    with pytest.warns(UserWarning, match=r"1 of 1 are no actions that the model knows \('rating negative'\)"):
        model_of(recommender).recommend(history=[{"item_id": "i3", "action": "rating negative"}])


def test_a_query_ranks_by_words_too_and_a_model_that_cannot_read_it_warns(world, recommender, tiny_encoder, tmp_path):
    with pytest.warns(UserWarning, match="the query has no effect: the model compares no texts"):
        unheard = model_of(recommender).recommend("u1", query="red shoe", context={"timestamp": NOW})
    assert unheard.equals(model_of(recommender).recommend("u1", context={"timestamp": NOW}))
    read = ReadWorld(world, tiny_encoder, str(tmp_path), "train.preset=quick").recommender()
    found = model_of(read).recommend("u1", k=20, query="red shoe", context={"timestamp": NOW}).to_pydict()
    raw = RawRequest(user_id="u1", timestamp=NOW, query="red shoe")
    requests, _ = read.make_requests([raw], including_now=True)
    ((items, scores),) = Retriever(read).top_k(requests, 20)
    assert found["item_id"] == [read.item_ids[p] for p in items]
    assert_same_scores(found["score"], scores)
    why = model_of(read).explain("u1", "i7", query="red shoe", context={"timestamp": NOW}).to_pydict()
    assert ("source", "query") in zip(why["part"], why["name"], strict=True)


def test_wishes_are_those_of_the_http_call(recommender):
    model = model_of(recommender)
    every = model.recommend("u1", k=20).column("item_id").to_pylist()
    assert set(model.recommend("u1", k=20, exclude=every[:2]).column("item_id").to_pylist()) == set(every[2:])
    assert set(model.recommend("u1", k=20, allow=every[:2]).column("item_id").to_pylist()) == set(every[:2])
    with pytest.raises(UserError, match="price"):  # the catalogue of this world has no columns to filter by
        model.recommend("u1", filter={"price": {"min": 3}})


def test_the_sources_of_an_explanation_sum_to_the_score(recommender):
    model, context = model_of(recommender), {"timestamp": NOW}
    why = model.explain("u1", "i3", context=context).to_pandas()
    requests, _ = recommender.make_requests([RawRequest(user_id="u1", timestamp=NOW)], including_now=True)
    assert_same_scores(why[why.part == "source"].effect.sum(), recommender.scores(requests)[0, 3])
    assert {"source", "history", "context", "user"} == set(why.part)


def log_of(world, *, after: int) -> tuple[pa.Table, dict[str, set[str]]]:
    """Two later events of each user, with the second one in the first row of the file; and the items by user."""
    rng, rows, wanted = np.random.default_rng(3), [], {}
    for n in range(len(world.histories.users.ids)):
        for step in (2, 1):
            item = f"i{rng.integers(0, 20)}"
            rows.append((f"u{n}", item, after + 10 * step, "buy", "tv" if step == 1 else "phone"))
            wanted.setdefault(f"u{n}", set()).add(item)
    names = ("user_id", "item_id", "timestamp", "action", "device")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), wanted


def test_a_table_of_later_events_is_ranked_by_the_protocol(recommender, world):
    table, wanted = log_of(world, after=NOW)
    metrics = evaluate_table(recommender, table, ks=(5, 10), resamples=20)
    raw = [RawRequest(user_id=user, timestamp=NOW + 10) for user in wanted]
    if "device" in recommender.spec.events.context.columns:
        raw = [RawRequest(user_id=user, timestamp=NOW + 10, context={"device": "tv"}) for user in wanted]
    lists, offsets, targets = [], [0], []
    for request, items in zip(raw, wanted.values(), strict=True):
        made, _ = recommender.make_requests([request])
        scores = recommender.scores(made)[0]
        seen = set() if recommender.repeats else set(made.history.items.tolist())
        own = sorted({recommender.item_position[i] for i in items} - seen)
        if not own:
            continue
        order = sorted((p for p in range(len(scores)) if p not in seen), key=lambda p: (-scores[p], p))[:10]
        lists.append(order + [-1] * (10 - len(order)))
        targets += own
        offsets.append(len(targets))
    found = request_metrics(np.array(lists), np.array(offsets), np.array(targets), (5, 10))
    assert metrics["requests"] == len(lists) and set(metrics["baselines"]) == {"popularity"}
    for name, values in found.items():
        assert_same_scores(metrics["model"][name]["mean"], values.mean())
    shown = Evaluation(metrics)
    assert_same_scores(shown["ndcg@10"], found["ndcg@10"].mean())
    assert "popularity" in str(shown)
    shown_html = shown._repr_html_()
    assert shown_html.startswith("<p>table: ") and shown_html.count("<tr>") == 1 + len(metrics["baselines"]) + 1
    assert all(f">{cell}</td>" in shown_html for line in str(shown).splitlines()[3:4] for cell in line.split()[:2])


def test_the_forms_of_the_columns_do_not_matter(recommender, world):
    table, _ = log_of(world, after=NOW)
    wanted = evaluate_table(recommender, table, ks=(10,), resamples=20)["model"]
    frame = table.to_pandas()
    frame["timestamp"] = pd.to_datetime(frame.timestamp, unit="s", utc=True)
    frame["user_id"] = frame.user_id.astype("category")
    other = pa.Table.from_pandas(frame.sample(frac=1, random_state=0), preserve_index=False)
    found = evaluate_table(recommender, other, ks=(10,), resamples=20)["model"]
    for name, figures in wanted.items():
        assert_same_scores([found[name][part] for part in figures], list(figures.values()))


def test_mistakes_are_one_line(recommender, world):
    model = model_of(recommender)
    table, _ = log_of(world, after=NOW)
    for what, ask in {
        "neither a user nor a history is given": lambda: model.recommend(),
        "k is 0; expected at least 1": lambda: model.recommend("u1", k=0),
        "the catalogue has no item 'i99'": lambda: model.similar("i99"),
        "an id is None; expected a text or": lambda: model.similar(None),
        "an id is ''; expected a text that is not blank": lambda: model.recommend(""),
        "value of an event of the history is inf; expected a number within": lambda: model.recommend(
            history=[{"item_id": "i1", "value": np.inf}]
        ),
        "unknown context key 'mood'": lambda: model.recommend("u1", context={"mood": 1}),
        "the filter of kind is 'a'; expected a list": lambda: model.recommend("u1", filter={"kind": "a"}),
        "the filter of kind has 'all'; expected some of any": lambda: model.recommend(
            "u1", filter={"kind": {"all": []}}
        ),
        r"has the keys item; expected item_id and": lambda: model.recommend(history=[{"item": "i1"}]),
        "has no column 'timestamp'": lambda: evaluate_table(
            recommender, table.drop_columns(["timestamp"]), ks=(10,), resamples=2
        ),
        "no user of the table has a target": lambda: evaluate_table(
            recommender, table.slice(0, 0), ks=(10,), resamples=2
        ),
    }.items():
        with pytest.raises(UserError, match=what):
            ask()


NO_ARGUMENTS = {
    "k": [True, "5", 2.5, None, np.nan],
    "user": [b"u1", {"user_id": "u1"}, pd.DataFrame({"user_id": ["u1"]}), pd.NA, np.nan, ["u1", None], [["u1"]], " "],
    "exclude": ["i3", 5, None, b"i3", {"i3": 1}, [["i3"]], ["i3", np.nan], pd.DataFrame({"item_id": ["i3"]})],
    "allow": ["i3", 5, ["i3", None], [b"i3"]],
    "history": [
        "i3", 5, ["i3", None], {"item_id": "i3"}, pd.DataFrame({"item_id": ["i3"]}), [("i3", "buy")], [{"item_id": ["i3"]}],
        [{"item_id": "i3", "action": ["buy"]}], [{"item_id": "i3", "context": "tv"}],
    ],
    "context": ["tv", ["device"]],
    "diversity": ["0.5", 2, -0.1, True, np.nan],
    "rerank": ["yes", 1, 0.5],
    "filter": [
        "kind", ["kind"], {"kind": "a"}, {"kind": None}, {"kind": {}}, {"kind": {"any": None}}, {"kind": {"any": "a"}},
        {"kind": {"none": "a"}}, {"kind": {"none": 5}}, {"kind": ["a", None]}, {"kind": [["a"]]}, {"kind": {"min": "5"}},
        {"kind": {"max": np.nan}}, {"kind": {"min": True}}, {"kind": {"min": [5]}}, {"kind": {"min": 10**400}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NO_ARGUMENTS)
def test_an_argument_without_a_meaning_is_refused_by_its_name(recommender, name):
    """A text in the place of a list was read as its letters: `exclude="i3"` excluded nothing, and `none="a"` let all pass."""
    model = model_of(recommender)
    for wrong in NO_ARGUMENTS[name]:
        asked = {"user": "u1", "k": 3} | {name: wrong}
        with pytest.raises(
            UserError, match=f"an id is|of an event of the history is|context is|neither a user|{name}|kind"
        ):
            model.recommend(**asked)


def test_what_columns_of_tables_hold_is_read_as_the_log_is(recommender):
    model, names = model_of(recommender), ["i3", "i7"]
    wanted = model.recommend("u1", k=np.int64(20), exclude=names, context={"timestamp": NOW})
    for given in (np.array(names), pd.Series(names), pl.Series(names), pa.array(names), {"i3", "i7"}, iter(names)):
        assert model.recommend("u1", k=20, exclude=given, context={"timestamp": NOW}).equals(wanted)
    users = pa.array(["u1", "u3"])
    assert model.recommend(users, k=2).column("user_id").to_pylist() == ["u1", "u1", "u3", "u3"]
    assert id_texts([5, 5.0, np.int64(5), np.float32(5), pa.scalar(5.0)], "ids") == ["5"] * 5


def test_values_of_rules_are_read_as_those_of_items_are():
    found = filter_rules({"kind": [1, True, "a"], "price": {"min": decimal.Decimal("1.5"), "max": np.int64(3)}})
    assert found == {"kind": ColumnRule(any=["1", "true", "a"]), "price": ColumnRule(min=1.5, max=3.0)}


def test_the_context_of_a_table_is_read_as_prepare_reads_it(make_world):
    """A table of a CSV has texts where the log had numbers, and one of Parquet may have numbers where it had texts."""
    world = make_world(rich=True)
    known = world.features
    context = ContextSpec(
        categorical=tuple(known.context_categories),
        numeric=tuple(known.context_numbers),
        text=tuple(known.context_texts),
    )
    assert context.numeric and context.categorical and context.text
    world.spec = dataclasses.replace(world.spec, events=dataclasses.replace(world.spec.events, context=context))
    recommender = world.recommender(world.config("train.preset=full"), blend=blend_of)
    table, _ = log_of(world, after=NOW)
    rows = {name: [0.5] * len(table) for name in context.numeric}
    rows |= {name: ["5"] * len(table) for name in context.categorical + context.text}
    table = table.drop_columns([name for name in rows if name in table.column_names])
    frames = [rows, {name: [type_(v) for v in values] for (name, values), type_ in zip(
        rows.items(), [str] * len(context.numeric) + [float] * (len(rows) - len(context.numeric)), strict=True)}]  # fmt: skip
    wanted, found = (
        evaluate_table(recommender, pa.table(dict(zip(table.column_names, table.columns, strict=True)) | more), ks=(10,),
                       resamples=2)["model"] for more in frames
    )  # fmt: skip
    assert found == wanted
    with pytest.raises(
        UserError, match=r"column 'user_id' of the table to evaluate on is list.*expected one value a row"
    ):
        lists = pa.array([["u1"]] * len(table))
        evaluate_table(recommender, table.set_column(0, "user_id", lists), ks=(10,), resamples=2)


def test_times_of_a_table_that_cannot_be_read_are_counted(recommender, world):
    table, _ = log_of(world, after=NOW)
    times = [str(t) for t in table.column("timestamp").to_pylist()]
    times[1] = "soon"
    bad = table.set_column(2, "timestamp", pa.array(times))
    with pytest.raises(UserError, match=r"1 times of the table cannot be read, such as 'soon'"):
        evaluate_table(recommender, bad, ks=(10,), resamples=2)
