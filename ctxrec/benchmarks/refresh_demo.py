"""A refresh from end to end on a simulated news service, as `make refresh-demo` runs it.

A model of the first days is served. A day of articles and events is posted to the service over HTTP, and `ctxrec refresh`
trains on it, compares, and publishes, while requests go on. The same requests of the next morning are asked before and after.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from ctxrec.benchmarks.demo_service import check_free, free_port, publish, say_where, service, title
from ctxrec.benchmarks.main_job import demo_config
from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.run_paths import ModelsPaths, RefreshPaths
from ctxrec.datasets import write_news
from ctxrec.datasets.news import NewsPlan
from ctxrec.ingest.pipeline import prepare
from ctxrec.metrics.intervals import bootstrap_means, percentile_interval
from ctxrec.training.driver import describe_run, train

OPTIONS: dict[str, dict[str, Any]] = {"train": {"preset": "quick"}, "encoder": {"name": ""}}
PLAN = NewsPlan(users=1_500, items=1_500, events=40_000)
_DAY_S, _FIRST_DAYS, _MORNING_S = 86_400, 6, 10 * 3600  # the first model knows six days of ten
_K, _AT_ONCE, _FILES_S, _WATCH_S = 10, 250, 2.0, 10
_WAIT_S = 0.05  # between two requests that go on all the time
_EXPORT_TIMEOUT_S = 120


@dataclass
class _Load:
    """Requests one after another in a thread of their own, each tried once, until the block ends.

    Attributes:
        versions: that answered, in the order of their first answers.
        answered, failed: numbers of requests.
    """

    url: str
    users: Sequence[str]
    versions: list[str] = field(default_factory=list)
    answered: int = 0
    failed: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> _Load:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self._stop.wait(_WAIT_S):
                try:
                    user = self.users[(self.answered + self.failed) % len(self.users)]
                    answer = client.post("/v1/recommend", json={"user_id": user, "k": _K})
                    version = answer.raise_for_status().json()["model_version"]
                except httpx.HTTPError:
                    self.failed += 1
                    continue
                self.answered += 1
                if version not in self.versions:
                    self.versions.append(version)


def run_refresh_demo(
    out: str,
    *,
    config_path: str | None = None,
    overrides: Sequence[str] = (),
    port: int = 0,
    keep: bool = False,
    plan: NewsPlan = PLAN,
    without_evidence: bool = False,
) -> None:
    """Serve a first model, post a day, refresh while requests go on, and ask again; print what each step says.

    Args:
        out: local folder; all goes to `refresh` in it, which begins anew.
        config_path: file of options, which replace those of OPTIONS.
        overrides: `section.key=value` options, which replace those of the file.
        port: TCP port of the service; 0 takes a free one.
        keep: whether the service stays up.
        plan: the news service.
        without_evidence: publish also where a small plan has too few requests to tell.

    Raises:
        UserError: an option is wrong, or something listens at the port.
        RuntimeError: the service does not start or refuses a call, or the refresh fails.
    """
    port = port or free_port()
    check_free(port)
    begin = time.monotonic()
    folder = os.path.abspath(os.path.join(out, "refresh"))
    storage.delete(folder)
    log, items, cuts = _first_days(folder, plan)
    run, models = os.path.join(folder, "run"), os.path.join(folder, "models")
    _first_model(folder, run, demo_config(config_path, overrides, OPTIONS))
    publish(run, models)
    serve_log = os.path.join(folder, "serve.log")
    with service(models, port, serve_log, keep=keep, args={"event_files_every_s": _FILES_S, "direct_port": 0}) as (
        url,
        process,
    ):
        with httpx.Client(base_url=url, timeout=30) as client:
            title("2/4 a day happens: new articles and events over HTTP")
            _post_day(client, models, log, items, cuts)
            before = _ask(client, log, cuts)
            title("3/4 refresh, while somebody always asks")
            with _Load(url, log.column("user_id").unique().to_pylist()[:200]) as load:
                _refresh(folder, models, url, ["--without-evidence"] if without_evidence else [])
            print(
                f"{load.answered:,} requests were answered meanwhile, {load.failed} failed; "
                f"they met the versions {' and '.join(load.versions)}"
            )
            title("4/4 the next morning, before and after")
            after = _ask(client, log, cuts)
            _compare(before, after)
        if keep:
            moment = int(cuts[1])
            say_where(url, process, serve_log, {"user_id": "u1", "k": 5, "context": {"timestamp": moment}})
    print(f"the whole demo took {time.monotonic() - begin:.0f} s")


def _first_days(folder: str, plan: NewsPlan) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """Simulate the news, and let the first days be the data set.

    Returns:
        The whole log in the order of time, all articles, and the times (epoch seconds) at which the first days, the day
        after them and its next morning end.
    """
    title("1/4 a simulated news service, and a model of its first days")
    whole, shop = os.path.join(folder, "whole"), os.path.join(folder, "news")
    write_news(whole, plan)
    log = pq.read_table(os.path.join(whole, "events.parquet")).sort_by("timestamp")
    items = pq.read_table(os.path.join(whole, "items.parquet"))
    first = pc.min(log.column("timestamp")).as_py() + _FIRST_DAYS * _DAY_S
    cuts = np.array([first, first + _DAY_S, first + _DAY_S + _MORNING_S])
    known, published = _during(log, 0, first), items.filter(pc.less(items.column("published"), int(first)))
    storage.make_dir(os.path.join(shop, "events"))
    for name, table in (("events/first.parquet", known), ("items.parquet", published)):
        storage.write_parquet(table, os.path.join(shop, name))
    shutil.copy(os.path.join(whole, "users.parquet"), os.path.join(shop, "users.parquet"))
    text = storage.read_text(os.path.join(whole, "dataset.toml")).replace('"events.parquet"', '"events/*.parquet"')
    storage.write_text(os.path.join(shop, "dataset.toml"), text)
    print(f"{_FIRST_DAYS} days: {len(known):,} events, {len(published):,} articles")
    return log, items, cuts


def _during(log: pa.Table, start: int, stop: int) -> pa.Table:
    """The events from one time until before another, epoch seconds."""
    times = log.column("timestamp")
    return log.filter(pc.and_(pc.greater_equal(times, int(start)), pc.less(times, int(stop))))


def _first_model(folder: str, run: str, config: Config) -> None:
    data = prepare(load_spec(os.path.join(folder, "news", "dataset.toml")), os.path.join(folder, "data"), config)
    train(data.path, run, config)
    print(describe_run(run))
    ray.shutdown()


def _post_day(client: httpx.Client, models: str, log: pa.Table, items: pa.Table, cuts: np.ndarray) -> None:
    """Post the articles and events of the day, hour by hour, and wait until files have them."""
    published, day = items.column("published"), _during(log, cuts[0], cuts[1])
    hours = np.append(np.arange(cuts[0], cuts[1], 3600), cuts[1])
    num_items = 0
    for start, stop in zip(hours, hours[1:], strict=False):
        new = items.filter(pc.and_(pc.greater_equal(published, int(start)), pc.less(published, int(stop))))
        for part in _parts(new.to_pylist()):
            num_items += _called(client, "/v1/items", {"items": part})["accepted"]
        for part in _parts(_during(day, start, stop).to_pylist()):
            _called(client, "/v1/events", {"events": part})
    print(f"{len(day):,} events and {num_items:,} articles are posted, and count in every list at once")
    deadline = time.monotonic() + _EXPORT_TIMEOUT_S
    while _num_rows(os.path.join(ModelsPaths(models).live, "events")) < len(day):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the service did not write the posted events to files within {_EXPORT_TIMEOUT_S} s")
        time.sleep(_FILES_S / 4)


def _num_rows(folder: str) -> int:
    files = storage.list_files(folder) if os.path.isdir(folder) else []
    return sum(pq.read_metadata(path).num_rows for path in files if path.endswith(".parquet"))


def _parts(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]


def _called(client: httpx.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = client.post(path, json=body)
    if answer.status_code != 200:
        raise RuntimeError(f"{path} answered {answer.status_code}: {answer.text[:500]}")
    found: dict[str, Any] = answer.json()
    return found


def _ask(client: httpx.Client, log: pa.Table, cuts: np.ndarray) -> np.ndarray:
    """NDCG@10 of a request for each event of the morning, at the time at which the day ends: float64 [N]."""
    morning, scores = _during(log, cuts[1], cuts[2]).to_pylist(), []
    for part in _parts(morning):
        asked = [{"user_id": e["user_id"], "k": _K, "context": {"timestamp": int(cuts[1])}} for e in part]
        answers = _called(client, "/v1/recommend", {"requests": asked})["responses"]
        for event, answer in zip(part, answers, strict=True):
            found = [item["item_id"] for item in answer["items"]]
            scores.append(1 / np.log2(2 + found.index(event["item_id"])) if event["item_id"] in found else 0.0)
    return np.array(scores)


def _refresh(folder: str, models: str, url: str, flags: Sequence[str]) -> str:
    """`ctxrec refresh` as a process of its own; prints what its card says, and returns the candidate's version."""
    log, begin = os.path.join(folder, "refresh.log"), time.monotonic()
    spec = os.path.join(folder, "news", "dataset.toml")
    command = [sys.executable, "-m", "ctxrec.refresh", spec, "--models", models, "--watch", url, *flags]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with open(log, "wb") as sink:
        done = subprocess.run([*command, "--watch-s", str(_WATCH_S)], stdout=sink, stderr=sink, env=env)
    if done.returncode:
        raise RuntimeError(f"ctxrec refresh ended with status {done.returncode}; its log is {log}")
    state = storage.read_json_object(RefreshPaths(os.path.join(models, "refresh")).state)
    card = ModelsPaths(models).decision(state["candidate"])
    found = storage.read_json_object(card)
    if state["outcome"] != "published":
        card = card.removesuffix(".json") + ".html"
        raise RuntimeError(
            f"the refresh ended as {state['outcome']}: {found.get('guard') or found['why']}; its card is {card}"
        )
    print(f"{state['outcome']} after {time.monotonic() - begin:.0f} s: {found['why']}")
    print(f"watched for {found['watched_s']:.0f} s: {found['watched']}; card: {card.removesuffix('.json')}.html")
    return str(state["candidate"])


def _compare(before: np.ndarray, after: np.ndarray) -> None:
    both = np.stack([after, before], 1)
    resampled = bootstrap_means(both, num=2000, seed=0)
    gain = percentile_interval(float((after - before).mean()), resampled[:, 0] - resampled[:, 1])
    print(
        f"NDCG@{_K} of {len(both):,} events of the next morning: before {before.mean():.4f}, after {after.mean():.4f} "
        f"({gain['mean']:+.4f}, 95 % interval {gain['low']:+.4f} to {gain['high']:+.4f}); live counts know the day in both"
    )
