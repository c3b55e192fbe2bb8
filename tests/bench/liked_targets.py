"""Do liked items gain by what ratings say? Many targets of each user, so that small differences can be told.

    ctxrec datasets movielens-100k --out DIR
    python tests/bench/liked_targets.py --source DIR --out WORK [--last 6] [--set train.preset=quick ...]

The latest events of each user are left out. One model is trained on the rest with [events.feedback], and one without. Both
rank the whole catalogue for each event that was left out, after all events before it, and the differences are paired. The
split `last` of the same log has 486 liked targets of the test; this has some thousand.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import numpy as np
import pandas as pd

import ctxrec
from ctxrec.index.topk import top_k
from ctxrec.retrieval.raw_request import RawEvent, RawRequest

POSITIVE, NEGATIVE = 4, 2
_AT_ONCE = 250  # requests that are scored together
_RESAMPLES = 2000


def main() -> None:
    """Read the options, train both models, print the table."""
    about = str(__doc__)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, metavar="DIR", help="folder with the dataset.toml of MovieLens-100K")
    parser.add_argument("--out", required=True, metavar="WORK", help="folder for data and runs")
    parser.add_argument("--last", type=int, default=6, help="events of each user that are ranked")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="options of both trainings")
    args = parser.parse_args()
    log = pd.read_parquet(os.path.join(args.source, "events.parquet")).sort_values("timestamp", kind="stable")
    age = log.groupby("user_id").cumcount(ascending=False)
    found = {}
    for name, feedback in (("without", None), ("with", {"kind": "rating", "positive": POSITIVE, "negative": NEGATIVE})):
        model = trained(log[age >= args.last], args, name, feedback)
        found[name] = ranked(model, log, args.last)
    tell(found["without"], found["with"])


def trained(log: pd.DataFrame, args: argparse.Namespace, name: str, feedback: dict | None) -> ctxrec.Model:
    """A model of a log."""
    tables = {kind: os.path.join(args.source, f"{kind}.parquet") for kind in ("items", "users")}
    folder = os.path.join(args.out, name)
    options = dict(option.split("=", 1) for option in args.set)
    preset = options.pop("train.preset", "full")
    typed = {key: _typed(value) for key, value in options.items()}
    return ctxrec.fit(
        log, **tables, value="rating", feedback=feedback, split={"strategy": "last"}, preset=preset, options=typed, out=folder
    )  # fmt: skip


def _typed(text: str) -> Any:
    """A value as TOML would have it; what is neither a number nor a truth value is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def ranked(model: ctxrec.Model, log: pd.DataFrame, last: int) -> pd.DataFrame:
    """A row for each target: its user, its rating, its NDCG@10, and the shares of the list that the user dislikes and likes."""
    recommender, rows, raw, tastes = model._retriever.recommender, [], [], []
    for user, events in log.groupby("user_id", sort=True):
        ids, times, ratings = (events[c].tolist() for c in ("item_id", "timestamp", "rating"))
        history = [RawEvent(i, timestamp=float(t), value=r) for i, t, r in zip(ids, times, ratings, strict=True)]
        for place in range(len(ids) - last, len(ids)):
            if ids[place] not in ids[:place]:
                rows.append((user, ids[place], ratings[place]))
                raw.append(RawRequest(user_id=user, timestamp=float(times[place]), history=history[:place]))
                tastes.append(dict(zip(ids, ratings, strict=True)))
    made = []
    for start in range(0, len(raw), _AT_ONCE):
        requests, _ = recommender.make_requests(raw[start : start + _AT_ONCE])
        scores = recommender.scores(requests)
        for n, items in enumerate(top_k(scores, 10, requests.seen())):
            user, target, rating = rows[start + n]
            names, taste = [recommender.item_ids[p] for p in items], tastes[start + n]
            gain = 1 / np.log2(names.index(target) + 2) if target in names else 0.0
            said = np.array([taste.get(name, np.nan) for name in names])
            made.append((user, rating, gain, np.mean(said <= NEGATIVE), np.mean(said >= POSITIVE)))
    return pd.DataFrame(made, columns=["user", "rating", "ndcg", "disliked", "liked"])


def tell(before: pd.DataFrame, after: pd.DataFrame) -> None:
    """Print the means without and with, and the differences with intervals by users."""
    every = np.ones(len(before), bool)
    parts = {
        "NDCG@10 of liked targets": ("ndcg", before.rating >= POSITIVE),
        "NDCG@10 of disliked targets": ("ndcg", before.rating <= NEGATIVE),
        "NDCG@10 of every event": ("ndcg", every),
        "places of items that the user dislikes": ("disliked", every),
        "places of items that the user likes": ("liked", every),
    }
    for name, (column, rows) in parts.items():
        one, other = before[column][rows], after[column][rows]
        sums = (other - one).groupby(before.user[rows]).agg(["sum", "count"]).to_numpy()
        draws = np.random.default_rng(0).integers(len(sums), size=(_RESAMPLES, len(sums)))
        means = sums[draws, 0].sum(1) / sums[draws, 1].sum(1)
        low, high = np.quantile(means, [0.025, 0.975])
        print(
            f"{name:40s} {len(one):6d}  {one.mean():.4f}  {other.mean():.4f}  "
            f"{(other - one).mean():+.4f} ({low:+.4f} to {high:+.4f})"
        )


if __name__ == "__main__":
    main()
