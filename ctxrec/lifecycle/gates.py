"""The gates between a candidate and the service: their limits, and those that ask for what is known and what it costs.

Those that ask for the ranking are in `ctxrec.lifecycle.ranking_gates`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ctxrec.core import storage
from ctxrec.lifecycle.paired_ranking import Ranked
from ctxrec.metrics.intervals import Interval
from ctxrec.retrieval.recommender import Recommender

Verdict = Literal["passed", "failed", "no evidence"]

_HOUR_US = 3.6e9


@dataclass(frozen=True)
class GateParams:
    """What a candidate may lose. The numbers are limits that a user accepts, and none is fitted to a log.

    They were tried on spoilt candidates and on daily refreshes of a simulated news log ("Refreshes" in `tests/bench/RESULTS.md`).

    Attributes:
        loss: share of the served NDCG@10 that the 95 % interval of the paired difference may reach below 0.
        slice_loss: the same for a slice, which fails only if its fall is real (`ctxrec.lifecycle.ranking_gates`).
        known_loss: the same for the slice of known items, which are ranked among themselves. No user sees that list, so this
            slice finds what is broken and not what the new blend weighs less.
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
    known_loss: float = 0.2
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
    items = max(len(candidate.items) / max(len(served.items), 1), 1.0)
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
