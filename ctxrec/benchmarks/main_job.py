"""The main job from end to end on MovieLens-100K, as `make demo` runs it.

It writes the data set and prepares it, serves a quick model within the first minute, fine-tunes on two workers while that
one serves, evaluates both next to baselines, publishes the full model, which the service takes over, asks it over HTTP and
stops it. It reuses what an earlier run left where nothing has changed.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pyarrow.parquet as pq
import ray

from ctxrec.benchmarks.demo_service import await_version, check_free, free_port, publish, say_where, service, title
from ctxrec.core import schema, storage
from ctxrec.core.config import Config, config_with
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.run_paths import BundlePaths, RunPaths
from ctxrec.core.toml import read_toml
from ctxrec.datasets import source_name, write_movielens_100k
from ctxrec.evaluation.comparison_table import format_table
from ctxrec.evaluation.encoder_comparison import encoder_sentence
from ctxrec.evaluation.offline import evaluate_run
from ctxrec.evaluation.systems import OTHER_RUN
from ctxrec.ingest.pipeline import prepare
from ctxrec.ingest.prepare_report import summary as prepare_summary
from ctxrec.training.driver import describe_run, train
from ctxrec.training.unused_options import with_defaults_for_unused

OPTIONS: dict[str, dict[str, Any]] = {"train": {"workers": 2, "zero_stage": 2}, "encoder": {"tune": "lora"}}
LONG_SASREC = {"ndcg@10": 0.108, "hr@10": 0.200}  # trained long with full cross-entropy, same split and protocol
QUICK = "quick model"
EXAMPLE = {"user_id": "196", "k": 5, "context": {"timestamp": 893286638}}


def run_main_job(
    out: str,
    *,
    source: str | None = None,
    config_path: str | None = None,
    overrides: Sequence[str] = (),
    port: int = 0,
    keep: bool = False,
) -> None:
    """Write the data set, prepare, serve a quick model, train, evaluate, and serve the full one; print what each step says.

    Args:
        out: local folder for everything.
        source: folder or zip with MovieLens-100K; None looks for one.
        config_path: file of options, which replace those of OPTIONS.
        overrides: `section.key=value` options, which replace those of the file.
        port: TCP port of the service; 0 takes a free one.
        keep: whether the service stays up.

    Raises:
        UserError: an option is wrong, no data set is found, or something listens at the port.
        RuntimeError: the service does not start, or refuses a request.
    """
    port = port or free_port()
    check_free(port)  # else another service would answer what the demo asks
    begin, config = time.monotonic(), demo_config(config_path, overrides)
    folder = {
        name: os.path.abspath(os.path.join(out, name)) for name in ("movielens-100k", "data", "quick", "run", "models")
    }
    _prepare(folder["movielens-100k"], folder["data"], source, config)
    title("2/5 quick model: no towers, only what has a closed form")
    quick = dataclasses.replace(config, train=dataclasses.replace(config.train, preset="quick"))
    train(folder["data"], folder["quick"], with_defaults_for_unused(quick))
    print(describe_run(folder["quick"]))
    publish(folder["quick"], folder["models"])
    with service(folder["models"], port, os.path.join(out, "serve.log"), keep=keep) as (url, process):
        with httpx.Client(base_url=url, timeout=30) as client:
            if _ask(client, folder["quick"]):
                print(
                    "\nThe quick model gives user 196 the same list at both times: only the full model reads the context."
                )
            print(f"\nfirst lists over HTTP {time.monotonic() - begin:.0f} s after the start")
            metrics = _build(folder["data"], folder["run"], folder["quick"], config)
            title("5/5 publish: the service takes the full model over while it serves")
            await_version(client, publish(folder["run"], folder["models"]))
            _ask(client, folder["run"])
        if keep:
            say_where(url, process, os.path.join(out, "serve.log"), EXAMPLE)
    print(f"\n{_both(metrics)}")
    print(f"report: {RunPaths(folder['run']).report}")
    print(f"the whole demo took {time.monotonic() - begin:.0f} s")


def demo_config(path: str | None, overrides: Sequence[str], base: Mapping[str, Mapping[str, Any]] = OPTIONS) -> Config:
    """The options of `base`, then those of a file, then those of `--set`."""
    raw = {section: dict(options) for section, options in base.items()}
    for section, options in (read_toml(path) if path is not None else {}).items():
        merge = section in raw and isinstance(options, dict)
        raw[section] = raw[section] | options if merge else options
    return config_with(raw, overrides, source=path or "--set")


def _prepare(raw: str, data_path: str, source: str | None, config: Config) -> None:
    """Write the data set and prepare it."""
    title("1/5 data set: MovieLens-100K")
    written = write_movielens_100k(raw, source)
    print(f"{'written' if written else 'reused: nothing changed'}; source: {source_name(raw)}")
    data = prepare(load_spec(os.path.join(raw, "dataset.toml")), data_path, config)
    print(prepare_summary(data))


def _build(data_path: str, run: str, quick: str, config: Config) -> dict[str, Any]:
    """Train the full model and evaluate it beside the quick one; its metrics."""
    title(f"3/5 train: {config.encoder.name}, {config.train.workers} workers, ZeRO-{config.train.zero_stage}, LoRA")
    train(data_path, run, config)
    print(describe_run(run))
    title("4/5 evaluate: test events, whole catalogue ranked, seen items excluded")
    metrics = _evaluate(run, quick, config)
    print(format_table(metrics))
    print("un-tuned encoder = cosines of its text vectors alone")
    print(_distance(metrics))
    ray.shutdown()
    return metrics


def _both(metrics: dict[str, Any]) -> str:
    """What the full training brings beside the quick model."""
    system = OTHER_RUN + QUICK
    quick, full = (of["ndcg@10"]["mean"] for of in (metrics["other_runs"][system], metrics["model"]))
    gain = metrics["paired"][system]["ndcg@10"]
    return (
        f"test NDCG@10: {QUICK} {quick:.4f}, full model {full:.4f} ({gain['mean']:+.4f}, 95 % interval "
        f"{gain['low']:+.4f} to {gain['high']:+.4f}); {encoder_sentence(metrics)}"
    )


def _evaluate(run: str, quick: str, config: Config) -> dict[str, Any]:
    """Metrics of the run; they are computed again only when a model or the options of evaluation have changed."""
    path, stamp = RunPaths(run).metrics, RunPaths(run).evaluated
    versions = " ".join(read_run_manifest(folder)["model_version"] for folder in (run, quick))
    key = f"{versions} {storage.sha256_json(config.to_dict()['evaluate'])}"
    if storage.exists(path) and storage.exists(stamp) and storage.read_text(stamp) == key:
        print("reused: nothing changed")
        return storage.read_json(path)
    metrics = evaluate_run(run, split="test", out=None, config=config, compare={QUICK: quick})
    storage.write_text(stamp, key)
    return metrics


def _distance(metrics: dict[str, Any]) -> str:
    """How far the model is from a SASRec trained long."""
    parts = [
        f"{name} {metrics['model'][name]['mean']:.4f} against {goal:.3f} ({metrics['model'][name]['mean'] / goal - 1:+.1%})"
        for name, goal in LONG_SASREC.items()
    ]
    return "next to a SASRec trained long with full cross-entropy on the same split: " + "; ".join(parts)


def _ask(client: httpx.Client, run: str) -> bool:
    """One user in two contexts, and someone new with three clicks. Whether both contexts have the same list."""
    items = pq.read_table(BundlePaths(RunPaths(run).bundle).items, columns=[schema.ITEM_ID, schema.ITEM_TITLE])
    titles = dict(zip(*(column.to_pylist() for column in items.columns), strict=True))
    client.post("/v1/recommend", json={"user_id": "1"})  # the first request pays for opening connections
    moments = (
        datetime.datetime(1998, 4, 24, 21, tzinfo=datetime.UTC),
        datetime.datetime(1998, 12, 14, 8, tzinfo=datetime.UTC),
    )
    lists = []
    for moment in moments:
        body = {"user_id": "196", "k": 5, "context": {"timestamp": moment.timestamp()}}
        lists.append(_show(client, f"user 196 on {moment:%A %d %B %Y, %H:%M}", body, titles))
    clicks = [
        item for item, title in titles.items() if title.startswith(("Toy Story (", "Aladdin (", "The Lion King ("))
    ]
    named = ", ".join(titles[c] for c in clicks)
    body = {"k": 5, "history": [{"item_id": c} for c in clicks], "context": {"timestamp": moments[0].timestamp()}}
    _show(client, f"someone new, three clicks ({named})", body, titles)
    return lists[0] == lists[1]


def _show(client: httpx.Client, who: str, body: dict[str, Any], titles: dict[str, str]) -> list[str]:
    """Ask, print the list with its titles, and give the ids."""
    begin = time.perf_counter()
    answer = client.post("/v1/recommend", json=body)
    milliseconds = (time.perf_counter() - begin) * 1000
    if answer.status_code != 200:
        raise RuntimeError(f"the service answered {answer.status_code}: {answer.text[:500]}")
    print(f"\n{who}: {milliseconds:.1f} ms over HTTP")
    items = answer.json()["items"]
    for item in items:
        print(f"  {item['score']:7.3f}  {titles[item['item_id']]}")
    return [item["item_id"] for item in items]
