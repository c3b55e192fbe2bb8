"""Quality where values or actions say what is liked: liked targets alone, and disliked items in lists.

The main figures count every event as a target, as they do where nothing says what is liked. These stand beside them.

Legend: N requests, K longest list.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.data.events import Histories
from ctxrec.evaluation.systems import MODEL, SystemMetrics, display_name, ranked_systems

LIKED = "liked"
DISLIKED = "disliked@10"


def known_dislikes(histories: Histories, user_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items that users gave negative feedback on at any time of the log, before or after a request.

    Args:
        histories: of a bucket, with weights, users in the order of their ids.
        user_ids: object [N], some of these users.

    Returns:
        Offsets, int64 [N + 1], and items, int32.
    """
    assert histories.weights is not None
    negative = histories.events.keep(histories.weights < 0)
    rows = np.searchsorted(histories.users.ids.astype(str), user_ids.astype(str))
    found = negative.cut(negative.offsets[rows], negative.offsets[rows + 1])
    return found.offsets, found.items


def describe(events: EventsSpec) -> dict[str, str]:
    """What a success is and what negative feedback is, in words.

    >>> from ctxrec.core.dataset_spec import FeedbackSpec
    >>> stars = FeedbackSpec(kind="rating", positive=4, negative=2)
    >>> describe(EventsSpec(path="log.csv", value="stars", feedback=stars))
    {'success': 'rating of 4 or more', 'negative': 'rating of 2 or less'}
    >>> describe(EventsSpec(path="log.csv", action="kind", actions={"buy": 1.0, "return": -1.0}))
    {'success': 'target action (buy)', 'negative': 'negative action (return)'}
    """
    feedback, words = events.feedback, {}
    if feedback is not None:
        words["success"] = f"{feedback.kind} of {feedback.positive:g} or more"
        if feedback.negative is not None:
            words["negative"] = f"{feedback.kind} of {feedback.negative:g} or less"
        return words
    for name, sign in (("success", 1), ("negative", -1)):
        found = ", ".join(action or "none" for action, weight in events.actions.items() if weight * sign > 0)
        words[name] = f"{'target' if sign > 0 else 'negative'} action ({found})"
    return words


def sentences(metrics: dict[str, Any]) -> list[str]:
    """The figures for a terminal: what a success is, liked targets next to every event, and disliked items in lists."""
    facts = metrics.get("feedback")
    if not facts:
        return []
    liked, lines = metrics[LIKED], [f"the table counts every event as a target; a success is a {facts['success']}"]
    if liked["requests"]:
        best = ranked_systems(liked)[:3]
        shown = dict(best) | ({MODEL: liked[MODEL]} if liked[MODEL] else {})
        values = ", ".join(f"{display_name(name)} {found['ndcg@10']['mean']:.4f}" for name, found in shown.items())
        lines.append(f"successes alone as targets ({liked['requests']:,} requests): NDCG@10 {values}")
    if "negative" in facts and DISLIKED in metrics[MODEL]:
        lines.append(
            f"items that their user is known to dislike ({facts['negative']}) take {_share(metrics[MODEL])} % of the places "
            "of ctxrec's lists of 10"
        )
    return lines


def _share(metrics: SystemMetrics) -> str:
    found = metrics[DISLIKED]
    return f"{100 * found['mean']:.2f} ({100 * found['low']:.2f} to {100 * found['high']:.2f})"
