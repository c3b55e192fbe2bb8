"""Tables and names of columns become the spec that `prepare` reads."""

from __future__ import annotations

import decimal
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ctxrec
from ctxrec.core.errors import UserError
from ctxrec.python_api.steps import config_of
from ctxrec.python_api.table_spec import spec_of

LOG = pd.DataFrame(
    {
        "user_id": [f"u{n % 7}" for n in range(60)],
        "item_id": [n % 11 for n in range(60)],
        "timestamp": [1_700_000_000 + 3600 * n for n in range(60)],
        "device": ["tv", "phone"] * 30,
        "basket": [n / 4 for n in range(60)],
    }
)
ITEMS = pd.DataFrame(
    {
        "item_id": range(11),
        "title": [f"A thing of number {n} for the house" for n in range(11)],
        "brand": ["y", "z", "y", "y", "z", "z", "y", "y", "z", "y", "y"],
        "price": [n + 0.5 for n in range(11)],
    }
)
USERS = pd.DataFrame({"user_id": [f"u{n}" for n in range(7)], "gender": list("FMFMFMF"), "age": range(20, 27)})


def spec(tmp_path, log=LOG, items=None, users=None, *, context=None, actions=None, split=None, **columns):
    return spec_of(
        log,
        items,
        users,
        folder=str(tmp_path / "tables"),
        columns=columns,
        context=context,
        actions=actions,
        split=split,
    )[0]


def test_weights_of_actions_are_not_sure_until_they_are_given(tmp_path):
    log = LOG.assign(action=["view", "buy"] * 30)

    def unsure(actions):
        options = {"columns": {}, "context": None, "split": None, "actions": actions}
        return spec_of(log, None, None, folder=str(tmp_path), **options)[1]

    assert "action: action: every action counts alike as a target until actions={...} gives weights" in unsure(None)
    assert not [text for text in unsure({"buy": 1.0}) if text.startswith("action:")]


def test_usual_names_need_not_be_given(tmp_path):
    made = spec(tmp_path, items=ITEMS, users=USERS)
    events = made.events
    assert (events.user, events.item, events.time, events.action) == ("user_id", "item_id", "timestamp", None)
    assert made.items.id == "item_id" and "title" in made.items.text
    assert "brand" in made.items.categorical and "price" in made.items.numeric
    assert made.users.id == "user_id" and "gender" in made.users.categorical
    assert pq.read_table(events.path).num_rows == 60 and os.path.isabs(made.items.path)


def test_names_that_are_given_count_in_every_table(tmp_path):
    names = {"user_id": "customer", "item_id": "sku", "timestamp": "at"}
    made = spec(
        tmp_path, LOG.rename(columns=names).assign(kind="buy"), ITEMS.rename(columns=names), user="customer", item="sku",
        time="at", action="kind", context=("device", "basket"), actions={"buy": 1.0}, split={"strategy": "last"},
    )  # fmt: skip
    events = made.events
    assert (events.user, events.item, events.time, events.action) == ("customer", "sku", "at", "kind")
    assert events.context.categorical == ("device",) and events.context.numeric == ("basket",)
    assert made.items.id == "sku" and events.actions == {"buy": 1.0} and made.split.strategy == "last"


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl", "tsv"])
def test_files_of_every_kind_are_looked_at(tmp_path, ending):
    path = str(tmp_path / f"items.{ending}")
    if ending == "parquet":
        ITEMS.to_parquet(path)
    elif ending == "jsonl":
        ITEMS.to_json(path, orient="records", lines=True)
    else:
        ITEMS.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    made = spec(tmp_path, items=path)
    assert made.items.path == path and made.items.id == "item_id"
    assert "title" in made.items.text and "brand" in made.items.categorical and "price" in made.items.numeric


def test_an_unchanged_table_is_not_written_again(tmp_path):
    path = spec(tmp_path).events.path
    os.utime(path, (1, 1))
    assert spec(tmp_path).events.path == path and os.stat(path).st_mtime < 2
    spec(tmp_path, LOG.assign(device="radio"))
    assert os.stat(path).st_mtime > 2


def test_what_is_not_sure_is_told(tmp_path):
    log = LOG.rename(columns={"user_id": "a", "item_id": "b"})
    _, unsure = spec_of(log, None, None, folder=str(tmp_path), columns={}, context=None, actions=None, split=None)
    assert any(text.startswith(("user: ", "item: ")) for text in unsure)
    assert not any("[events" in text or text.startswith("events.") for text in unsure), (
        "keys of a spec are no arguments"
    )


def test_mistakes_are_one_line_that_names_the_column(tmp_path):
    with pytest.raises(UserError, match=r"user = 'who' is no column of .*interactions.parquet; found columns user_id"):
        spec(tmp_path, user="who")
    with pytest.raises(UserError, match=r"interactions has no column 'mood'; .*with context="):
        spec(tmp_path, context=("mood",))
    with pytest.raises(UserError, match=r"dataset.toml says which tables.*expected no other tables"):
        spec(tmp_path, "my/dataset.toml", items=ITEMS)
    with pytest.raises(UserError, match=r"unknown key 'strat'"):
        spec(tmp_path, split={"strat": "last"})


def test_options_have_the_names_of_the_commands(tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\nseed = 3\nworkers = 2\n")
    made = config_of({"train.seed": 4, "model.sources": ("text", "memory")}, str(tmp_path / "mine.toml"))
    assert (made.train.seed, made.train.workers, made.model.sources) == (4, 2, ("text", "memory"))
    with pytest.raises(UserError, match=r"options has 'seed'; expected section\.key"):
        config_of({"seed": 1})
    with pytest.raises(UserError, match=r"train\.preset is 'fast'"):
        config_of({"train.preset": "fast"})


def test_a_named_context_of_words_is_a_text_and_one_of_decimals_a_number(tmp_path):
    """They were categories, of which the text encoder reads none."""
    log = LOG.assign(
        search=[f"a thing of {n} words for the house" for n in range(60)],
        paid=[decimal.Decimal(n) / 4 for n in range(60)],
        waited=pd.to_timedelta(range(60), unit="s"),
    )
    context = spec(tmp_path, log, context=["search", "paid", "waited", "device"]).events.context
    assert (context.text, context.numeric, context.categorical) == (("search",), ("paid", "waited"), ("device",))


def test_numbers_may_be_names_of_columns_and_actions(tmp_path):
    names = dict(zip(LOG.columns, range(5), strict=True))
    log = LOG.rename(columns=names).assign(kind=[1, 2] * 30)
    events = spec(tmp_path, log, user=0, item=1, time=2, action="kind", actions={1: 1.0, 2: 0.5}).events
    assert (events.user, events.item, events.time, events.actions) == ("0", "1", "2", {"1": 1.0, "2": 0.5})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context": "device"}, "context is 'device'.*expected a list of columns"),
        ({"actions": ["buy"], "action": "device"}, "expected a list of columns, weights by action"),
        ({"split": "last"}, "split 'last'; expected .* values by key of"),
        ({"item": "user_id"}, "events.item and events.user are both 'user_id'"),
        ({"action": "device", "actions": {"tv": "1"}}, "events.actions.tv is '1'; expected a finite number"),
        ({"action": "device", "actions": {"tv": float("nan")}}, "events.actions.tv is nan; expected a finite number"),
    ],
)
def test_an_argument_that_means_nothing_is_a_users_mistake(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        spec(tmp_path, **given)


def test_a_type_that_no_file_has_is_a_users_mistake(tmp_path):
    odd = pa.RunEndEncodedArray.from_arrays([60], ["a"])
    with pytest.raises(UserError, match=r"interactions has a column of a type that Parquet does not have .*run_end"):
        spec(tmp_path, pa.Table.from_pandas(LOG).append_column("odd", odd))


def test_a_place_may_be_a_path_and_nothing_else(tmp_path):
    with pytest.raises(UserError, match=r"no finished run at .*nothing"):
        ctxrec.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no prepared data at .*nothing"):
        ctxrec.train(tmp_path / "nothing", out=tmp_path / "run")
    for ask, what in (
        (lambda: ctxrec.load(None), "run is a NoneType"),
        (lambda: ctxrec.fit(LOG, out=5), "out is a int"),
        (lambda: ctxrec.train(LOG, out="x"), "data is a DataFrame"),
    ):
        with pytest.raises(UserError, match=f"{what}; expected a path or a URI"):
            ask()
    with pytest.raises(UserError, match=r"out='.*' is a file; expected a folder, which need not exist"):
        ctxrec.fit(LOG, out=__file__)


def test_a_wrong_preset_is_refused_before_anything_is_read():
    with pytest.raises(UserError, match=r"train\.preset is 'fast'; expected one of full, quick"):
        ctxrec.fit("no-such-file.csv", preset="fast")


def test_a_mistake_names_the_table_and_not_a_file_that_goes_with_the_process():
    with pytest.raises(UserError) as told:
        ctxrec.fit(ITEMS[["item_id", "price"]], preset="quick", verbose=False)
    assert 'no column of interactions looks like the user; found columns item_id, price. Name it: user="' in str(
        told.value
    )
    with pytest.raises(UserError, match=r'looks like a time; found columns user_id, item_id\. Name it: time="COLUMN"'):
        ctxrec.fit(LOG[["user_id", "item_id"]], preset="quick", verbose=False)
    with pytest.raises(UserError) as told:
        ctxrec.fit(LOG, time="when", preset="quick", verbose=False)
    assert "when" in str(told.value) and "ctxrec-fit-" not in str(told.value)
    lists = LOG.assign(user_id=[["a"]] * len(LOG))
    with pytest.raises(UserError) as told:
        ctxrec.fit(lists, user="user_id", item="item_id", time="timestamp", preset="quick", verbose=False)
    assert "the table interactions" in str(told.value) and "ctxrec-fit-" not in str(told.value)


def test_the_time_zone_of_a_table_is_given_by_its_name(tmp_path):
    log = LOG.assign(timestamp=pd.to_datetime(LOG["timestamp"], unit="s"))  # pandas gives these no zone
    given = {"folder": str(tmp_path), "columns": {}, "context": None, "actions": None, "split": None}
    guessed, unsure = spec_of(log, None, None, **given)
    assert guessed.events.timezone == "UTC" and any("names no time zone" in text for text in unsure)
    made, unsure = spec_of(log, None, None, timezone="Asia/Shanghai", **given)
    assert made.events.timezone == "Asia/Shanghai" and not any("names no time zone" in text for text in unsure)
    with pytest.raises(UserError, match="is no time zone; expected an IANA name"):
        spec_of(log, None, None, timezone="Shanghai time", **given)
    with pytest.raises(UserError, match="split, timezone, time_format or decimal beside it"):
        spec_of("dataset.toml", None, None, timezone="UTC", **given)


def test_the_format_of_times_is_guessed_or_given(tmp_path):
    days = pd.to_datetime(LOG["timestamp"], unit="s")
    given = {"folder": str(tmp_path), "columns": {}, "context": None, "actions": None, "split": None}
    sure = LOG.assign(timestamp=days.dt.strftime("%d.%m.%Y %H:%M"))
    events, unsure = spec_of(sure, None, None, **given)
    assert events.events.time_format == "%d.%m.%Y %H:%M" and not [t for t in unsure if t.startswith("time_format")]
    open_ = LOG.assign(timestamp="03/04/2023")
    events, unsure = spec_of(open_, None, None, **given)
    assert events.events.time_format == "%d/%m/%Y"
    assert any(text.startswith("time_format: '03/04/2023' may be %d/%m/%Y or %m/%d/%Y") for text in unsure)
    events, unsure = spec_of(open_, None, None, time_format="%m/%d/%Y", **given)
    assert events.events.time_format == "%m/%d/%Y" and not [t for t in unsure if t.startswith("time_format")]
    with pytest.raises(
        UserError, match=r"events\.time_format is '%d/%M/%Y', which has a day and no month; %M is the min"
    ):
        spec_of(open_, None, None, time_format="%d/%M/%Y", **given)


def test_the_decimal_sign_is_guessed_or_given(tmp_path):
    given = {"folder": str(tmp_path), "columns": {}, "context": None, "actions": None, "split": None}
    items = ITEMS.assign(price=[f"{n + 1},234" for n in range(len(ITEMS))])  # thousands, or a fraction
    spec, unsure = spec_of(LOG, items, None, **given)
    assert spec.items.decimal is not None and any("decimal" in text for text in unsure)
    other = {",": ".", ".": ","}[spec.items.decimal]
    spec, unsure = spec_of(LOG, items, None, decimal=other, **given)
    assert (spec.items.decimal, spec.events.decimal) == (other, other) and "price" in spec.items.numeric
    assert not any("decimal" in text for text in unsure)
    with pytest.raises(UserError, match=r"decimal is ';'; expected the decimal sign of numbers in texts"):
        spec_of(LOG, items, None, decimal=";", **given)
