"""What `[events.feedback]` may be for a column that looks like ratings: thresholds, and how many events they would divide."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.data.parsing import to_numbers
from ctxrec.ingest.guess import names
from ctxrec.ingest.guess.looked_table import LookedTable

_MOST_STARS = 101  # different values of a rating, such as 0 to 100


@dataclass(frozen=True)
class FeedbackProposal:
    """Thresholds for a column, and the share of the sample's events with a value that lies beyond each."""

    column: str
    positive: float
    negative: float
    liked: float
    disliked: float

    @property
    def text(self) -> str:
        """The doubt in words."""
        return (
            f"{self.column} looks like ratings, and every event counts alike as a target until [events.feedback] says what "
            f"values mean. With positive = {self.positive:g} and negative = {self.negative:g}, {self.liked:.0%} of the events "
            f"of the sample are successes and {self.disliked:.0%} negative feedback"
        )


def propose(log: LookedTable, events: EventsSpec) -> FeedbackProposal | None:
    """Thresholds for the column of values; None where it does not look like ratings.

    A success lies in the upper quarter of the range of values, and negative feedback in the lower one: of 1 to 5 stars
    from 4 on, and up to 2.
    """
    look = log.looks.get(events.value or "")
    if look is None or not names.says(look.name, names.RATING) or look.kind != "number":
        return None
    if not (2 <= look.distinct <= _MOST_STARS and 0 <= look.low < look.high):
        return None
    quarter = (look.high - look.low) / 4
    positive, negative = float(math.ceil(look.high - quarter)), float(math.floor(look.low + quarter))
    if not look.low <= negative < positive <= look.high:
        return None
    values = to_numbers(log.sample.rows.column(look.name))[0]
    values = values[~np.isnan(values)]
    return FeedbackProposal(
        look.name, positive, negative, float((values >= positive).mean()), float((values <= negative).mean())
    )
