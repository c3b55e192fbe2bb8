"""Gates on how both versions rank the newest requests: overall, by slice, and what their lists show.

Legend: N requests, I items of the new catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ctxrec.data.prepared import PreparedData
from ctxrec.evaluation.slices import action_slices
from ctxrec.lifecycle.gates import GATES, Gate, GateParams, Verdict
from ctxrec.lifecycle.paired_ranking import K, Ranked, on_targets
from ctxrec.metrics.intervals import Interval, bootstrap_means, percentile_interval
from ctxrec.metrics.ranking import request_metrics

NEW_ITEMS, KNOWN_ITEMS, NEW_USERS, KNOWN_USERS = "new items", "known items", "new users", "known users"

_SEED = 0
_FROM_NOTHING = 100.0  # a relative difference beyond this says nothing
_MOST_VALUES = 10  # of a user attribute, the most frequent ones


def ranking_gates(ranked: Ranked | None, data: PreparedData, *, params: GateParams = GATES) -> list[Gate]:
    """How well both versions rank the newest requests, overall and by slice, and what they show."""
    if ranked is None:
        expected = f"at least {params.fewest} test requests after the training events of the served version"
        return [Gate("NDCG@10", "no evidence", "no request", expected)]
    offsets, targets = ranked.requests.target_offsets, ranked.requests.target_items
    assert offsets is not None and targets is not None
    both, users = _ndcg(ranked, np.arange(len(ranked.requests)), offsets, targets), ranked.requests.users.ids
    difference = _relative(both, users, params)
    enough = len(both) >= params.fewest
    verdict: Verdict = "failed" if difference["high"] < 0 else "no evidence"  # a fall, or nothing that can be told
    if difference["low"] > -params.loss:
        verdict = "passed"
    expected = f"the interval above {-params.loss:.0%} of the served version's" + (
        "" if enough else f", on at least {params.fewest} requests"
    )
    overall = Gate(
        "NDCG@10",
        verdict if enough else "no evidence",
        f"{both[:, 0].mean():.4f}, served {both[:, 1].mean():.4f}: {_told(difference)}",
        expected,
        len(both),
        difference,
    )
    return [overall, *slice_gates(ranked, data, params=params), *_shown(ranked, len(data.items), params)]


def slice_gates(ranked: Ranked, data: PreparedData, *, params: GateParams = GATES) -> list[Gate]:
    """Slices of new and known items and users, actions, and user attributes.

    Known items are ranked among themselves: new ones would take their places, and rightly so where the world moves.

    A slice fails if its mean falls by more than `slice_loss` (known items: `known_loss`) and the fall is real: the interval
    of its difference lies below 0, after Bonferroni's correction for the number of slices. It passes if the interval excludes
    such a fall. In between there is no evidence, and the overall gate decides.
    """
    slices = {name: (rows, both) for name, rows, both in _slices(ranked, data) if len(both)}
    gates = []
    for name, (rows, both) in slices.items():
        users = ranked.requests.users.ids[rows]
        limit = params.known_loss if name == KNOWN_ITEMS else params.slice_loss
        plain, wide = _relative(both, users, params), _relative(both, users, params, among=len(slices))
        if len(both) > 1 and wide["high"] < 0 and plain["mean"] < -limit:
            verdict: Verdict = "failed"
        elif len(both) >= params.fewest and plain["low"] > -limit:
            verdict = "passed"
        else:
            verdict = "no evidence"
        found = f"{both[:, 0].mean():.4f}, served {both[:, 1].mean():.4f}: {_told(plain)}"
        expected = f"no real fall of more than {limit:.0%}"
        gates.append(Gate(f"slice {name}", verdict, found, expected, len(both), plain))
    return gates


def _slices(ranked: Ranked, data: PreparedData) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, rows of the requests (int64 [n]) and their NDCG@10 (float64 [n, 2]) of each slice."""
    requests = ranked.requests
    assert requests.target_items is not None and requests.target_offsets is not None
    known = ranked.known_I[requests.target_items]
    among_known = (ranked.candidate_known, ranked.served_known)
    on_known = on_targets(ranked, known)
    yield KNOWN_ITEMS, on_known[0], _ndcg(ranked, *on_known, lists=among_known)
    masks = {NEW_ITEMS: ~known}
    if requests.target_actions is not None:
        masks |= action_slices(requests.target_actions, data.features.actions)
    for name, mask in masks.items():
        found = on_targets(ranked, mask)
        yield name, found[0], _ndcg(ranked, *found)
    whole = _ndcg(ranked, np.arange(len(requests)), requests.target_offsets, requests.target_items)

    def part(name: str, mask: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
        return name, np.flatnonzero(mask), whole[mask]

    yield part(KNOWN_USERS, ranked.known_N)
    yield part(NEW_USERS, ~ranked.known_N)
    coded = {**requests.users.cat, **requests.users.lists}
    for name, codes in coded.items():
        values, counts = np.unique(codes, return_counts=True)
        for code in values[np.argsort(-counts, kind="stable")][:_MOST_VALUES]:
            names = ["missing", "other values", *data.features.user_categories[name]]
            yield part(f"{name}={names[code]}", (codes == code) if codes.ndim == 1 else (codes == code).any(1))


def _ndcg(
    ranked: Ranked,
    rows: np.ndarray,
    offsets: np.ndarray,
    targets: np.ndarray,
    lists: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """NDCG@10 of the candidate and of the served version: float64 [n, 2]."""
    if not len(rows):
        return np.zeros((0, 2))
    both = (ranked.candidate, ranked.served) if lists is None else lists
    return np.stack([request_metrics(top[rows], offsets, targets, [K])[f"ndcg@{K}"] for top in both], 1)


def _relative(both: np.ndarray, users: np.ndarray, params: GateParams, *, among: int = 1) -> Interval:
    """The paired difference as a share of the served version's mean, with its interval.

    Users are resampled with all their requests, because requests of one user are alike (cluster bootstrap, Davison and
    Hinkley, "Bootstrap methods and their application", 1997, section 3.8).

    Args:
        both: float64 [n, 2], of the candidate and of the served version.
        users: [n], who asked.
        params: the number of resamples.
        among: number of intervals that shall hold together (Bonferroni).
    """
    base = max(float(both[:, 1].mean()), 1e-9)
    _, of_user = np.unique(users.astype(str), return_inverse=True)
    sums = np.stack([np.bincount(of_user, values) for values in (both[:, 0], both[:, 1], np.ones(len(both)))], 1)
    resampled = bootstrap_means(sums, num=params.resamples, seed=_SEED)
    shares = (resampled[:, 0] - resampled[:, 1]) / resampled[:, 2] / base
    mean = float(both[:, 0].mean() - both[:, 1].mean()) / base
    if among == 1:
        return percentile_interval(mean, shares)
    half = 2.5 / among
    low, high = np.percentile(shares, [half, 100 - half])
    return {"mean": mean, "low": float(low), "high": float(high)}


def _told(difference: Interval) -> str:
    if difference["mean"] > _FROM_NOTHING:
        return "from almost nothing"
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
