"""A/B tests: who is in which arm, which events belong to which, and what the statistics say of known truths."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from commands import assert_users_mistake, call

from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.experiments.ab_report import LISTS, USERS, format_report, report
from ctxrec.experiments.ab_test import Arm, Experiment
from ctxrec.experiments.event_credit import Log, attribute, choose_experiment, read_log
from ctxrec.experiments.exposures import Exposure, read_exposures, write_exposures
from ctxrec.experiments.statistics import compare, holm, ratio, sample_ratio_p

HALF = Experiment(name="half", arms=(Arm(name="b", version="2", share=0.5),))
ONES = np.ones


def test_a_user_stays_in_an_arm_and_arms_have_their_shares():
    users = [f"user{n}" for n in range(20_000)]
    small = Experiment(name="x", arms=(Arm(name="b", version="2", share=0.1), Arm(name="c", version="3", share=0.2)))
    larger = Experiment(name="x", arms=(Arm(name="b", version="2", share=0.1), Arm(name="c", version="3", share=0.4)))
    before, after = ([e.arm_of(u) for u in users] for e in (small, larger))
    names = [arm.name if arm else "control" for arm in before]
    counts = [names.count(name) for name in ("control", "b", "c")]
    assert sample_ratio_p(counts, [0.7, 0.1, 0.2]) > 0.01
    assert all(b is None or b.name == a.name for b, a in zip(before, after, strict=True)), (
        "more share moves nobody else"
    )
    other = Experiment(name="y", arms=(Arm(name="b", version="2", share=0.5),))
    both = np.array([[bool(e.arm_of(u)) for e in (HALF, other)] for u in users])
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.03, "tests are independent of each other"
    assert small.share_of(None) == pytest.approx(0.7)
    assert HALF.arm_of("ä\ud800") == HALF.arm_of("ä\ud800")


@pytest.mark.parametrize(
    ("name", "arms", "says"),
    [
        ("a b", [("b", 0.1)], "experiment is 'a b'"),
        ("x", [("control", 0.1)], "arm is 'control'"),
        ("x", [("b", 0.0)], "share of arm 'b' is 0.0"),
        ("x", [("b", 0.5), ("c", 0.5)], "take all users"),
        ("x", [("b", 0.1), ("b", 0.2)], "of different names"),
        ("x", [], "expected one or more"),
    ],
)
def test_tests_that_make_no_sense(name, arms, says):
    with pytest.raises(UserError, match=says):
        Experiment(name=name, arms=tuple(Arm(name=n, version="2", share=s) for n, s in arms))


def test_means_are_compared_as_scipy_does():
    rng = np.random.default_rng(0)
    a, b = rng.poisson(2.2, 180).astype(float), rng.poisson(2.0, 95).astype(float)
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    found = compare(ratio(a, ONES(180)), ratio(b, ONES(95)))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.lift == pytest.approx(a.mean() / b.mean() - 1)
    assert sample_ratio_p([480, 520], [0.5, 0.5]) == pytest.approx(scipy.stats.chisquare([480, 520]).pvalue)


def test_the_variance_of_a_ratio_is_that_of_its_resamples():
    rng = np.random.default_rng(1)
    lists = rng.geometric(0.2, 2000).astype(float)
    clicks = rng.binomial(lists.astype(int), rng.beta(2, 8, 2000)).astype(float)
    draws = rng.integers(2000, size=(2000, 2000))
    resampled = clicks[draws].sum(1) / lists[draws].sum(1)
    assert np.sqrt(ratio(clicks, lists).variance) == pytest.approx(resampled.std(), rel=0.05)


def users_with_their_own_ways(rng, num: int, *, lift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Clicks and lists of users who differ in how often they come and how much they click."""
    lists = rng.geometric(0.15, num).astype(float)
    return rng.binomial(lists.astype(int), rng.beta(1, 9, num) * (1 + lift)).astype(float), lists


def test_equal_arms_differ_in_five_percent_of_the_tests_and_intervals_hold_the_truth():
    rng = np.random.default_rng(2)
    false, naive, inside, num = 0, 0, 0, 600
    for _ in range(num):
        (a, n_a), (b, n_b) = users_with_their_own_ways(rng, 400), users_with_their_own_ways(rng, 400)
        found = compare(ratio(a, n_a), ratio(b, n_b))
        false += found.p < 0.05
        inside += found.low <= 0 <= found.high
        table = [[a.sum(), n_a.sum() - a.sum()], [b.sum(), n_b.sum() - b.sum()]]
        naive += scipy.stats.chi2_contingency(table, correction=False).pvalue < 0.05
    low, high = scipy.stats.binom.ppf([0.005, 0.995], num, 0.05)
    assert low <= false <= high and num - high <= inside <= num - low
    assert naive > 2 * high, "as if lists of one user were independent: many false alarms"
    covered = 0
    for _ in range(300):
        (a, n_a), (b, n_b) = users_with_their_own_ways(rng, 800, lift=0.3), users_with_their_own_ways(rng, 800)
        found = compare(ratio(a, n_a), ratio(b, n_b))
        covered += found.low <= 0.3 <= found.high
    assert scipy.stats.binom.cdf(covered, 300, 0.95) > 0.005


def test_what_cannot_be_told_is_not_told():
    nobody, one, none = ratio(ONES(0), ONES(0)), ratio(ONES(1), ONES(1)), ratio(np.zeros(9), ONES(9))
    some = ratio(np.array([0.0, 1, 1]), ONES(3))
    for pair in ((nobody, some), (some, one), (none, none)):
        assert np.isnan(compare(*pair).p)
    assert np.isnan(compare(some, none).lift) and compare(some, none).p < 1
    assert compare(none, some).lift == -1 and np.isnan(compare(none, some).low)
    made = holm([0.01, float("nan"), 0.04, 0.03])
    assert made[:1] + made[2:] == [0.03, 0.06, 0.06] and np.isnan(made[1])


def exposure(at: float, user: str | None, arm: str, version: str = "1", **given) -> Exposure:
    given = {"share": 0.5, "request_id": "r", "item_ids": ["x"], "experiment": "half"} | given
    return Exposure(time_us=int(at * US), user_id=user, arm=arm, model_version=version, **given)


def log_of(*events: tuple[str, str, str, float]) -> Log:
    users, items, actions, times = zip(*events, strict=True)
    return Log(*(np.array(c, object) for c in (users, items, actions)), (np.array(times) * US).astype(np.int64))


def test_events_go_to_the_last_list_that_was_seen_before(tmp_path):
    write_exposures(
        str(tmp_path),
        [
            exposure(10, "a", "control"),
            exposure(20, "a", "control", "2"),
            exposure(10, "b", "b", "9", item_ids=["y"]),
            exposure(10, "both", "b"),
            exposure(11, "both", "control"),
            exposure(10, None, "control"),
            exposure(10, "quiet", "control"),
        ],
    )
    write_exposures(str(tmp_path), [exposure(15, "b", "b", "9"), exposure(1, "z", "control", experiment="other")])
    name, exposures = choose_experiment(read_exposures(str(tmp_path)), "half")
    log = log_of(
        ("a", "x", "buy", 9),  # before any list
        ("a", "x", "view", 10),  # at once
        ("a", "x", "buy", 19.5),
        ("a", "z", "buy", 25),
        ("a", "x", "buy", 121),  # too late
        ("b", "y", "buy", 14),
        ("b", "y", "buy", 16),  # not in the list before it
        ("both", "x", "buy", 12),
        ("nobody", "x", "buy", 12),
    )
    found = attribute(exposures, log, window_s=100)
    assert (found.num_left_out, found.num_nameless) == (1, 1)
    made = report(found, experiment=name, window_s=100)
    control, b = made["arms"]["control"], made["arms"]["b"]
    assert (control["users"], control["lists"], b["users"], b["lists"]) == (2, 3, 1, 2)
    assert control["events"] == {"buy": 2, "view": 1} and b["events"] == {"buy": 2, "view": 0}
    assert control["versions"] == {
        "1": {"lists": 2, "events": {"view": 1, "buy": 1}},
        "2": {"lists": 1, "events": {"buy": 1}},
    }
    values = {(c["action"], c["metric"]): (c["control"], c["treatment"]) for c in made["comparisons"]}
    assert values["buy", USERS] == (0.5, 1) and values["buy", LISTS] == (2 / 3, 1)
    shown = attribute(exposures, log, window_s=100, shown_only=True)
    assert shown.events_AU.sum() == found.events_AU.sum() - 2
    assert made["sample_ratio"]["mismatch"] is False and "sizes of the arms fit" in format_report(made)


def test_a_wrong_split_is_said_loudly(tmp_path):
    write_exposures(str(tmp_path), [exposure(1, f"u{n}", "b" if n % 3 else "control") for n in range(900)])
    _, exposures = choose_experiment(read_exposures(str(tmp_path)), None)
    made = report(attribute(exposures, log_of(("u1", "x", "buy", 2)), window_s=9), experiment="half", window_s=9)
    assert made["sample_ratio"]["mismatch"] is True and "DO NOT FIT" in format_report(made)
    write_exposures(str(tmp_path), [exposure(2, "u0", "control", share=0.6)])
    _, exposures = choose_experiment(read_exposures(str(tmp_path)), None)
    made = report(attribute(exposures, log_of(("u1", "x", "buy", 2)), window_s=9), experiment="half", window_s=9)
    assert made["sample_ratio"] == {"p": None, "mismatch": None} and "not checked" in format_report(made)


def test_mistakes(tmp_path):
    write_exposures(str(tmp_path / "one"), [exposure(1, "u", "control")])
    one = read_exposures(str(tmp_path / "one"))
    with pytest.raises(UserError, match="lists of control alone"):
        report(attribute(one, log_of(("u", "x", "buy", 2)), window_s=9), experiment="half", window_s=9)
    with pytest.raises(UserError, match="--experiment is 'other'; the exposures have the tests half"):
        choose_experiment(one, "other")
    write_exposures(str(tmp_path / "one"), [exposure(1, "u", "control", experiment="second")])
    with pytest.raises(UserError, match="--experiment is missing; the exposures have the tests half, second"):
        choose_experiment(read_exposures(str(tmp_path / "one")), None)
    pq.write_table(pa.table({"time": [1]}), tmp_path / "wrong.parquet")
    with pytest.raises(UserError, match=r"wrong\.parquet has no exposures"):
        read_exposures(str(tmp_path / "wrong.parquet"))


def test_the_command(tmp_path, monkeypatch, capsys):
    """A simulated test with a true lift, as files, through the command."""
    rng = np.random.default_rng(3)
    shown, rows = [], []
    for n in range(3000):
        user = f"u{n}"
        arm = HALF.arm_of(user)
        chance = 0.3 if arm else 0.2
        for at in range(1 + rng.poisson(2)):
            shown.append(exposure(1e9 + at * 100, user, "b" if arm else "control", "2" if arm else "1"))
            if rng.random() < chance:
                rows.append((user, "x", "view", 1e9 + at * 100 + 5))
            if rng.random() < 0.1:
                rows.append((user, "y", "buy", 1e9 + at * 100 + 7))
    write_exposures(str(tmp_path / "exposures"), shown)
    names = ("customer", "sku", "kind", "at")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), tmp_path / "e.parquet")
    spec = 'name = "s"\n[events]\npath = "e.parquet"\nuser = "customer"\nitem = "sku"\ntime = "at"\naction = "kind"\n'
    (tmp_path / "dataset.toml").write_text(spec)
    given = ["--exposures", f"{tmp_path}/exposures", "--events", f"{tmp_path}/e.parquet"]
    options = [*given, "--spec", f"{tmp_path}/dataset.toml", "--out", f"{tmp_path}/ab.json"]
    ended = call("ctxrec.ab", *options)
    assert ended.returncode == 0, ended.stderr
    made = json.loads((tmp_path / "ab.json").read_text())
    assert format_report(made) in ended.stdout
    found = {(c["action"], c["metric"]): c for c in made["comparisons"]}
    view, buy = found["view", LISTS], found["buy", LISTS]
    assert view["low"] < 0.5 < view["high"] and view["p_holm"] < 0.001 and buy["p"] > 0.01
    assert made["sample_ratio"]["mismatch"] is False
    assert_users_mistake(call("ctxrec.ab", *given), "user_id")


def test_events_of_a_log_of_texts_are_read_as_its_spec_says(tmp_path):
    """And the files of posted events beside it, which are Parquet, by the same spec."""
    form = {"user": "Kunde", "item": "Artikel", "time": "Datum"}
    spec = EventsSpec(path="x", **form, time_format="%d.%m.%Y %H:%M", delimiter=";", encoding="cp1252")
    text = "Kunde;Artikel;Datum\nü;a;31.12.2020 08:26\nv;b;soon\n"
    (tmp_path / "log.csv").write_bytes(text.encode("cp1252"))
    moment = datetime.datetime(2020, 12, 31, 8, 26, tzinfo=datetime.UTC)
    log = read_log(str(tmp_path / "log.csv"), spec)
    assert (log.users.tolist(), log.items.tolist(), log.times_us.tolist()) == (["ü"], ["a"], [moment.timestamp() * 1e6])
    posted = pa.table({"Kunde": ["ü"], "Artikel": ["a"], "Datum": pa.array([moment], pa.timestamp("us", tz="UTC"))})
    pq.write_table(posted, tmp_path / "posted.parquet")
    assert read_log(str(tmp_path / "posted.parquet"), spec).times_us.tolist() == log.times_us.tolist()
