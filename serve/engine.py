"""Answers batches of checked requests, without Ray and without HTTP."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import faiss
import numpy as np
import torch

from ctxrec.bundle.registry import find_bundle
from ctxrec.core.config import Config, load_config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths
from ctxrec.core.stopwatch import Stopwatch
from ctxrec.data.events import EARLIEST_S, Events
from ctxrec.data.requests import Requests
from ctxrec.live.store import HistoryStore
from ctxrec.memory.request_words import CONTEXT_TEXT, QUERY
from ctxrec.memory.scoring import Scored
from ctxrec.retrieval.explain import Why, explain
from ctxrec.retrieval.heard_words import why_unheard
from ctxrec.retrieval.item_probabilities import list_probabilities
from ctxrec.retrieval.live_statistics import LiveStatistics
from ctxrec.retrieval.no_effect import Note
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.request_reader import MAX_QUERY
from ctxrec.retrieval.retriever import Retriever, load_retriever
from ctxrec.retrieval.short_lists import is_expected, why_short
from serve.api import MAX_WORK, Context, HistoryEvent, RecommendRequest
from serve.live_feed import LiveFeed
from serve.request_notes import column_rules, request_notes
from serve.store_reader import StoreReader

logger = logging.getLogger(__name__)

_DIVERSE_WORK = 10  # what an item of a diverse list costs beside one of a plain list
_TOKEN_WORK = 20  # what each token costs that the second stage reads, beside an item of a plain list
_TEXT_WORK = 500  # what each started hundred characters cost that the encoder reads, beside an item of a plain list


@dataclass(frozen=True)
class Answer:
    """Items of one request, best first."""

    item_ids: list[str]
    scores: list[float]
    model_version: str
    fallback: bool = False
    degraded: str | None = None
    why: list[Why] | None = None  # of each item, where it was asked for
    experiment: tuple[str, str] | None = None  # the A/B test that runs, and the arm in it
    unheard: tuple[tuple[tuple[str, ...], str], ...] = ()  # fields of the request that have no effect, and why
    notes: tuple[Note, ...] = ()  # values that nothing has, and ranges without an item
    probabilities: list[float] | None = None  # of each item, where they were asked for and the model tells them
    probability_of: str = ""  # what they are of: see `ctxrec.memory.calibration`


def answer_json(answer: Answer, *where: str | int, part: str = "body") -> dict:
    """The answer as the API gives it; `where` the request lies in the body, or in another part of the call."""
    items = [{"item_id": i, "score": s} for i, s in zip(answer.item_ids, answer.scores, strict=True)]
    if answer.why is not None:
        items = [{**item, "why": dataclasses.asdict(why)} for item, why in zip(items, answer.why, strict=True)]
    if answer.probabilities is not None:
        items = [{**item, "probability": p} for item, p in zip(items, answer.probabilities, strict=True)]
    made = {"items": items, "model_version": answer.model_version, "fallback": answer.fallback}
    if answer.probabilities is not None:
        made["probability_of"] = answer.probability_of
    if answer.experiment is not None:
        made["experiment"] = dict(zip(("name", "arm"), answer.experiment, strict=True))
    silent: list[tuple[tuple[str | int, ...], str, str]]
    silent = [(place, f"it has no effect: {reason}", "words_not_read") for place, reason in answer.unheard]
    silent += [(note.place, note.text, note.kind) for note in answer.notes]
    if silent:
        made["warnings"] = [{"loc": [part, *where, *loc], "msg": msg, "type": kind} for loc, msg, kind in silent]
    return made if answer.degraded is None else {**made, "degraded": answer.degraded}


@dataclass
class Reply:
    """Answers of one call, and how long the stages of its batch took."""

    answers: list[Answer | Exception]  # an error is that request's own; a UserError is its sender's mistake
    seconds: dict[str, float] = field(default_factory=dict)


class Engine:
    """Answers batches of calls with one pass through store, model and index.

    Args:
        retriever: model, catalogue and index, as one.
        store: events and attributes of users since the bundle was made; None: only what the bundle has counts.
    """

    def __init__(self, retriever: Retriever[Recommender], store: HistoryStore | None = None):
        self._retriever = retriever
        self._reader = StoreReader(retriever.recommender, store)
        self.live = LiveFeed(LiveStatistics(retriever.recommender), store)

    @property
    def model_version(self) -> str:
        return self._retriever.recommender.model_version

    @property
    def retriever(self) -> Retriever[Recommender]:
        return self._retriever

    def check_contexts(self, contexts: Sequence[dict]) -> None:
        """Raise a `UserError` that names what this model cannot read in contexts of events."""
        self._retriever.recommender.contexts.check(contexts)

    def recommend(self, calls: Sequence[Sequence[RecommendRequest]]) -> list[Reply]:
        """One reply for each call; a request that fails gets its own error and harms no other."""
        watch = Stopwatch()
        self.live.take()
        answers = self._answers([body for call in calls for body in call], watch)
        replies, start = [], 0
        for call in calls:
            replies.append(Reply(answers[start : start + len(call)], watch.seconds))
            start += len(call)
        return replies

    def _answers(self, bodies: Sequence[RecommendRequest], watch: Stopwatch) -> list[Answer | Exception]:
        if not bodies:
            return []
        try:
            with self._retriever.catalogue.reading():  # positions and masks must fit the catalogue that is searched
                return list(self._answer_all(bodies, watch))
        except Exception as failure:
            if len(bodies) == 1:
                if not isinstance(failure, UserError):
                    logger.exception("one request failed")
                return [self._mistake(bodies[0]) or failure]
        # The others are computed together again: one by one, a wrong request would cost as much as all of them.
        wrong = {n: error for n, body in enumerate(bodies) if (error := self._mistake(body)) is not None}
        if not wrong:
            half = len(bodies) // 2
            return self._answers(bodies[:half], watch) + self._answers(bodies[half:], watch)
        others = iter(self._answers([body for n, body in enumerate(bodies) if n not in wrong], watch))
        return [wrong[n] if n in wrong else next(others) for n in range(len(bodies))]

    def check_work(self, bodies: Sequence[RecommendRequest]) -> None:
        """Refuse a call whose answer would keep others waiting for long, before anything is computed.

        Raises:
            UserError: it asks for too many items; names the limit.
        """
        strengths = self._retriever.slate_builder.strengths([body.diversity for body in bodies], len(bodies))
        tokens = sum(self.num_reranked(body) for body in bodies) * self._tokens_of_pair
        lengths = [len(text) for body in bodies for text in _texts(body, self._text_features).values()]
        lengths += [len(str(body.user.get(name) or "")) for body in bodies for name in self._user_texts if body.user]
        hundreds = sum(-(-min(length, MAX_QUERY) // 100) for length in lengths)
        work = (
            _TOKEN_WORK * tokens
            + _TEXT_WORK * hundreds
            + sum(
                body.k * (_DIVERSE_WORK if strength > 0 else 1)
                for body, strength in zip(bodies, strengths, strict=True)
            )
        )
        if len(bodies) > 1 and work > MAX_WORK:
            raise UserError(
                f"the call asks for too much at once: the sum of k is {work}, where k of a request with diversity "
                f"counts {_DIVERSE_WORK} times, 100 characters of text {_TEXT_WORK}, and a candidate of the second stage "
                f"{_TOKEN_WORK * self._tokens_of_pair}; expected at most {MAX_WORK}. Send several calls"
            )

    def num_reranked(self, body: RecommendRequest) -> int:
        """How many candidates of a request the second stage reads."""
        second = self._retriever.reranker
        return 0 if second is None or not self._retriever.is_reranked(body.rerank) else second.candidates

    @property
    def _tokens_of_pair(self) -> int:
        """Tokens that the second stage reads of a request and one candidate, at most."""
        second = self._retriever.reranker
        return 0 if second is None else second.reader.max_tokens

    def _mistake(self, body: RecommendRequest) -> Exception | None:
        """What the model refuses in a request, and in which field, found without computing anything."""
        contexts: dict[tuple[str | int, ...], dict] = {("context",): body.context.features()}
        contexts |= {("history", n, "context"): e.context for n, e in enumerate(body.history or ()) if e.context}
        try:
            for place, context in contexts.items():
                try:
                    if place == ("context",):
                        self._retriever.recommender.contexts.check_requests([context])
                    else:
                        self.check_contexts([context])
                except UserError as error:
                    return error.at(*place)
            try:
                self._retriever.recommender.attributes.check(body.user)
            except UserError as error:
                return error.at("user")
            self._retriever.compile_filter(column_rules(body.filter))
        except Exception as error:
            return error
        return None

    def _answer_all(self, bodies: Sequence[RecommendRequest], watch: Stopwatch) -> list[Answer]:
        retriever = self._retriever
        rules = [column_rules(body.filter) for body in bodies]
        allowed = [retriever.compile_filter(r, allow=body.allow) for r, body in zip(rules, bodies, strict=True)]
        watch.lap("filter")
        raw, degraded = self._raw_requests(bodies)
        requests, fallback = retriever.recommender.make_requests(raw, including_now=True)
        watch.lap("history")
        exclude = [retriever.positions(body.exclude) for body in bodies]
        watch.lap("filter")
        scored = retriever.scored(requests, watch)
        found = retriever.top_k(
            requests,
            [body.k for body in bodies],
            exclude=exclude,
            allowed=allowed,
            diversity=[body.diversity for body in bodies],
            rerank=[body.rerank for body in bodies],
            scored=scored,
            watch=watch,
        )
        unheard = self._unheard(bodies)
        answers = [
            Answer(
                retriever.item_ids(positions),
                scores.tolist(),
                self.model_version,
                bool(is_fallback),
                missing,
                unheard=tuple(missed.items()),
                notes=request_notes(retriever, body, asked),
            )
            for body, asked, (positions, scores), is_fallback, missed, missing in zip(
                bodies, rules, found, fallback, unheard, degraded, strict=True
            )
        ]
        for n, (body, answer) in enumerate(zip(bodies, answers, strict=True)):
            if (num := len(answer.item_ids)) < body.k and not is_expected(num, answer.notes, body.allow):
                one, unwanted = requests.take(np.array([n])), exclude[n]
                short = why_short(retriever, one, num, body.k, rules=rules[n], allow=body.allow, exclude=unwanted)
                answers[n] = dataclasses.replace(answer, notes=(*answer.notes, short))
        watch.lap("search")
        if any(body.probability for body in bodies):
            answers = self._with_probabilities(answers, bodies, requests, [items for items, _ in found], scored)
            watch.lap("probability")
        for n, body in enumerate(bodies):
            if body.explain:
                why = explain(retriever.recommender, requests.take(np.array([n])), found[n][0])
                answers[n] = dataclasses.replace(answers[n], why=why)
                watch.lap("explain")
        return answers

    def _with_probabilities(
        self,
        answers: list[Answer],
        bodies: Sequence[RecommendRequest],
        requests: Requests,
        lists: list[np.ndarray],
        scored: Scored,
    ) -> list[Answer]:
        """The answers with the probabilities of their items, where these are asked for and the model tells them."""
        model = self._retriever.recommender
        told = list_probabilities(model, requests, lists, [body.probability for body in bodies], scored=scored)
        of = "" if model.calibration is None else model.calibration.of
        return [
            answer if p is None else dataclasses.replace(answer, probabilities=p.tolist(), probability_of=of)
            for answer, p in zip(answers, told, strict=True)
        ]

    def _unheard(self, bodies: Sequence[RecommendRequest]) -> list[dict[tuple[str, ...], str]]:
        """The texts of each request that the model cannot read, and why not."""
        model, texts = self._retriever.recommender, [_texts(body, self._text_features) for body in bodies]
        reasons = {}
        for source in {_source(place) for found in texts for place in found}:
            reasons[source] = why_unheard(model, source)
        return [{place: reason for place in found if (reason := reasons[_source(place)])} for found in texts]

    @cached_property
    def _text_features(self) -> list[str]:
        return self._retriever.recommender.features.context_texts

    @cached_property
    def _user_texts(self) -> list[str]:
        return self._retriever.recommender.features.user_texts

    def _raw_requests(self, bodies: Sequence[RecommendRequest]) -> tuple[list[RawRequest], list[str | None]]:
        """The bodies with what the store holds of their users, and the name of what is missing in each when the store does
        not answer."""
        now = time.time()
        asked = [now if body.context.timestamp is None else body.context.timestamp for body in bodies]
        recent, degraded = self._reader.recent(bodies, asked)
        about, unknown = self._reader.attributes(bodies)
        return [
            RawRequest(
                user_id=body.user_id,
                timestamp=at,
                context=body.context.features(),
                history=None if body.history is None else [_raw_event(event) for event in body.history],
                recent=events,
                user=attributes,
                dislike=body.dislike,
                query=body.query,
            )
            for body, at, events, attributes in zip(bodies, asked, recent, about, strict=True)
        ], [first or second for first, second in zip(degraded, unknown, strict=True)]

    def history(self, user_id: str, before: float | None) -> tuple[Events, str | None]:
        """Events of a user before a time (epoch seconds; None: up to now), and the name of what did not answer, if anything.

        A request reads the events at its very time too, so this one is made a microsecond earlier.
        """
        latest = None if before is None else max(before - 1e-6, EARLIEST_S)
        body = RecommendRequest(user_id=user_id, context=Context(timestamp=latest))
        raw, (degraded,) = self._raw_requests([body])
        return self._retriever.recommender.make_requests(raw, including_now=True)[0].history, degraded

    def similar(self, item_id: str, k: int) -> Answer | None:
        """The items most like one; None when the catalogue does not have it."""
        if not self._retriever.has_item(item_id):
            return None
        position = self._retriever.recommender.item_position[item_id]
        positions, scores = self._retriever.similar(position, k)
        return Answer(self._retriever.item_ids(positions), scores.tolist(), self.model_version)

    def warm_up(self, batch_size: int) -> None:
        """Run the whole path once alone and once with a full batch, so that no user waits for first-time work."""
        some_item = self._retriever.recommender.item_ids[0]
        plain = RecommendRequest.model_validate({"history": [{"item_id": some_item}], "rerank": False})
        reranked = plain.model_copy(update={"rerank": True})
        for bodies in ([plain], [plain] * batch_size, [reranked]):
            for answer in self.recommend([bodies])[0].answers:
                if isinstance(answer, Exception):
                    raise answer


def _texts(body: RecommendRequest, features: Sequence[str]) -> dict[tuple[str, ...], str]:
    """The words of a request by their fields."""
    context = body.context.features() if features else {}
    given = {("query",): body.query} | {("context", name): context.get(name) for name in features}
    return {place: text for place, text in given.items() if isinstance(text, str) and text.strip()}


def _source(place: tuple[str, ...]) -> str:
    """The source of the blend that reads a field."""
    return QUERY if place == ("query",) else CONTEXT_TEXT


def _raw_event(event: HistoryEvent) -> RawEvent:
    return RawEvent(event.item_id, event.action, event.timestamp, event.context, event.value)


def served_config(bundle: str, overrides: Sequence[str]) -> Config:
    """Options of a bundle with `index.*`, `diversity.*` and `rerank.use` of the service over them.

    Raises:
        UserError: an option is unknown or not one that can be set here.
    """
    for override in overrides:
        if not override.startswith(("index.", "diversity.", "rerank.use=")) or override.startswith("diversity.rules"):
            expected = "index.key=value, diversity.key=value (rules=FILE) or rerank.use=true"
            raise UserError(f"options has {override!r}; expected {expected}")
    return load_config(None, overrides, base=BundlePaths(bundle).config)


def load_engine(
    run: str, batch_size: int, store: HistoryStore | None = None, *, overrides: Sequence[str] = ()
) -> Engine:
    """The engine of a run or bundle, warmed up for batches of `batch_size`; `overrides` as in `served_config`."""
    bundle = find_bundle(run)
    config = served_config(bundle, overrides)
    use = config.rerank.use
    engine = Engine(
        load_retriever(bundle, config.index, rerank=use, on_request=True, diversity=config.diversity), store
    )
    engine.live.pull()
    engine.warm_up(batch_size)
    return engine


def use_threads(num_threads: int) -> None:
    """Limit torch and FAISS to `num_threads` in the thread that calls this (both keep the limit per thread)."""
    torch.set_num_threads(num_threads)
    faiss.omp_set_num_threads(num_threads)
