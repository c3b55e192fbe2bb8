"""The benchmark command on tiny real data, with real trainings; and the pooling worked by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Ended, assert_users_mistake, call
from paths import REPO

from ctxrec.benchmarks import html_page as benchmark_page
from ctxrec.benchmarks import results as results_table
from ctxrec.benchmarks import runner
from ctxrec.benchmarks.suite import find_source, load_suite, overridden_spec, spec_toml
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError


def suite(folder: Path, text: str) -> str:
    path = folder / "suite.toml"
    path.write_text(text)
    return str(path)


def test_the_suite_of_the_repository_is_valid():
    found = load_suite(str(REPO / "tests/bench/suite.toml"))
    assert found.seeds == (0, 1, 2) and "sasrec" in found.ablations
    assert [entry.title for entry in found.dataset] == [
        "movielens-100k", "ml-latest-small", "amazon-industrial", "online-retail", "online-retail-repeats",
        "movielens-100k-temporal", "trivago", "simulated",
    ]  # fmt: skip
    assert found.dataset[-1].simulate.context == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = [0]", "the suite has no"),
        ('[[dataset]]\nname = "netflix"', "'netflix' is unknown; expected one of movielens-100k"),
        ('[[dataset]]\nname = "trivago"\nspec = "x/dataset.toml"', "has 2 of name, spec and simulate"),
        ("[[dataset]]", "has 0 of name, spec and simulate"),
        ('[[dataset]]\nname = "trivago"\nlabel = "../x"', "label '../x' is no plain name"),
        ('[[dataset]]\nname = "trivago"\n[[dataset]]\nname = "trivago"', "trivago more than once"),
        ('[[dataset]]\nname = "trivago"\noverrides = ["train.seeed=1"]', r"unknown key 'train\.seeed'"),
        ('seeds = [1, 1]\n[[dataset]]\nname = "trivago"', r"seeds is \[1, 1\]; expected different"),
        ('ablation_seeds = [7]\n[[dataset]]\nname = "trivago"', "every one of ablation_seeds"),
        ('ablations = ["sasrek"]\n[[dataset]]\nname = "trivago"', "sasrek"),
        ("[[dataset]]\nsimulate = { users = 0 }", "--users is 0"),
        ("[[dataset]]\nnmae = 1", "unknown key 'dataset"),
        ("=", "is not valid TOML"),
    ],
)
def test_a_wrong_suite_says_what_is_wrong(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_suite(suite(tmp_path, text))


def test_ablations_of_some_seeds_only(tmp_path):
    found = load_suite(suite(tmp_path, 'ablations = ["sasrec"]\nablation_seeds = [1]\n[[dataset]]\nname = "trivago"'))
    assert [found.ablations_of(seed) for seed in found.seeds] == [(), ("sasrec",), ()]


def test_sources_are_found_by_name(tmp_path):
    (tmp_path / "trivago").mkdir()
    text = '[[dataset]]\nname = "trivago"\n[[dataset]]\nname = "movielens-100k"\n'
    text += '[[dataset]]\nlabel = "other"\nname = "trivago"\nsource = "elsewhere"'
    by_name, absent, named = load_suite(suite(tmp_path, text)).dataset
    assert find_source(by_name, str(tmp_path), "/suites") == str(tmp_path / "trivago")
    assert find_source(by_name, None, "/suites") is None
    assert find_source(absent, str(tmp_path), "/suites") is None
    assert find_source(named, str(tmp_path), "/suites") == str(tmp_path / "elsewhere")
    assert find_source(named, None, "/suites") == "/suites/elsewhere"


def test_a_spec_with_overrides_survives_the_way_through_toml(tmp_path, tiny_spec):
    spec = overridden_spec(tiny_spec, ("split.strategy=temporal", "split.repeats=true", "events.actions.view=0.25"))
    assert (spec.split.strategy, spec.split.repeats, spec.events.actions["view"]) == ("temporal", True, 0.25)
    written = tmp_path / "dataset.toml"
    written.write_text(spec_toml(spec))
    assert load_spec(str(written)) == spec
    assert overridden_spec(tiny_spec, ()) == load_spec(tiny_spec)
    with pytest.raises(UserError, match="names no section"):
        overridden_spec(tiny_spec, ("splitt.repeats=true",))
    with pytest.raises(UserError, match=r"unknown key 'split\.repeat'"):
        overridden_spec(tiny_spec, ("split.repeat=true",))


def interval(mean: float) -> dict:
    return {"ndcg@10": {"mean": mean, "low": mean, "high": mean}}


def write_run(folder: Path, seed: int, values: dict[str, list[float]], **more) -> str:
    """A run folder with the files that the pooling reads."""
    run = folder / f"seed-{seed}"
    run.mkdir(parents=True)
    means = {name: interval(float(np.mean(v))) for name, v in values.items()}
    metrics = {"requests": len(values["model"]), "model": means.pop("model"), "baselines": means, **more}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "manifest.json").write_text(
        json.dumps(
            {"data_path": "d", "data_fingerprint": "f", "model_version": "v", "train_seconds": 60.0 * (seed + 1)}
        )
    )
    columns = {"user_id": [f"u{n}" for n in range(metrics["requests"])]}
    pq.write_table(pa.table(columns | {f"ndcg@10/{n}": v for n, v in values.items()}), run / "requests.parquet")
    return str(run)


def test_seeds_are_pooled_request_by_request(tmp_path):
    """Two seeds, four requests; EASE is the best on average, though popularity wins with the first seed."""
    first = {"model": [1.0, 0.5, 0.0, 0.5], "ease": [0.5, 0.0, 0.0, 0.5], "popularity": [1.0, 0.5, 0.0, 0.0]}
    second = {"model": [1.0, 0.5, 0.5, 0.0], "ease": [1.0, 0.5, 0.5, 0.0], "popularity": [0.0, 0.0, 0.0, 0.0]}
    second |= {"ensemble": [1.0, 0.0, 0.0, 0.0], "oracle": [1.0, 1.0, 1.0, 1.0]}
    cold = {"cold_items": {"requests": 3, "model": interval(0.2), "baselines": {"untuned_encoder": interval(0.1)}}}
    runs = {
        1: write_run(tmp_path, 1, second, shuffled_context={**interval(0.4), "drop": {"mean": 0.2}}),
        0: write_run(tmp_path, 0, first, slices=cold),
    }
    row = results_table.dataset_row("toy", str(tmp_path), runs, [])
    assert (row["seeds"], row["requests"], row["train_minutes"]) == ([0, 1], 4, 1.5)
    assert row["model"]["mean"] == pytest.approx(0.5)
    assert row["model"]["low"] < 0.5 < row["model"]["high"]
    assert row["best_baseline"] == "ease" and row["systems"]["ease"] == pytest.approx(0.375)
    # ((0.5 + 0.5 + 0 + 0) + 0) / 8
    assert row["gain"]["mean"] == pytest.approx(0.125) and row["gain"]["share"] == pytest.approx(1 / 3)
    assert row["ensemble_gain"]["mean"] == pytest.approx(0.25)  # of the second seed alone
    assert row["systems"]["oracle"] == 1.0 and row["systems"]["shuffled_context"] == 0.4
    assert row["context_drop"] == pytest.approx(0.2)
    assert row["slices"]["cold_items"] == {"requests": 3, "systems": {"model": 0.2, "untuned_encoder": 0.1}}
    assert row["slices"]["new_users"] == {"requests": 0, "systems": {}}


def test_the_interval_holds_the_chance_of_seeds_and_of_requests():
    same = np.full(400, 0.3)
    assert results_table.pooled([same, same]) == pytest.approx({"mean": 0.3, "low": 0.3, "high": 0.3})
    seeds = results_table.pooled([same, same + 0.2])  # no chance in the requests: that of two seeds is left
    assert seeds == pytest.approx({"mean": 0.4, "low": 0.3, "high": 0.5})
    draws = np.random.default_rng(0).random(400)
    requests = results_table.pooled([draws] * 3)
    # Of a uniform variable: 1.96 * sqrt(1 / 12 / 400) each side.
    assert requests["high"] - requests["low"] == pytest.approx(2 * 0.02829, rel=0.15)


def test_what_is_missing_is_an_empty_cell():
    failed = {"step": "train", "seed": 1, "message": "error: a | b"}
    rows = [
        {"label": "nothing", "seeds": [], "failures": [failed]},
        {"label": "some", "seeds": [0], "failures": [], "requests": 5, "model": {"mean": 0.2, "low": 0.1, "high": 0.3},
         "systems": {"model": 0.2, "ease": 0.1}, "best_baseline": "ease",
         "gain": {"mean": 0.1, "low": 0.05, "high": 0.15, "share": 1.0}, "slices": {}},
    ]  # fmt: skip
    results = {"seeds": [0], "ablations": [], "datasets": rows}
    header, cells = results_table.table_rows(results)
    assert header == ["data set", "requests", "ctxrec", "best single baseline", "gain over it"]
    assert cells[0] == ["nothing", "", "(failed: train of seed 1)", "", ""]
    assert cells[1][2:] == ["0.2000 (0.1000 to 0.3000)", "EASE 0.1000", "+100.0 %: +0.1000 (+0.0500 to +0.1500)"]
    of_three = results_table.table_rows(results | {"seeds": [0, 1, 2]})[1]
    assert [row[0] for row in of_three] == ["nothing", "some (1 of 3 seeds)"]
    rows[1]["ensemble_gain"] = {"mean": -0.1, "low": -0.15, "high": 0.05, "share": -0.5}
    header, cells = results_table.table_rows(results)
    assert (header[-1], cells[1][-1]) == ("gain over the ensemble", "-50.0 %: -0.1000 (-0.1500 to +0.0500)")
    text = results_table.markdown(results)
    assert "- nothing: train of seed 1 failed: error: a | b" in text and text.count("\n| nothing | ") == 1
    page = benchmark_page.render(results)
    assert "What failed" in page and "some" in page and "<script" not in page
    assert "Clearly ahead" in page and "Largest gain: some, +100.0 % against EASE: clearly better." in page
    assert '0.2000<span class="interval">(0.1000 to 0.3000)</span>' in page


def test_a_gain_below_zero_stays_on_the_chart():
    row = {"label": "some", "seeds": [0], "failures": [], "requests": 5, "model": {"mean": 0.2, "low": 0.1, "high": 0.3},
           "systems": {"model": 0.2, "ease": 0.2, "ensemble": 0.4}, "best_baseline": "ease", "slices": {},
           "gain": {"mean": 0.0, "low": -0.1, "high": 0.1, "share": 0.0},
           "ensemble_gain": {"mean": -0.2, "low": -0.3, "high": -0.1, "share": -0.5}}  # fmt: skip
    page = benchmark_page.render({"seeds": [0], "ablations": [], "datasets": [row]})
    assert "against EASE" in page and "against linear ensemble" in page
    ranges = re.findall(r'class="range model" x1="([-\d.]+)" x2="([-\d.]+)"', page)
    (zero,) = re.findall(r'class="boundary" x1="([\d.]+)"', page)
    (low, high), (worse_low, worse_high), _ = [(float(a), float(b)) for a, b in ranges]
    # In per cent: from -50 to 50 against EASE, from -75 to -25 against the ensemble; the axis begins at -75.
    assert 180 <= worse_low < low < worse_high < float(zero) < high <= 760
    assert float(zero) - low == pytest.approx(high - float(zero), abs=0.2)


def test_the_page_escapes_what_it_shows():
    failed = {"step": "train", "seed": None, "message": "<b>&"}
    page = benchmark_page.render(
        {"seeds": [0], "ablations": [], "datasets": [{"label": "x", "seeds": [], "failures": [failed]}]}
    )
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page


def run(path: str, out: Path, *more: str) -> Ended:
    return call("ctxrec.benchmark", "--suite", path, "--out", str(out), *more)


def test_mistakes_are_one_line(tmp_path):
    path = suite(tmp_path, '[[dataset]]\nname = "trivago"')
    for more, message in (
        (["--only", "x"], "--only x is no data set of"),
        (["--set", "train.x=1"], "unknown key 'train.x'"),
        (["--sources", "nowhere"], "--sources nowhere is no folder"),
    ):
        done = run(path, tmp_path / "out", *more)
        assert_users_mistake(done, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.system
@pytest.mark.parametrize("descriptions", ["false", "true"])
def test_a_simulated_log_is_written_with_every_option_of_a_suite(tmp_path, descriptions):
    """The suite's options become flags of the datasets command: a switch is given by its name, all others by a value."""
    path = suite(
        tmp_path,
        f"""seeds = [0]
[[dataset]]
label = "sim"
simulate = {{ users = 30, items = 40, events = 500, searches = 0.0, descriptions = {descriptions} }}
""",
    )
    (entry,) = load_suite(path).dataset
    options = runner.RunnerOptions(out=str(tmp_path / "out"), suite_folder=str(tmp_path))
    spec = load_spec(runner._write_dataset(entry, str(tmp_path / "out/sim"), options))
    assert ("description" in spec.items.text) is (descriptions == "true")


@pytest.mark.system
@pytest.mark.slow
def test_a_whole_benchmark(tmp_path, tiny_spec, tiny_encoder):
    """A ready spec and a simulated log are trained with two seeds; one data set has no source and is reported."""
    path = suite(
        tmp_path,
        f"""seeds = [0, 1]
ablations = ["no_context"]
ablation_seeds = [0]
overrides = ["encoder.name={tiny_encoder}", "model.dim=8", "train.tower_epochs=1", "train.encoder_epochs=0"]
[[dataset]]
name = "trivago"
[[dataset]]
label = "shop"
spec = "{tiny_spec}"
spec_overrides = ["split.repeats=true"]
[[dataset]]
label = "sim"
simulate = {{ users = 60, items = 40, events = 1500, context = 1.0, cold = 0.1 }}
overrides = ["encoder.name="]
""",
    )
    done = run(path, tmp_path / "out")
    assert done.returncode == 1, done.stderr  # a part failed
    results = json.loads((tmp_path / "out/results.json").read_text())
    trivago, shop, sim = results["datasets"]
    assert trivago["seeds"] == [] and trivago["failures"][0]["step"] == "dataset"
    assert trivago["failures"][0]["message"].startswith("error: the trivago log is handed out")
    assert shop["seeds"] == sim["seeds"] == [0, 1] and not shop["failures"] and not sim["failures"]
    assert shop["split"]["repeats"] is True and shop["systems"]["no_context"] > 0
    assert 0 < shop["model"]["low"] <= shop["model"]["mean"] <= shop["model"]["high"] < 1
    assert shop["gain"]["mean"] == pytest.approx(shop["systems"]["model"] - shop["systems"][shop["best_baseline"]])
    assert sim["systems"]["oracle"] > sim["systems"]["model"]
    for name in ("results.md", "report.html"):
        assert "shop" in (tmp_path / "out" / name).read_text()

    evaluated = tmp_path / "out/shop/seed-1/metrics.json"  # somebody looks at another split
    evaluated.write_text(json.dumps({**json.loads(evaluated.read_text()), "split": "valid"}))
    again = run(path, tmp_path / "out", "--only", "shop")
    assert again.returncode == 0, again.stderr
    assert "train-0: already done" in again.stdout and "evaluate-0: already done" in again.stdout
    assert "train-1: already done" in again.stdout and "evaluate-1: already done" not in again.stdout
    assert json.loads((tmp_path / "out/results.json").read_text())["datasets"][0]["model"] == shop["model"]

    other = run(path, tmp_path / "out", "--only", "shop", "--set", "train.tower_lr=0.002")
    assert other.returncode == 0 and "already done" not in other.stdout  # another training replaces the runs
