"""Why an item has its score: what the score would lack without each part of the request.

The effect of a history item is the score minus the score of the same request without any event of that item; that
of a context feature, minus the score of the same request with the feature missing; that of hour, weekday or month,
minus the mean score over all hours, weekdays or months; that of a user's attribute, minus the score with the attribute
missing. Effects are differences of real scores, all computed in one
batch, and need not add up to the score. What adds up to it are the shares of its sources (`ctxrec.memory.blend`).

Legend: V variants of a request, P items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxrec.core import schema
from ctxrec.data.requests import Requests
from ctxrec.memory.blend import STATIC
from ctxrec.memory.request_words import WORDS, texts_of_words, without_words
from ctxrec.memory.scoring import score_items
from ctxrec.retrieval.recommender import Recommender

HISTORY_ITEMS = 10  # distinct items of the history, the latest, whose effects are told
# Sources: what is remembered of the training, what happens now, and what dislikes take.
MEMORY, NOW, DISLIKE = "memory", "now", "dislike"
_TIMES = {"hour": np.arange(24), "weekday": np.arange(7), "month": np.arange(1, 13)}


@dataclass(frozen=True)
class Why:
    """What an item's score is made of.

    history: effect of each of the latest items of the history, by id; the largest effect first, whatever its sign.
    context: effect of each context feature that the request has, and of the time; likewise.
    user: effect of each attribute of the user that is known; likewise.
    sources: share of the score of each source; they sum to the score.
    """

    history: dict[str, float]
    context: dict[str, float]
    user: dict[str, float]
    sources: dict[str, float]


@dataclass(frozen=True)
class _Variant:
    """A request that lacks something: an item of the history, or what a context feature or a user's attribute says."""

    item: int | None = None
    feature: str = ""
    code: int = schema.MISSING  # of a categorical feature, in place of its own
    attribute: str = ""  # of the user

    @property
    def part(self) -> tuple[str, int | str]:
        """The part of `Why` that the variant tells about, and its key there."""
        if self.item is not None:
            return "history", self.item
        return ("user", self.attribute) if self.attribute else ("context", self.feature)


def explain(recommender: Recommender, request: Requests, positions: np.ndarray) -> list[Why]:
    """Why each of these items has its score.

    Args:
        recommender: the model.
        request: one request of `recommender.make_requests`.
        positions: int64 [P] items.
    """
    assert len(request) == 1
    variants = [_Variant(), *_variants(request, has_clock=recommender.features.clock)]
    scores_VP = score_items(recommender, _requests(request, variants), positions)
    own_P = scores_VP[0]
    effects: dict[str, dict[Any, np.ndarray]] = {"history": {}, "context": {}, "user": {}}
    for variant, scores_P in zip(variants[1:], scores_VP[1:], strict=True):
        kind, key = variant.part
        share = 1 / len(_TIMES.get(variant.feature, (0,)))
        effects[kind][key] = effects[kind].get(key, own_P) - share * scores_P
    sources = _sources(recommender, request, positions)
    ids = recommender.item_ids
    effects["history"] = {ids[item]: values for item, values in effects["history"].items()}
    return [
        Why(
            **{
                kind: _largest_first({str(key): float(values[p]) for key, values in found.items()})
                for kind, found in effects.items()
            },
            sources={name: float(values[p]) for name, values in sources.items()},
        )
        for p in range(len(positions))
    ]


def _variants(request: Requests, *, has_clock: bool) -> Iterator[_Variant]:
    latest = dict.fromkeys(request.history.items[::-1].tolist())
    for item in list(latest)[:HISTORY_ITEMS]:
        yield _Variant(item=item)
    for name, times in _TIMES.items() if has_clock else ():
        for value in times:
            yield _Variant(feature=name, code=int(value) + schema.FIRST_CODE)
    context = request.context
    for name, codes in context.cat.items():
        if name not in _TIMES and codes[0] != schema.MISSING:
            yield _Variant(feature=name)
    yield from (_Variant(feature=name) for name, values in context.num.items() if not np.isnan(values[0]))
    yield from (_Variant(feature=name) for name, values in context.text.items() if values[0])
    users = request.users
    coded = {**users.cat, **users.lists}
    yield from (_Variant(attribute=name) for name, codes in coded.items() if np.any(codes[0] != schema.MISSING))
    yield from (_Variant(attribute=name) for name, values in users.num.items() if not np.isnan(values[0]))
    yield from (_Variant(attribute=name) for name, values in users.text.items() if values[0])


def _requests(request: Requests, variants: list[_Variant]) -> Requests:
    """The variants as requests."""
    made = request.take(np.zeros(len(variants), np.int64))
    kept = np.ones(len(made.history.items), bool)
    for row, variant in enumerate(variants):
        span = made.history.row(row)
        if variant.item is not None:
            kept[span] = made.history.items[span] != variant.item
        elif variant.attribute in made.users.cat:
            made.users.cat[variant.attribute][row] = schema.MISSING
        elif variant.attribute in made.users.lists:
            made.users.lists[variant.attribute][row] = schema.MISSING
        elif variant.attribute in made.users.num:
            made.users.num[variant.attribute][row] = np.nan
        elif variant.attribute:
            made.users.text[variant.attribute][row] = None
        elif variant.feature in made.context.cat:
            made.context.cat[variant.feature][row] = variant.code
        elif variant.feature in made.context.num:
            made.context.num[variant.feature][row] = np.nan
        elif variant.feature:
            made.context.text[variant.feature][row] = None
    return dataclasses.replace(made, history=made.history.keep(kept))


def _sources(recommender: Recommender, request: Requests, positions: np.ndarray) -> dict[str, np.ndarray]:
    """The part of each source in the scores: [P] each."""
    if request.disliked is not None:
        plain = dataclasses.replace(request, disliked=None)
        taken = score_items(recommender, request, positions) - score_items(recommender, plain, positions)
        return _sources(recommender, plain, positions) | {DISLIKE: taken[0]}
    vectors, query = recommender.vectors[positions], recommender.queries(request)
    blend = recommender.blend
    names, widths = list(("sequence", "content")[: len(recommender.widths)]), list(recommender.widths)
    words: dict[str, np.ndarray] = {}
    if blend is not None:
        names = [name for name in blend.sources if name not in (*WORDS, *blend.memory.sources)]
        text = slice(sum(widths), recommender.vectors.shape[1] - len(STATIC))
        silent = request
        for source, asked in texts_of_words(request).items():
            if asked[0]:  # words share the vectors of the text head: their part is what the query lacks without them
                silent = without_words(silent, source)
                left = recommender.queries(silent)[:, text]
                words[source] = vectors[:, text] @ (query[:, text] - left)[0]
                query[:, text] = left
        widths += ([] if blend.text_IC is None else [blend.text_IC.shape[1]]) + [1] * len(STATIC)
    ends = np.cumsum(widths)
    products = vectors * query
    made = {name: products[:, end - width : end].sum(1) for name, width, end in zip(names, widths, ends, strict=True)}
    made |= words
    remembered = recommender.remembered(request)
    if remembered is None:
        return made
    added = remembered[:, positions].toarray()[0]
    if recommender.live is None:
        return made | {MEMORY: added}
    now = recommender.live.scores(request, len(recommender.vectors))[:, positions].toarray()[0]
    return made | {MEMORY: added - now, NOW: now}


def _largest_first(effects: dict[str, float]) -> dict[str, float]:
    return dict(sorted(effects.items(), key=lambda pair: -abs(pair[1])))
