"""The main job from end to end on MovieLens-100K: `make demo`, or `python -m ctxrec.demo --out DIR`.

Data set, prepare, fine-tune on two workers, evaluate next to baselines, serve, ask over HTTP, stop.
What an earlier run left unchanged is reused.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow.parquet as pq

from ctxrec.core import cli, schema, storage
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.datasets import source_name, write_movielens_100k
from ctxrec.evaluation.offline import evaluate_run
from ctxrec.evaluation.summary import format_table
from ctxrec.ingest.pipeline import prepare
from ctxrec.ingest.pipeline import summary as prepare_summary
from ctxrec.training.driver import summary as train_summary
from ctxrec.training.driver import train

OPTIONS = ["train.workers=2", "train.zero_stage=2", "encoder.tune=lora"]
LONG_SASREC = {"ndcg@10": 0.108, "hr@10": 0.200}  # trained long with full cross-entropy, same split and protocol
START_TIMEOUT_S = 120


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ctxrec.demo", description="The whole path on MovieLens-100K.")
    parser.add_argument("--out", default="demo", metavar="DIR", help="where everything goes (default: demo)")
    parser.add_argument("--source", metavar="PATH", help="folder or zip with MovieLens-100K (default: find one)")
    parser.add_argument("--keep", action="store_true", help="leave the service up")
    parser.add_argument("--port", type=int, default=0, help="port of the service (default: a free one)")
    parser.add_argument("--set", dest="overrides", metavar="section.key=value", action="append", default=[])
    args = parser.parse_args()
    begin = time.monotonic()
    run = _build(args.out, args.source, args.overrides)
    print(f"trained and evaluated {time.monotonic() - begin:.0f} s after the start")
    _serve(run, args.port or _free_port(), keep=args.keep)
    print(f"\nreport: {os.path.join(run, 'report.html')}")
    print(f"the whole demo took {time.monotonic() - begin:.0f} s")


def _build(out: str, source: str | None, overrides: list[str]) -> str:
    """Data set, prepare, train, evaluate; returns the run."""
    import ray

    config = load_config(None, [*OPTIONS, *overrides])
    raw, data_path, run = (os.path.abspath(os.path.join(out, name)) for name in ("movielens-100k", "data", "run"))
    _title("1/4 data set: MovieLens-100K")
    written = write_movielens_100k(raw, source)
    print(f"{'written' if written else 'reused: nothing changed'}; source: {source_name(raw)}")
    data = prepare(load_spec(os.path.join(raw, "dataset.toml")), data_path, config)
    print(prepare_summary(data))
    _title(f"2/4 train: {config.encoder.name}, {config.train.workers} workers, ZeRO-{config.train.zero_stage}, LoRA")
    train(data_path, run, config)
    print(train_summary(run))
    _title("3/4 evaluate: test events, whole catalogue ranked, seen items excluded")
    metrics = _evaluate(run, config)
    print(format_table(metrics))
    print("before = this model before its encoder was fine-tuned; encoder = un-tuned text vectors alone")
    print(_distance(metrics))
    ray.shutdown()
    return run


def _evaluate(run: str, config: Any) -> dict[str, Any]:
    """Metrics of the run, computed unless they are there for this very model."""
    path, stamp = storage.join(run, "metrics.json"), storage.join(run, "evaluated.txt")
    version = storage.read_json(storage.join(run, "manifest.json"))["model_version"]
    key = f"{version} {storage.sha256_json(config.to_dict()['evaluate'])}"
    if storage.exists(path) and storage.exists(stamp) and storage.read_text(stamp) == key:
        print("reused: nothing changed")
        return storage.read_json(path)
    metrics = evaluate_run(run, split="test", out=None, config=config)
    storage.write_text(stamp, key)
    return metrics


def _distance(metrics: dict[str, Any]) -> str:
    """How far the model is from a SASRec trained long."""
    parts = [
        f"{name} {metrics['model'][name]['mean']:.4f} against {goal:.3f} ({metrics['model'][name]['mean'] / goal - 1:+.1%})"
        for name, goal in LONG_SASREC.items()
    ]
    return "next to a SASRec trained long with full cross-entropy on the same split: " + "; ".join(parts)


def _serve(run: str, port: int, *, keep: bool) -> None:
    _title("4/4 serve")
    log = os.path.join(os.path.dirname(run), "serve.log")
    with _service(run, port, log, keep=keep) as (url, process):
        with httpx.Client(base_url=url, timeout=30) as client:
            _ask(client, run)
        if keep:
            print(f"\nthe service stays up at {url} (docs: {url}/docs, log: {log}); stop it with: kill {process.pid}")
            print(
                f"curl -s {url}/v1/recommend -H 'content-type: application/json' "
                """-d '{"user_id": "196", "k": 5, "context": {"timestamp": 893286638}}'"""
            )


@contextlib.contextmanager
def _service(run: str, port: int, log: str, *, keep: bool) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`serve run serve.app:build_app run=RUN` as a process of its own, ready for requests."""
    url = f"http://127.0.0.1:{port}"
    config = os.path.join(os.path.dirname(run), "serve.yaml")
    storage.write_text(
        config,
        f"proxy_location: HeadOnly\nhttp_options:\n  host: 127.0.0.1\n  port: {port}\napplications:\n"
        f"  - name: ctxrec\n    route_prefix: /\n    import_path: serve.app:build_app\n"
        f"    args:\n      run: {run!r}\n",
    )
    command = [os.path.join(os.path.dirname(sys.executable), "serve"), "run", config]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with open(log, "wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=env, start_new_session=True)
    done = False
    try:
        _wait_ready(url, process, log)
        yield url, process
        done = True
    finally:
        if not (keep and done):
            _stop(process)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise RuntimeError(f"the service did not become ready; its log is {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the service as Ctrl-C does, and make sure of it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print("service stopped")


def _ask(client: httpx.Client, run: str) -> None:
    """One user in two contexts, and someone new with three clicks."""
    items = pq.read_table(os.path.join(run, "bundle", "items.parquet"), columns=[schema.ITEM_ID, schema.ITEM_TITLE])
    titles = dict(zip(*(column.to_pylist() for column in items.columns), strict=True))
    client.post("/v1/recommend", json={"user_id": "1"})  # the first request pays for opening connections
    moments = (
        datetime.datetime(1998, 4, 24, 21, tzinfo=datetime.UTC),
        datetime.datetime(1998, 12, 14, 8, tzinfo=datetime.UTC),
    )
    for moment in moments:
        body = {"user_id": "196", "k": 5, "context": {"timestamp": moment.timestamp()}}
        _show(client, f"user 196 on {moment:%A %d %B %Y, %H:%M}", body, titles)
    clicks = [
        item for item, title in titles.items() if title.startswith(("Toy Story (", "Aladdin (", "The Lion King ("))
    ]
    named = ", ".join(titles[c] for c in clicks)
    body = {"k": 5, "history": [{"item_id": c} for c in clicks], "context": {"timestamp": moments[0].timestamp()}}
    _show(client, f"someone new, three clicks ({named})", body, titles)


def _show(client: httpx.Client, who: str, body: dict[str, Any], titles: dict[str, str]) -> None:
    begin = time.perf_counter()
    answer = client.post("/v1/recommend", json=body)
    milliseconds = (time.perf_counter() - begin) * 1000
    if answer.status_code != 200:
        raise RuntimeError(f"the service answered {answer.status_code}: {answer.text[:500]}")
    print(f"\n{who}: {milliseconds:.1f} ms over HTTP")
    for item in answer.json()["items"]:
        print(f"  {item['score']:7.3f}  {titles[item['item_id']]}")


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    cli.run(main)
