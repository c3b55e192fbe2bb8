"""Guards of a version in service: what breaks them, and how sure that is.

A guard breaks where two things hold. The version is worse by more than an operator accepts, and chance does not explain it:
the evidence of a change (`ctxrec.metrics.sequential`) exceeds what a version that is no worse reaches in a stated share of
all releases, however often one looks. So a version of which every call fails is known after a few calls, and one that is a
little worse after many.

The stated share holds where the calls are independent and the traffic is that of the time before. What fails for another
reason at the same time counts as a fault of the version.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxrec.lifecycle.service_look import Look
from ctxrec.metrics.sequential import log_evidence_above, log_evidence_of_rise

_NUM_GUARDS = 5  # errors, time, unknown users, events, hits


@dataclass(frozen=True)
class WatchParams:
    """Guards of a version in service. They are limits that an operator accepts, and none is fitted to a service.

    Attributes:
        every_s: seconds between two looks.
        take_over_s: seconds within which all replicas must serve the new version, and within which a service that is
            silent must answer again.
        false_alarms: share of the releases of versions that are no worse in which some guard may break.
        fewest: with fewer answers before, errors are compared with none at all; with fewer answers since, only a plain
            fault would have been seen.
        errors: share of failed calls above that of the time before.
        slower: mean time of a call, as a multiple of the time before. The evidence is that of the share of calls that take
            longer than a bound of the service's histogram, the last one up to that multiple.
        fallbacks: share of lists for unknown users above that of the time before.
        events: share of the events a list that may be lost. The evidence is that of the number of calls which bring events,
            because a call may bring many.
        listed: share of the hits that may be lost. A hit is a first event after a list of an item in the list; the share of
            hits of the version is compared with that of all others since the look before.
    """

    every_s: float = 2.0
    take_over_s: float = 120.0
    false_alarms: float = 0.01
    fewest: int = 100
    errors: float = 0.01
    slower: float = 2.0
    fallbacks: float = 0.1
    events: float = 0.2
    listed: float = 0.2

    @property
    def surely(self) -> float:
        """Logarithm of the evidence at which a guard breaks: all guards together keep to `false_alarms`."""
        return math.log(_NUM_GUARDS / self.false_alarms)


WATCH = WatchParams()


def figures(window: Look) -> dict[str, float]:
    """Shares and means of the calls between two looks; times in seconds. Empty without calls."""
    if window.answers <= 0:
        return {}
    return {
        "answers": window.answers,
        "errors": window.errors / window.answers,
        "seconds": window.seconds / window.answers,
        "fallbacks": window.fallbacks / max(window.lists, 1.0),
        "events": window.events / max(window.lists, 1.0),
    }


def broken_guard(before: Look, after: Look, *, params: WatchParams = WATCH) -> str:
    """The first guard that breaks, in words; "" where none does, or where there are too few answers to tell.

    Args:
        before: what was counted before the version was published.
        after: what was counted since all replicas serve it.
        params: the guards.
    """
    now, was = figures(after), figures(before)
    if not now:
        return ""
    enough = before.answers >= params.fewest
    usual = was["errors"] if enough else 0.0
    if enough:
        sure = log_evidence_of_rise(after.errors, after.answers, before.errors, before.answers)
    else:
        sure = log_evidence_above(after.errors, after.answers, params.errors)
    if now["errors"] > usual + params.errors and sure > params.surely:
        return f"{now['errors']:.1%} of {after.answers:,.0f} calls fail, {usual:.1%} before"
    if not was:
        return ""
    if now["seconds"] > params.slower * was["seconds"] and _slower(before, after, params) > params.surely:
        return f"a call takes {1000 * now['seconds']:.1f} ms, {1000 * was['seconds']:.1f} ms before"
    sure = log_evidence_of_rise(*_unknown(after), *_unknown(before))
    if now["fallbacks"] > was["fallbacks"] + params.fallbacks and sure > params.surely:
        return f"{now['fallbacks']:.1%} of the lists are for users who are not known, {was['fallbacks']:.1%} before"
    # Of calls for lists and calls that bring events, the share of those for lists rises where events are lost.
    pairs = ((look.answers, look.answers + look.posts) for look in (after, before))
    sure = log_evidence_of_rise(*(value for pair in pairs for value in pair))
    if now["events"] < (1 - params.events) * was["events"] and sure > params.surely:
        return f"{now['events']:.3f} events a list, {was['events']:.3f} before"
    return ""


def _unknown(window: Look) -> tuple[float, float]:
    """Lists for unknown users, and all lists; the two counters are not read at one moment."""
    return min(window.fallbacks, window.lists), window.lists


def _slower(before: Look, after: Look, params: WatchParams) -> float:
    """Evidence that more calls than before take longer than a bound near the time that a call may take."""
    longest = params.slower * before.seconds / before.answers
    bounds = [bound for bound in before.within if bound in after.within and float(bound) <= longest]
    if not bounds or "+Inf" not in before.within or "+Inf" not in after.within:
        return -math.inf
    bound = max(bounds, key=float)
    counts = [(look.within["+Inf"] - look.within[bound], look.within["+Inf"]) for look in (after, before)]
    return log_evidence_of_rise(*counts[0], *counts[1])


def lost_hits(version: str, since: Look, *, params: WatchParams = WATCH) -> str:
    """Whether users take less of a version's lists than of others', in words; "" where not, or where too few tell.

    Args:
        version: that is watched.
        since: what was counted since the look before.
        params: the guards.
    """
    (hits, lists), (others, of_others) = hits_of(version, since)
    if not lists or not of_others:
        return ""
    now, was = hits / lists, others / of_others
    sure = log_evidence_of_rise(lists - hits, lists, of_others - others, of_others)
    if now < (1 - params.listed) * was and sure > params.surely:
        return f"{now:.1%} of the first events after a list are in the list, {was:.1%} with other versions"
    return ""


def hits_of(version: str, since: Look) -> tuple[list[float], list[float]]:
    """Hits and first events after lists of a version, and of all others."""
    others = [counts for name, counts in since.listed.items() if name != version]
    return since.listed.get(version, [0.0, 0.0]), [sum(counts[n] for counts in others) for n in range(2)]
