from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Ended, call

from ctxrec.core import schema
from ctxrec.core.config import load_config
from ctxrec.core.errors import UserError
from ctxrec.data.events import US, Context, Events, Users, histories_from_table
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests, concat_requests, split_requests
from ctxrec.datasets import write_simulated
from ctxrec.datasets.oracle import load_oracle, load_oracles, oracle_of_log
from ctxrec.datasets.simulated import SPEC
from ctxrec.datasets.simulation import (
    DEVICES,
    LIKING,
    NEVER,
    PLACES,
    TASTE,
    TRUTH,
    SimulatedLog,
    Simulation,
    Truth,
    searches_by_text,
)
from ctxrec.datasets.visits import TEST_SHARE
from ctxrec.index.topk import top_k
from ctxrec.metrics.ranking import request_metrics

# In another order than the simulation's own, and without one place: codes are the prepared data's.
FEATURES = FeatureMeta(
    item_categories={}, item_numbers={}, user_categories={}, user_numbers={},
    context_categories={"device": sorted(DEVICES), "place": sorted(set(PLACES) - {"travel"})},
    context_numbers={}, context_texts=[], actions=[],
)  # fmt: skip


def requests_of(events: pa.Table) -> Requests:
    """Each event of a log as a request at its moment, without history."""
    num = len(events)

    def codes(name: str) -> np.ndarray:
        known = {value: code + schema.FIRST_CODE for code, value in enumerate(FEATURES.context_categories[name])}
        return np.array([known.get(value, schema.OTHER) for value in events[name].to_pylist()], np.int32)

    nothing = np.zeros(0, np.int32)
    return Requests(
        users=Users(ids=np.array(events["user_id"].to_pylist(), object)),
        history=Events(np.zeros(num + 1, np.int64), nothing, nothing.astype(np.int64), nothing, Context()),
        times=events["timestamp"].to_numpy() * US,
        context=Context(
            cat={"device": codes("device"), "place": codes("place")},
            text={name: np.array(events[name].to_pylist(), object) for name in {"search"} & set(events.column_names)},
        ),
    )


def read_log(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / "events").iterdir()))


def chi_square(log: pa.Table, probabilities: np.ndarray, groups: np.ndarray) -> float:
    """How far the items' counts in each group of events lie from the sums of their probabilities, in deviations of the
    chi-square statistic from its mean."""
    items = np.array([int(name[1:]) for name in log["item_id"].to_pylist()])
    statistic, freedom = 0.0, 0
    for group in np.unique(groups):
        rows = groups == group
        expected = probabilities[rows].sum(axis=0)
        found = np.bincount(items[rows], minlength=len(expected))
        assert not found[expected == 0].any()
        often = expected >= 5
        statistic += (((found - expected) ** 2)[often] / expected[often]).sum()
        freedom += often.sum() - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


def test_items_are_drawn_with_the_true_probabilities(tmp_path):
    plan = Simulation(users=2, items=60, events=60_000, context=1.0, cold=0.2, seed=3)
    write_simulated(str(tmp_path), plan)
    log = read_log(tmp_path)
    assert len(log) == plan.events
    oracle = load_oracle(str(tmp_path), FEATURES)["oracle"]
    asked = log.filter(pa.array(np.array(log["place"].to_pylist()) != "travel"))  # the features do not know it
    probabilities = np.exp(oracle.scores(requests_of(asked)).astype(np.float64))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-4)
    users, devices = asked["user_id"].to_numpy(), np.array(asked["device"].to_pylist())
    hours = asked["timestamp"].to_numpy() // 3600 % 24 // 4
    for groups in (users, devices, hours):
        assert abs(chi_square(asked, probabilities, groups)) < 4
    wrong = np.random.default_rng(0).permutation(len(asked))  # probabilities of other moments do not fit
    assert chi_square(asked, probabilities[wrong], devices) > 20


def test_without_context_the_probabilities_are_the_average_over_contexts(tmp_path):
    write_simulated(str(tmp_path), Simulation(users=1, items=40, events=60_000, context=1.0, seed=1))
    log = read_log(tmp_path)
    oracles = load_oracle(str(tmp_path), FEATURES)
    average = np.exp(oracles["oracle_no_context"].scores(requests_of(log.slice(0, 1))).astype(np.float64))
    assert average.sum() == pytest.approx(1, rel=1e-4)
    counts = np.bincount([int(name[1:]) for name in log["item_id"].to_pylist()], minlength=40)
    # Events of one visit share their context, so counts spread more than independent ones.
    np.testing.assert_allclose(counts / len(log), average[0], atol=0.01)


def test_searches_are_true_texts_and_move_the_probabilities(tmp_path):
    plan = Simulation(users=2, items=60, events=5_000, context=0.0, searches=0.4, seed=3)
    write_simulated(str(tmp_path / "with"), plan)
    log = read_log(tmp_path / "with")
    asked = log.filter(pa.array(np.array(log["place"].to_pylist()) != "travel"))
    oracles = load_oracle(str(tmp_path / "with"), FEATURES)
    requests = requests_of(asked)
    probabilities = np.exp(oracles["oracle"].scores(requests).astype(np.float64))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-4)
    sought = np.array([searches_by_text().get(text, -1) for text in asked["search"].to_pylist()])
    assert (sought >= 0).mean() == pytest.approx(0.4, abs=0.05)
    assert abs(chi_square(asked, probabilities, sought)) < 4
    wrong = np.random.default_rng(0).permutation(len(asked))
    assert chi_square(asked, probabilities[wrong], sought) > 20
    average = np.exp(oracles["oracle_no_context"].scores(requests).astype(np.float64))
    np.testing.assert_allclose(average.sum(axis=1), 1, rtol=1e-4)
    items = np.array([int(name[1:]) for name in asked["item_id"].to_pylist()])
    for user in ("u0", "u1"):  # a visit of several events has one search, so counts spread more than independent ones
        rows = np.array(asked["user_id"].to_pylist()) == user
        np.testing.assert_allclose(np.bincount(items[rows], minlength=60) / rows.sum(), average[rows][0], atol=0.03)
    spec = (tmp_path / "with/dataset.toml").read_text()
    assert 'text = ["search"]' in spec and "search" not in SPEC
    write_simulated(str(tmp_path / "without"), Simulation(users=2, items=60, events=1_000, seed=3))
    assert "search" not in read_log(tmp_path / "without").column_names


def test_at_strength_0_the_context_says_nothing(tmp_path):
    write_simulated(str(tmp_path), Simulation(users=50, items=200, events=2_000, context=0.0, cold=0.1))
    oracles = load_oracle(str(tmp_path), FEATURES)
    requests = requests_of(read_log(tmp_path))
    with_context, without = (oracles[name].scores(requests) for name in ("oracle", "oracle_no_context"))
    np.testing.assert_allclose(with_context, without, rtol=1e-5, atol=1e-4)


def test_the_order_of_the_log_and_the_launch(tmp_path):
    """Cold items are there from the first test event on at the earliest, whatever the sizes."""
    for seed in range(20):
        log = SimulatedLog.make(Simulation(users=5, items=50, events=100 + 37 * seed, cold=0.5, seed=seed))
        events = pa.concat_tables(log.chunks())
        times, items = events["timestamp"].to_numpy(), events["item_id"].to_pylist()
        cut = np.sort(times)[len(times) - int(len(times) * TEST_SHARE)]
        cold = log.truth.item_cold[[int(name[1:]) for name in items]]
        assert len(times) == log.plan.events and times[cold].min(initial=2**62) >= cut
        assert log.truth.item_cold.sum() == 25
        oracle = log.truth.launched(late=False)
        assert (oracle[log.truth.item_cold] == 0).all()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, ray_cluster):
    """A simulated log, prepared."""
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    folder = tmp_path_factory.mktemp("simulated")
    write_simulated(str(folder / "ds"), Simulation(users=1_500, items=400, events=36_000, context=1.0, cold=0.1))
    return folder / "ds", prepare(load_spec(str(folder / "ds/dataset.toml")), str(folder / "data"), load_config())


def test_cold_items_have_test_events_alone(simulated):
    folder, data = simulated
    cold = Truth.load(str(folder / TRUTH)).item_cold
    assert data.items[schema.ITEM_ID].to_pylist() == pq.read_table(folder / "items.parquet")["item_id"].to_pylist()
    counts = np.zeros((3, data.num_items), np.int64)
    for bucket in range(len(data.bucket_paths)):
        histories = histories_from_table(data.read_bucket(bucket), data.features)
        np.add.at(counts, (histories.split, histories.events.items), 1)
    assert cold.sum() == 40
    assert counts[[schema.TRAIN, schema.VALID]][:, cold].sum() == 0
    assert (counts[schema.TEST, cold] > 0).sum() > 20


def test_the_oracle_is_above_every_baseline_and_above_itself_without_context(simulated):
    from ctxrec.evaluation.baselines.selection import fit_baselines

    folder, data = simulated
    fitted = fit_baselines(data, "test", load_config(overrides=["encoder.name="]), run=None).fitted
    buckets = [histories_from_table(data.read_bucket(b), data.features) for b in range(len(data.bucket_paths))]
    requests = concat_requests([split_requests(bucket, schema.TEST, repeats=False) for bucket in buckets])

    def ndcg(ranker) -> float:
        top = top_k(ranker.scores(requests), 10, requests.seen())
        return request_metrics(top, requests.target_offsets, requests.target_items, [10])["ndcg@10"].mean()

    rankers = load_oracle(str(folder), data.features)
    rankers["oracle_of_log"] = oracle_of_log(rankers["oracle"], data, schema.TEST)
    oracles = {name: ndcg(ranker) for name, ranker in rankers.items()}
    baselines = {name: ndcg(ranker) for name, ranker in fitted.items()}
    assert len(baselines) >= 6
    assert oracles["oracle"] > 1.25 * oracles["oracle_no_context"]
    assert oracles["oracle_no_context"] > 1.1 * max(baselines.values())
    assert oracles["oracle"] > oracles["oracle_of_log"] > oracles["oracle_no_context"]


def test_the_truth_must_be_that_of_the_data(simulated, tmp_path):
    folder, data = simulated
    assert set(load_oracles(str(folder), data)) == {"oracle", "oracle_no_context"}
    write_simulated(str(tmp_path / "seed"), Simulation(users=1_500, items=400, events=100, cold=0.1, seed=1))
    with pytest.raises(UserError, match=r"are not those of the simulated log in .*as it is there now"):
        load_oracles(str(tmp_path / "seed"), data)
    write_simulated(str(tmp_path / "few"), Simulation(users=1_500, items=300, events=100))
    with pytest.raises(UserError, match=r"\(400\) are not those .* \(300\)"):
        load_oracles(str(tmp_path / "few"), data)


@pytest.mark.parametrize("users", [3, 40])
def test_few_users_without_attributes_are_not_read_from_the_truth(tmp_path, ray_cluster, users, monkeypatch):
    """Without any event nothing is known of what is a user's own; events and items are gone through in parts."""
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.datasets import oracle
    from ctxrec.ingest.pipeline import prepare

    write_simulated(str(tmp_path / "ds"), Simulation(users=users, items=50, events=100 * users, seed=2))
    spec = tmp_path / "ds/dataset.toml"
    spec.write_text(spec.read_text().replace('["age_group", "job"]', "[]"))
    data = prepare(load_spec(str(spec)), str(tmp_path / "data"), load_config())
    known = load_oracles(str(tmp_path / "ds"), data)["oracle"]
    whole = oracle_of_log(known, data, schema.TEST).truth
    monkeypatch.setattr(oracle, "_EVENTS_AT_ONCE", 37)
    monkeypatch.setattr(oracle, "_ITEMS_AT_ONCE", 7)
    parts = oracle_of_log(known, data, schema.TEST).truth
    np.testing.assert_allclose(parts.taste_NC, whole.taste_NC, atol=0.02)
    np.testing.assert_allclose(parts.item_weight, whole.item_weight)
    nothing = oracle_of_log(known, data, schema.TRAIN).truth  # no event comes before the training split
    error = ((nothing.taste_NC - known.truth.taste_NC) ** 2).mean()
    assert error > 0.9 * known.truth.taste_NC.var()  # the mean of the others tells next to nothing


def test_nothing_is_known_of_items_held_out(simulated, tmp_path):
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.data.splits import held_out_items
    from ctxrec.ingest.pipeline import prepare

    folder, _ = simulated
    config = load_config(overrides=["prepare.cold_items=0.1"])
    data = prepare(load_spec(str(folder / "dataset.toml")), str(tmp_path), config)
    truth = oracle_of_log(load_oracle(str(folder), data.features)["oracle"], data, schema.TEST).truth
    true = Truth.load(str(folder / TRUTH))
    new = held_out_items(data.items[schema.ITEM_ID].to_pylist(), 0.1) | true.item_cold
    np.testing.assert_allclose(truth.item_weight[new], true.item_weight.mean(), rtol=0.05)
    assert np.corrcoef(np.log(truth.item_weight[~new]), np.log(true.item_weight[~new]))[0, 1] > 0.9
    assert ((truth.liking_NB - true.liking_NB) ** 2).mean() < 0.25 * LIKING**2


def test_what_a_log_tells_of_its_truth(simulated):
    """Own tastes are drawn towards the true ones, weights near them, and nothing else of the truth is lost."""
    folder, data = simulated
    known = load_oracle(str(folder), data.features)["oracle"]
    found, true = oracle_of_log(known, data, schema.TEST).truth, known.truth
    counts = np.zeros(data.num_items, np.int64)
    seen = np.zeros(len(true.taste_NC), np.int64)
    for bucket in range(len(data.bucket_paths)):
        histories = histories_from_table(data.read_bucket(bucket), data.features)
        events = histories.events.keep(histories.split < schema.TEST)
        counts += np.bincount(events.items, minlength=data.num_items)
        seen[[int(name[1:]) for name in histories.users.ids]] = events.lengths

    error = ((found.taste_NC - true.taste_NC) ** 2).mean(1)
    from_attributes = 0.25 * TASTE**2  # the variance of what is a user's own
    assert error[seen == 0].mean() == pytest.approx(from_attributes, rel=0.2) and (seen == 0).sum() > 20
    assert error[seen > 20].mean() < 0.85 * from_attributes
    assert ((found.liking_NB - true.liking_NB) ** 2)[seen > 20].mean() < 0.25 * LIKING**2

    np.testing.assert_allclose(found.item_weight[true.item_cold], true.item_weight.mean(), rtol=0.05)
    often = counts > 200
    assert often.sum() > 10
    assert np.abs(np.log(found.item_weight / true.item_weight))[often].mean() < 0.1
    for name in ("item_category", "item_brand", "item_cold", "device_XC", "place_XC", "daypart_XC"):
        assert getattr(found, name) is getattr(true, name)


def test_titles_carry_category_and_brand(tmp_path):
    write_simulated(str(tmp_path), Simulation(users=10, items=500, events=100))
    items = pq.read_table(tmp_path / "items.parquet").to_pandas()
    assert all(title.startswith(brand) for title, brand in zip(items["title"], items["brand"], strict=True))
    nouns = items["title"].str.split(" ", n=2).str[2]
    assert nouns.groupby(nouns).size().max() < 10
    # "jigsaw" is in two categories; whole endings are in one each.
    assert (items.assign(noun=nouns.str.split(" and ").str[-1]).groupby("noun")["category"].nunique() == 1).all()


def test_several_files_hold_the_same_log(tmp_path, monkeypatch):
    from ctxrec.datasets import simulated as writer
    from ctxrec.datasets import simulation

    plan = Simulation(users=30, items=30, events=5_000)
    monkeypatch.setattr(simulation, "EVENTS_AT_ONCE", 500)
    write_simulated(str(tmp_path / "one"), plan)
    monkeypatch.setattr(writer, "EVENTS_PER_FILE", 1_000)
    write_simulated(str(tmp_path / "many"), plan)
    assert len(list((tmp_path / "many/events").iterdir())) > 3
    assert read_log(tmp_path / "many").equals(read_log(tmp_path / "one"))


def test_the_same_plan_is_reused_and_another_seed_is_another_log(tmp_path):
    plan = Simulation(users=20, items=20, events=500)
    assert write_simulated(str(tmp_path), plan)
    first = read_log(tmp_path)
    assert not write_simulated(str(tmp_path), plan)
    (tmp_path / "users.parquet").unlink()
    assert write_simulated(str(tmp_path), plan) and read_log(tmp_path).equals(first)
    assert write_simulated(str(tmp_path), Simulation(users=20, items=20, events=500, seed=1))
    assert not read_log(tmp_path).equals(first)


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"--context is 2\.0; expected from 0 to 1"):
        Simulation(context=2.0)
    with pytest.raises(UserError, match=r"--searches is 1\.5; expected from 0 to 1"):
        Simulation(searches=1.5)
    with pytest.raises(UserError, match="--events is 0; expected at least 1"):
        Simulation(events=0)
    with pytest.raises(UserError, match=r"expected a folder that ctxrec datasets simulate wrote"):
        load_oracle(str(tmp_path), FEATURES)


def run(*arguments: str) -> Ended:
    return call("ctxrec.datasets.__main__", *arguments)


def test_the_command(tmp_path):
    sizes = ["--users", "10", "--items", "10", "--events", "100", "--context", "0.5", "--cold", "0.1", "--seed", "7"]
    done = run("simulate", *sizes, "--out", str(tmp_path))
    assert done.returncode == 0 and "simulate: written" in done.stdout
    assert len(read_log(tmp_path)) == 100 and NEVER < -1e20
    done = run("simulate", "--source", "x", "--out", str(tmp_path))
    assert done.returncode == 2 and "--source is given; expected none" in done.stderr
    done = run("movielens-100k", "--users", "10", "--out", str(tmp_path))
    assert done.returncode == 2 and "--users is given; expected it with a simulated log alone" in done.stderr
