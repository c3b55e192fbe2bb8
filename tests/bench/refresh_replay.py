"""Refreshes of a log week by week against a model that stays as it is: who ranks each week's events better, before it saw them?

    python tests/bench/refresh_replay.py --dataset DIR --out OUT [--weeks 10] [--days 7] [--set train.preset=quick]
    python tests/bench/refresh_replay.py --dataset DIR --out OUT --against OTHER

DIR holds `events.parquet`, `items.parquet` and `dataset.toml` with a temporal split, as `ctxrec datasets online-retail`
writes them. The first model is trained on all before the last WEEKS periods of DAYS days. Then each period's events are
ranked by the first model and by the one that is served at its beginning, and a refresh follows. The same command goes on
where it was ended. Lists are ranked without live counts, so their weights are not fitted, which takes most of a quick training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from ctxrec.bundle import registry
from ctxrec.core import storage
from ctxrec.core.config import Config, load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.run_paths import ModelsPaths, RunPaths
from ctxrec.ingest.pipeline import prepare
from ctxrec.lifecycle.paired_ranking import K, rank_both
from ctxrec.lifecycle.refresh_loop import Refresh, refresh
from ctxrec.metrics.intervals import bootstrap_means, percentile_interval
from ctxrec.metrics.ranking import request_metrics
from ctxrec.retrieval.load import load_recommender
from ctxrec.training import export
from ctxrec.training.driver import train

DAY_S = 86400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--weeks", type=int, default=10)
    parser.add_argument("--days", type=float, default=7, help="length of a period")
    parser.add_argument("--full", action="store_true", help="train anew in each refresh")
    parser.add_argument(
        "--judged", action="store_true", help="publish what the gates judged, without the newest events"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no other period after so many seconds")
    parser.add_argument("--against", metavar="OUT", help="compare with the served versions of another replay, and end")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    out = Path(args.out)
    if args.against:
        compare(out, Path(args.against))
        return
    export.fit_live_weights = lambda *_: None  # type: ignore[assignment]
    asked = {"config": load_config(None, args.overrides), "full": args.full, "complete": not args.judged}
    replay(Path(args.dataset), out, args.weeks, args.days * DAY_S, asked, time.monotonic() + args.seconds)
    ray.shutdown()


def replay(source: Path, out: Path, weeks: int, period_s: float, asked: dict[str, Any], until: float) -> None:
    log = pq.read_table(source / "events.parquet").sort_by("timestamp")
    times = log.column("timestamp").to_numpy()
    cuts = [*(times.max() + 1 - period_s * np.arange(weeks, -1, -1))]
    shop, config, first = out / "shop", asked["config"], RunPaths(str(out / "run")).bundle
    if not registry.is_models(str(out / "models")):
        shutil.rmtree(out, ignore_errors=True)
        (shop / "events").mkdir(parents=True)
        if (source / "users.parquet").exists():
            shutil.copy(source / "users.parquet", shop)
        text = (source / "dataset.toml").read_text().replace('"events.parquet"', '"events/*.parquet"')
        (shop / "dataset.toml").write_text(text)
        _arrive(log, source, shop, "000", times < cuts[0], times < cuts[0])
        begin = time.monotonic()
        data = prepare(load_spec(str(shop / "dataset.toml")), str(out / "data"), config)
        train(data.path, str(out / "run"), config)
        registry.publish(first, str(out / "models"))
        print(f"first model: {time.monotonic() - begin:.0f} s, {data.meta['counts']['events']:,} events", flush=True)
    spec = load_spec(str(shop / "dataset.toml"))
    undone = [week for week in range(weeks) if not (out / f"line-{week + 1:03d}.json").exists()]
    for week in undone:
        if time.monotonic() > until:
            break
        inside = (times >= cuts[week]) & (times < cuts[week + 1])
        _arrive(log, source, shop, f"{week + 1:03d}", inside, times < cuts[week + 1])
        lists = out / f"ndcg-{week + 1:03d}.npy"
        if not lists.exists():  # else a call before was ended while it refreshed
            np.save(lists, _ranked(spec, out, config, int(inside.sum()) / int((times < cuts[week + 1]).sum()), first))
        begin = time.monotonic()
        folders = {"models": str(out / "models"), "work": str(out / "work")}
        done = refresh(Refresh(**folders, spec=spec, **asked))
        took, both = time.monotonic() - begin, np.load(lists)
        card = storage.read_json(ModelsPaths(str(out / "models")).decision(done.candidate))
        manifest = storage.read_json(RunPaths(str(out / "work" / f"round-{done.number:06d}" / "run")).manifest)
        line = {
            "week": week + 1, "events": int(inside.sum()), "requests": len(both),
            "served": round(both[:, 0].mean(), 4), "frozen": round(both[:, 1].mean(), 4),
            "cumulative": _told(np.concatenate(_ndcg_of(out, week + 1))), "outcome": done.outcome, "warm": done.warm,
            "train_s": manifest["train_seconds"], "refresh_s": round(took, 1), "why": card["why"],
        }  # fmt: skip
        storage.write_json(str(out / f"line-{week + 1:03d}.json"), line)
        print(json.dumps(line), flush=True)


def compare(ours: Path, theirs: Path) -> None:
    """The served versions of two replays of the same log, on the same requests, over all periods so far."""
    mine, others = _ndcg_of(ours, 1000), _ndcg_of(theirs, 1000)
    for week, (a, b) in enumerate(zip(mine, others, strict=False), 1):
        pairs = [np.stack([x[:, 0], y[:, 0]], 1) for x, y in zip(mine[:week], others[:week], strict=True)]
        print(f"period {week}: {a[:, 0].mean():.4f} and {b[:, 0].mean():.4f}; so far {_told(np.concatenate(pairs))}")


def _ndcg_of(out: Path, weeks: int) -> list[np.ndarray]:
    return [np.load(path) for path in sorted(out.glob("ndcg-*.npy"))[:weeks]]


def _arrive(log: pa.Table, source: Path, shop: Path, name: str, inside: np.ndarray, seen: np.ndarray) -> None:
    """The events of a period arrive, and the items that were ever seen."""
    pq.write_table(log.filter(pa.array(inside)), shop / "events" / f"{name}.parquet")
    items = pq.read_table(source / "items.parquet")
    known = log.filter(pa.array(seen)).column("item_id").unique()
    pq.write_table(items.filter(pc.is_in(items.column("item_id"), value_set=known)), shop / "items.parquet")


def _ranked(spec, out: Path, config: Config, share: float, first: str) -> np.ndarray:
    """NDCG@10 of the week's requests with the served and with the first model: float64 [n, 2]."""
    held_out = dataclasses.replace(spec, split=dataclasses.replace(spec.split, test=share))
    data = prepare(held_out, str(out / "week"), config)
    served = registry.version_folder(str(out / "models"), registry.read_published(str(out / "models")).version)
    ranked = rank_both(data, load_recommender(served), load_recommender(first), most=20_000)
    assert ranked is not None and ranked.requests.target_offsets is not None
    offsets, targets = ranked.requests.target_offsets, ranked.requests.target_items
    lists = (ranked.candidate, ranked.served)
    return np.stack([request_metrics(top, offsets, targets, [K])[f"ndcg@{K}"] for top in lists], 1)


def _told(both: np.ndarray) -> str:
    resampled = bootstrap_means(both, num=2000, seed=0)
    gain = percentile_interval(float((both[:, 0] - both[:, 1]).mean()), resampled[:, 0] - resampled[:, 1])
    return f"{gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"


if __name__ == "__main__":
    main()
