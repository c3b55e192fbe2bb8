"""The gates between a candidate and the service: what each asks, what it found, and whether the candidate may pass.

Legend: N requests, I items of the new catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ctxrec.core import storage
from ctxrec.data.prepared import PreparedData
from ctxrec.evaluation.slices import action_slices
from ctxrec.lifecycle.paired_ranking import K, Ranked, on_targets
from ctxrec.metrics.intervals import Interval, bootstrap_means, percentile_interval
from ctxrec.metrics.ranking import request_metrics
from ctxrec.retrieval.recommender import Recommender

Verdict = Literal["passed", "failed", "no evidence"]
NEW_ITEMS, KNOWN_ITEMS, NEW_USERS, KNOWN_USERS = "new items", "known items", "new users", "known users"

_SEED = 0
_HOUR_US = 3.6e9
_MOST_VALUES = 10  # of a user attribute, the most frequent ones


@dataclass(frozen=True)
class GateParams:
    """What a candidate may lose. The numbers are limits that a user accepts, and none is fitted to a log.

    They were tried on sabotaged candidates and on weekly refreshes of Online Retail (`tests/bench/RESULTS.md`).

    Attributes:
        loss: share of the served NDCG@10 that the 95 % interval of the paired difference may reach below 0.
        slice_loss: the same for a slice, which fails only if its fall is real (see `slice_gates`).
        requests: most requests that are ranked.
        fewest: fewer requests are no evidence.
        coverage: share of the served coverage of the catalogue that the candidate must reach.
        most_shown: share of the lists by which the candidate's most shown item may exceed that of the served version, and
            share of the new events by which their most frequent item or user may exceed that of earlier events.
        lost: share of the items, users or events of the served version that the new data may lack.
        size: growth of the bundle, beside that of events and items.
        seconds: growth of the time of a request, beside that of the catalogue.
        ms_more: milliseconds by which any request may take longer.
        resamples: of the bootstrap.
    """

    loss: float = 0.01
    slice_loss: float = 0.05
    requests: int = 5000
    fewest: int = 100
    coverage: float = 0.7
    most_shown: float = 0.15
    lost: float = 0.05
    size: float = 1.5
    seconds: float = 1.5
    ms_more: float = 1.0
    resamples: int = 2000


GATES = GateParams()


@dataclass(frozen=True)
class Gate:
    """One question, its answer, and the figures behind it; all but the verdict is for people."""

    name: str
    verdict: Verdict
    found: str
    expected: str
    requests: int = 0
    difference: Interval = field(default_factory=dict)  # relative to the served version's NDCG@10


def data_gates(candidate: Recommender, served: Recommender, *, params: GateParams = GATES) -> list[Gate]:
    """Whether the candidate goes on from what the served version knows: items, users, events, and something new."""
    now, before = candidate.histories.events, served.histories.events
    lost = 1 - len(now.items) / max(len(before.items), 1)
    later = int(now.times.max(initial=-1)) - int(before.times.max(initial=-1))
    return [
        _kept("lost items", served.item_ids, set(candidate.item_ids), params),
        _kept("lost users", _users(served), set(_users(candidate)), params),
        Gate(
            "lost events",
            "passed" if lost <= params.lost else "failed",
            f"{len(now.items):,} events, served {len(before.items):,}",
            f"at most {params.lost:.0%} fewer",
        ),
        Gate(
            "new events",
            "passed" if later > 0 else "failed",
            f"the log ends {later / _HOUR_US:+.1f} h after that of the served version",
            "a later end",
        ),
        *_concentration(candidate, served, params),
    ]


def _concentration(candidate: Recommender, served: Recommender, params: GateParams) -> list[Gate]:
    """Whether one item or one user has far more of the new events than any had before, as robots and broken senders have.

    The test requests cannot tell: a candidate that has learnt from such events ranks more of them well.
    """
    now, before = candidate.histories.events, served.histories.events
    new = now.times > before.times.max(initial=-1)
    of_row = np.repeat(np.arange(len(candidate.histories)), now.lengths)
    gates = []
    for what, values, shares in (
        ("item", now.items[new], np.bincount(before.items)),
        ("user", of_row[new], before.lengths),
    ):
        found = np.bincount(values).max(initial=0) / max(len(values), 1)
        usual = shares.max(initial=0) / max(len(before.items), 1)
        gates.append(
            Gate(
                f"most frequent {what} of the new events",
                "passed" if found <= usual + params.most_shown else "failed",
                f"{found:.1%} of {len(values):,} events, before {usual:.1%}",
                f"at most {100 * params.most_shown:.0f} points more",
            )
        )
    return gates


def _users(version: Recommender) -> list[str]:
    """Users with events; a table of users names others too."""
    histories = version.histories
    return [str(user) for user in histories.users.ids[histories.events.lengths > 0]]


def _kept(name: str, before: list[str], now: set[str], params: GateParams) -> Gate:
    lost = [value for value in before if value not in now]
    share = len(lost) / max(len(before), 1)
    such = f", such as {lost[0]}" if lost else ""
    verdict: Verdict = "passed" if share <= params.lost else "failed"
    return Gate(name, verdict, f"{len(lost):,} of {len(before):,} ({share:.1%}){such}", f"at most {params.lost:.0%}")


def ranking_gates(ranked: Ranked | None, data: PreparedData, *, params: GateParams = GATES) -> list[Gate]:
    """How well both versions rank the newest requests, overall and by slice, and what they show."""
    if ranked is None:
        expected = f"at least {params.fewest} test requests after the training events of the served version"
        return [Gate("NDCG@10", "no evidence", "no request", expected)]
    offsets, targets = ranked.requests.target_offsets, ranked.requests.target_items
    assert offsets is not None and targets is not None
    both = _ndcg(ranked, np.arange(len(ranked.requests)), offsets, targets)
    difference = _relative(both, params)
    enough = len(both) >= params.fewest
    passed: Verdict = "passed" if difference["low"] > -params.loss else "failed"
    expected = f"the interval above {-params.loss:.0%} of the served version's" + (
        "" if enough else f", on at least {params.fewest} requests"
    )
    overall = Gate(
        "NDCG@10",
        passed if enough else "no evidence",
        f"{both[:, 0].mean():.4f}, served {both[:, 1].mean():.4f}: {_told(difference)}",
        expected,
        len(both),
        difference,
    )
    return [overall, *slice_gates(ranked, data, params=params), *_shown(ranked, len(data.items), params)]


def slice_gates(ranked: Ranked, data: PreparedData, *, params: GateParams = GATES) -> list[Gate]:
    """Slices of new and known items and users, actions, and user attributes.

    A slice fails if its mean falls by more than `slice_loss` and the fall is real: the interval of its difference lies
    below 0, after Bonferroni's correction for the number of slices. It passes if the interval excludes a fall of more
    than `slice_loss`. In between there is no evidence, and the overall gate decides.
    """
    slices = {name: both for name, both in _slices(ranked, data) if len(both)}
    gates = []
    for name, both in slices.items():
        plain, wide = _relative(both, params), _relative(both, params, among=len(slices))
        if len(both) > 1 and wide["high"] < 0 and plain["mean"] < -params.slice_loss:
            verdict: Verdict = "failed"
        elif len(both) >= params.fewest and plain["low"] > -params.slice_loss:
            verdict = "passed"
        else:
            verdict = "no evidence"
        found = f"{both[:, 0].mean():.4f}, served {both[:, 1].mean():.4f}: {_told(plain)}"
        expected = f"no real fall of more than {params.slice_loss:.0%}"
        gates.append(Gate(f"slice {name}", verdict, found, expected, len(both), plain))
    return gates


def _slices(ranked: Ranked, data: PreparedData) -> Iterator[tuple[str, np.ndarray]]:
    """NDCG@10 of the requests of each slice: float64 [n, 2]."""
    requests = ranked.requests
    assert requests.target_items is not None and requests.target_offsets is not None
    known = ranked.known_I[requests.target_items]
    masks = {KNOWN_ITEMS: known, NEW_ITEMS: ~known}
    if requests.target_actions is not None:
        masks |= action_slices(requests.target_actions, data.features.actions)
    for name, mask in masks.items():
        yield name, _ndcg(ranked, *on_targets(ranked, mask))
    whole = _ndcg(ranked, np.arange(len(requests)), requests.target_offsets, requests.target_items)
    yield KNOWN_USERS, whole[ranked.known_N]
    yield NEW_USERS, whole[~ranked.known_N]
    for name, codes in requests.users.cat.items():
        values, counts = np.unique(codes, return_counts=True)
        for code in values[np.argsort(-counts, kind="stable")][:_MOST_VALUES]:
            names = ["missing", "other values", *data.features.user_categories[name]]
            yield f"{name}={names[code]}", whole[codes == code]


def _ndcg(ranked: Ranked, rows: np.ndarray, offsets: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """NDCG@10 of the candidate and of the served version: float64 [n, 2]."""
    if not len(rows):
        return np.zeros((0, 2))
    lists = (ranked.candidate[rows], ranked.served[rows])
    return np.stack([request_metrics(top, offsets, targets, [K])[f"ndcg@{K}"] for top in lists], 1)


def _relative(both: np.ndarray, params: GateParams, *, among: int = 1) -> Interval:
    """The paired difference as a share of the served version's mean, with its interval.

    Args:
        both: float64 [n, 2], of the candidate and of the served version.
        params: the number of resamples.
        among: number of intervals that shall hold together (Bonferroni).
    """
    base = max(float(both[:, 1].mean()), 1e-9)
    resampled = bootstrap_means(both, num=params.resamples, seed=_SEED)
    shares = (resampled[:, 0] - resampled[:, 1]) / base
    mean = float(both[:, 0].mean() - both[:, 1].mean()) / base
    if among == 1:
        return percentile_interval(mean, shares)
    half = 2.5 / among
    low, high = np.percentile(shares, [half, 100 - half])
    return {"mean": mean, "low": float(low), "high": float(high)}


def _told(difference: Interval) -> str:
    return f"{difference['mean']:+.1%} ({difference['low']:+.1%} to {difference['high']:+.1%})"


def _shown(ranked: Ranked, num_items: int, params: GateParams) -> list[Gate]:
    """What the lists show: how much of the catalogue, how often the same item, and whether they are full."""
    size = int(max(num_items, ranked.candidate.max() + 1, ranked.served.max() + 1))
    counts = {
        name: np.bincount(top[top >= 0], minlength=size) / len(top)
        for name, top in (("candidate", ranked.candidate), ("served", ranked.served))
    }
    distinct = {name: int((shares > 0).sum()) for name, shares in counts.items()}
    most = {name: float(shares.max()) for name, shares in counts.items()}
    full = {"candidate": float((ranked.candidate >= 0).mean()), "served": float((ranked.served >= 0).mean())}
    return [
        Gate(
            "items shown",
            "passed" if distinct["candidate"] >= params.coverage * distinct["served"] else "failed",
            f"{distinct['candidate']:,} different items, served {distinct['served']:,}",
            f"at least {params.coverage:.0%} as many",
        ),
        Gate(
            "most shown item",
            "passed" if most["candidate"] <= most["served"] + params.most_shown else "failed",
            f"in {most['candidate']:.1%} of the lists, served {most['served']:.1%}",
            f"at most {100 * params.most_shown:.0f} points more",
        ),
        Gate(
            "full lists",
            "passed" if full["candidate"] >= full["served"] - params.loss else "failed",
            f"{full['candidate']:.1%} of the places are filled, served {full['served']:.1%}",
            f"at most {100 * params.loss:.0f} point less",
        ),
    ]


def cost_gates(
    ranked: Ranked | None,
    candidate: Recommender,
    served: Recommender,
    bundles: tuple[str, str],
    *,
    params: GateParams = GATES,
) -> list[Gate]:
    """Size of the bundle, and time of a request.

    Args:
        ranked: has the times; None where nothing was ranked.
        candidate, served: the versions.
        bundles: local folders of the candidate and of the served version.
        params: the limits.
    """
    items = max(len(candidate.item_ids) / max(len(served.item_ids), 1), 1.0)
    events = max(len(candidate.histories.events.items) / max(len(served.histories.events.items), 1), 1.0)
    ours, theirs = (_bytes(folder) for folder in bundles)
    most = params.size * max(items, events)
    gates = [
        Gate(
            "size",
            "passed" if ours <= most * theirs else "failed",
            f"{ours / 2**20:.1f} MiB, served {theirs / 2**20:.1f} MiB",
            f"at most {most:.2f} times as much",
        )
    ]
    if ranked is not None:
        now, before = ranked.seconds["candidate"], ranked.seconds["served"]
        slower = params.seconds * items
        gates.append(
            Gate(
                "time of a request",
                "passed" if now <= slower * before + params.ms_more / 1000 else "failed",
                f"{1000 * now:.2f} ms, served {1000 * before:.2f} ms (the fastest, on this machine)",
                f"at most {slower:.2f} times as long and {params.ms_more:g} ms",
            )
        )
    return gates


def _bytes(folder: str) -> int:
    fs, _ = storage.filesystem(folder)
    return sum(fs.get_file_info(storage.filesystem(path)[1]).size for path in storage.list_files(folder))
