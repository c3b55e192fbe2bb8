"""Curves over time of a stream: accuracy, the share of new items, and how fast the log moves."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctxrec.data.events import US
from ctxrec.data.replay import Stream
from ctxrec.data.requests import Requests
from ctxrec.evaluation.summary import RankedLists
from ctxrec.metrics.ranking import request_metrics

_POINTS, _LEAST = 24, 40  # points of a curve at most, and requests of a point at least


def curves(lists: RankedLists, requests: Requests, stream: Stream, item_counts: np.ndarray) -> dict[str, Any]:
    """Figures of spans of the stream with equally many requests.

    Args:
        lists: of the requests, in the order of time.
        requests: the same.
        stream: all events.
        item_counts: int64 [I], events of each item before the split.

    Returns:
        "hours" since the first request to the middle of each span, "requests", "ndcg@10" by system, "new_items" (share
        of the targets that have no event before the split), and "drift": half of the sum of the absolute differences
        between the shares of the items among the events of a span and of the span before (total variation; 0 is a log
        that stands still, 1 one that has nothing in common with the span before), missing (null) in the first.
    """
    num = int(np.clip(len(requests) // _LEAST, 1, _POINTS))
    edges = np.linspace(0, len(requests), num + 1).astype(int)
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    ndcg = {
        system: request_metrics(top, lists.target_offsets, lists.target_items, [10])["ndcg@10"]
        for system, top in lists.tops.items()
    }
    new = item_counts[lists.target_items] == 0
    begins = [int(requests.times[first]) for first, _ in spans]
    ends = [*begins[1:], int(requests.times[-1]) + 1]
    shares = [_shares(stream, a, b, len(item_counts)) for a, b in zip(begins, ends, strict=True)]
    drift = [float(np.abs(b - a).sum() / 2) for a, b in zip(shares[:-1], shares[1:], strict=True)]
    middle = [(a + b) / 2 for a, b in zip(begins, ends, strict=True)]
    return {
        "hours": [(at - begins[0]) / US / 3600 for at in middle],
        "requests": [int(b - a) for a, b in spans],
        "ndcg@10": {system: [float(values[a:b].mean()) for a, b in spans] for system, values in ndcg.items()},
        "new_items": [
            float(new[lists.target_offsets[a] : lists.target_offsets[b]].mean()) for a, b in spans
        ],
        "drift": [None, *drift],
    }  # fmt: skip


def _shares(stream: Stream, begin_us: int, end_us: int, num_items: int) -> np.ndarray:
    """Share of each item among the events of a span: float64 [I]."""
    items = stream.items[stream.before(begin_us) : stream.before(end_us)]
    return np.bincount(items, minlength=num_items) / max(len(items), 1)
