"""What a request says in words, which a cross-encoder reads beside the text of a candidate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctxrec.core import schema
from ctxrec.data.events import DAYS, MONTHS
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests

_DAYTIMES = ("night", "morning", "afternoon", "evening")  # a quarter of the day each, from midnight on


def request_texts(
    requests: Requests, features: FeatureMeta, titles: Sequence[str | None], *, history_items: int
) -> list[str]:
    """What each request says in words: its query, the texts of its context and of its user, then the user's attributes, the
    context, the time, and titles of the latest items, newest first.

    What is asked for comes first, because what does not fit is cut from the end.

    Args:
        requests: N requests.
        features: vocabularies of their codes; where the log has no clock, no time is said.
        titles: of the catalogue.
        history_items: titles of each history at most.
    """
    users, context = requests.users, requests.context
    parts: list[list[str]] = [[] for _ in range(len(requests))]
    texts = [] if requests.query is None else [("query", requests.query)]  # a feature may have this name too
    of_context = [(name, context.text[name]) for name in features.context_texts]
    for name, column in [*texts, *of_context, *((name, users.text[name]) for name in features.user_texts)]:
        for said, text in zip(parts, column, strict=True):
            if text and text.strip():
                said.append(f"{name}: {text.strip()}")
    for codes, vocabularies in (
        ({**users.cat, **users.lists}, features.user_categories),
        (context.cat, features.context_categories),
    ):
        for name, vocabulary in vocabularies.items():
            for said, found in zip(parts, codes[name], strict=True):
                known = [
                    vocabulary[code - schema.FIRST_CODE] for code in np.atleast_1d(found) if code >= schema.FIRST_CODE
                ]
                if known:
                    said.append(f"{name}: {', '.join(known)}")
    for values, names in ((users.num, features.user_numbers), (context.num, features.context_numbers)):
        for name in names:
            for said, value in zip(parts, values[name], strict=True):
                if np.isfinite(value):
                    said.append(f"{name}: {value:.4g}")
    for n, said in enumerate(parts):
        if features.clock:
            said.append(_time_in_words(requests, n))
        latest = requests.history.items[requests.history.row(n)][::-1][:history_items]
        said += [title for item in latest.tolist() if item < len(titles) and (title := titles[item])]
    return ["; ".join(said) for said in parts]


def _time_in_words(requests: Requests, n: int) -> str:
    """As "Friday evening, April", in the zone of the request or of the log."""
    hour, weekday, month = (int(requests.context.cat[name][n]) - schema.FIRST_CODE for name in schema.TIME_CONTEXT)
    return f"{DAYS[weekday]} {_DAYTIMES[hour // 6]}, {MONTHS[month - 1]}"
