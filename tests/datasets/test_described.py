"""The simulated log with rich descriptions: words tell all, events follow them, and the bounds are in order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import call

from ctxrec.core import schema
from ctxrec.core.config import load_config
from ctxrec.core.errors import UserError
from ctxrec.data.events import US, histories_from_table
from ctxrec.data.requests import concat_requests, split_requests
from ctxrec.datasets import write_simulated
from ctxrec.datasets.best_possible import load_oracles, oracle_of_log
from ctxrec.datasets.described import WAVE, DescribedLog, DescribedTruth
from ctxrec.datasets.phrases import ASPECTS, FILLERS
from ctxrec.datasets.simulation import NEVER, TRUTH, Simulation
from ctxrec.index.topk import top_k
from ctxrec.metrics.ranking import request_metrics

PLAN = Simulation(users=400, items=200, events=12_000, descriptions=True)


def told_by(description: str) -> list[set[int]]:
    """The values of each aspect that the sentences of a description tell."""
    found = []
    for aspect in ASPECTS.values():
        told = set()
        for carrier in aspect.carriers:
            around = re.sub(r"\\\{(\w+)\\\}", lambda name: "(?:" + "|".join(FILLERS[name[1]]) + ")", re.escape(carrier))
            for value, phrases in enumerate(aspect.values):
                told |= {value for p in phrases if re.search(around.replace(r"\{\}", re.escape(p)), description)}
        found.append(told)
    return found


def test_descriptions_tell_each_value_and_nothing_else_does():
    log = DescribedLog.make(PLAN)
    items = log.items_table().to_pandas()
    for values, title, description in zip(log.truth.value_IA, items["title"], items["description"], strict=True):
        assert told_by(description) == [{value} for value in values]
        assert 40 <= len(f"{title} {description}".split()) <= 110
        assert told_by(title) == [set()] * len(ASPECTS)
    assert list(items.columns) == ["item_id", "title", "description"]
    assert log.users_table().column_names == ["user_id"]


def test_phrases_tell_one_value_each():
    for aspect in ASPECTS.values():
        phrases = [phrase for phrases in aspect.values for phrase in phrases]
        assert len(set(phrases)) == len(phrases) and min(map(len, aspect.values)) >= 5


def test_items_are_drawn_with_the_true_probabilities():
    """Of one user without waves in the way: the counts against the softmax of tastes and weights, by chi-square."""
    log = DescribedLog.make(Simulation(users=1, items=40, events=30_000, descriptions=True, seed=4))
    events = pa.concat_tables(log.chunks())
    items = np.array([int(name[1:]) for name in events["item_id"].to_pylist()])
    truth, times = log.truth, events["timestamp"].to_numpy() * US
    early = items[times < truth.launch_us_I[truth.launch_us_I > 0].min()]
    logits = (truth.taste_NW @ truth.has_IW.T)[0].astype(float) + truth.log_weight_I
    chances = np.where(truth.launch_us_I > 0, 0, np.exp(logits - logits.max()))
    expected = chances / chances.sum() * len(early)
    counted = np.bincount(early, minlength=40)
    assert counted[expected == 0].sum() == 0
    often = expected >= 5
    statistic = ((counted - expected)[often] ** 2 / expected[often]).sum()
    freedom = often.sum() - 1
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


@pytest.fixture(scope="module")
def described(tmp_path_factory, ray_cluster):
    """The log of PLAN, prepared."""
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    folder = tmp_path_factory.mktemp("described")
    assert write_simulated(str(folder / "ds"), PLAN)
    return folder / "ds", prepare(load_spec(str(folder / "ds/dataset.toml")), str(folder / "data"), load_config())


def test_a_third_of_the_items_come_late(described):
    folder, data = described
    counts = np.zeros((3, data.num_items), np.int64)
    for bucket in range(len(data.bucket_paths)):
        histories = histories_from_table(data.read_bucket(bucket), data.features)
        np.add.at(counts, (histories.split, histories.events.items), 1)
    launch = DescribedTruth.of(load_truth(folder)).launch_us_I
    first, second = np.unique(launch)[1:]
    wave = round(WAVE * PLAN.items)
    assert ((launch == first).sum(), (launch == second).sum()) == (wave, wave)
    assert counts[schema.TRAIN, launch > 0].sum() == 0 and counts[schema.VALID, launch == second].sum() == 0
    assert counts[schema.VALID, launch == first].sum() > 0
    assert 0.25 < counts[schema.TEST, launch > 0].sum() / counts[schema.TEST].sum() < 0.5


def load_truth(folder: Path) -> dict[str, np.ndarray]:
    import safetensors.numpy

    return safetensors.numpy.load_file(folder / TRUTH)


def test_the_bounds_are_in_order(described):
    from ctxrec.evaluation.baselines.selection import fit_baselines

    folder, data = described
    buckets = [histories_from_table(data.read_bucket(b), data.features) for b in range(len(data.bucket_paths))]
    requests = concat_requests([split_requests(bucket, schema.TEST, repeats=False) for bucket in buckets])
    known = load_oracles(str(folder), data)["oracle"]
    told, nothing = (oracle_of_log(known, data, before) for before in (schema.TEST, schema.TRAIN))
    fitted = fit_baselines(data, "test", load_config(overrides=["encoder.name="]), run=None).fitted

    def ndcg(ranker) -> float:
        top = top_k(ranker.scores(requests), 10, requests.seen())
        return request_metrics(top, requests.target_offsets, requests.target_items, [10])["ndcg@10"].mean()

    best_baseline = max(map(ndcg, fitted.values()))
    assert ndcg(known) > 1.05 * ndcg(told) and ndcg(told) > 1.5 * best_baseline
    assert not nothing.truth.share_NK.any() and not nothing.truth.log_weight_I.any()
    correlation = np.corrcoef(told.truth.taste_NW.ravel(), known.truth.taste_NW.ravel())[0, 1]
    assert correlation > 0.7
    later = requests.times < known.truth.launch_us_I.max()
    late = known.truth.launch_us_I == known.truth.launch_us_I.max()
    assert (known.scores(requests)[np.ix_(later, late)] == NEVER).all()


def test_the_truth_must_be_that_of_the_data(described, tmp_path):
    _, data = described
    write_simulated(str(tmp_path), Simulation(users=400, items=200, events=100, descriptions=True, seed=1))
    with pytest.raises(UserError, match=r"are not those of the simulated log in .*as it is there now"):
        load_oracles(str(tmp_path), data)


def test_the_command_and_its_mistakes(tmp_path):
    sizes = ["--users", "20", "--items", "30", "--events", "300", "--descriptions"]
    for name in ("one", "two"):
        done = call("ctxrec.datasets.__main__", "simulate", *sizes, "--out", str(tmp_path / name))
        assert done.returncode == 0 and "descriptions True" in done.stdout
    for file in ("items.parquet", TRUTH, "events/events-00000.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert len(pq.read_table(tmp_path / "one/events")) == 300
    done = call("ctxrec.datasets.__main__", "simulate", *sizes, "--cold", "0.1", "--out", str(tmp_path / "three"))
    assert done.returncode == 2 and "--cold is 0.1; expected 0 with --descriptions" in done.stderr


def test_a_context_is_refused_as_there_is_none():
    with pytest.raises(UserError, match=r"--context is 0\.5; expected none with --descriptions"):
        Simulation(descriptions=True, context=0.5)
