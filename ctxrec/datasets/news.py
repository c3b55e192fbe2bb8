"""A simulated news service: articles are born every hour, attention decays in hours, and topics break.

The probability that user u reads article i at time t is a softmax over the articles that are out and that u has not read:

    logit(i | u, t) = taste_u[topic_i] + log appeal_i - ln 2 · (t - born_i) / halving_i + breaking[topic_i](t)

Half of the variance of `taste` follows from the user's attributes. `breaking` is a sum over the news that broke in the
topic: each adds `BREAKING` at its start, and halves every `BREAKING_HALVES_S`. `moving_log.py` draws the visits. Nothing is true of the next day that is not true of this one, but nearly all of its articles are new.

Legend: N users or requests, I articles, C topics, X values of an attribute, P pieces of breaking news.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.datasets.moving_log import MovingPlan, MovingTruth, draw_events, draw_users, users_table
from ctxrec.datasets.news_words import NEWS_PLACES, NEWS_TOPICS, NEWS_VERBS
from ctxrec.datasets.simulation import NEVER, item_id
from ctxrec.datasets.visits import START_S

SPAN_S, EARLIER_S = 10 * 86_400, 86_400  # the log lasts ten days, and begins with the articles of one day
APPEAL = 1.0  # standard deviation
HALVES_S, HALVES_SPREAD = (
    4 * 3600.0,
    0.5,
)  # median of the articles' halving times, and its spread as a factor's logarithm
BREAKING, BREAKING_HALVES_S, BREAKING_A_DAY = 2.5, 3 * 3600.0, 3.0


@dataclass(frozen=True, kw_only=True)
class NewsPlan(MovingPlan):
    """What to simulate: numbers of users, articles and events, and the seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.items < 24:
            raise UserError(f"--items is {self.items}; expected at least 24 articles of a news service")


@dataclass(frozen=True)
class NewsTruth(MovingTruth):
    """The true parameters. Article n has the id item_id(n), and articles are numbered in the order of their births."""

    item_topic: np.ndarray  # int64 [I]
    item_born_us: np.ndarray  # int64 [I]
    item_appeal: np.ndarray  # float64 [I], logarithms
    item_halves_s: np.ndarray  # float64 [I]
    taste_NC: np.ndarray  # float64
    broke_us: np.ndarray  # int64 [P]
    broke_topic: np.ndarray  # int64 [P]

    def logits(self, users: np.ndarray, times_us: np.ndarray) -> np.ndarray:
        """Unnormalised log probabilities of users (int64 [N] numbers) at times (int64 [N]): float32 [N, I]; `NEVER` for
        an article that is not out."""
        age_NI = (times_us[:, None] - self.item_born_us) / US
        topics = self.taste_NC[users] + self.breaking(times_us)
        found = topics[:, self.item_topic] + self.item_appeal - math.log(2) * age_NI / self.item_halves_s
        return np.where(age_NI >= 0, found, NEVER).astype(np.float32)

    def breaking(self, times_us: np.ndarray) -> np.ndarray:
        """What breaking news adds to each topic: float64 [N, C]."""
        age_NP = (times_us[:, None] - self.broke_us) / US
        boost_NP = np.where(age_NP >= 0, BREAKING * 0.5 ** (np.maximum(age_NP, 0) / BREAKING_HALVES_S), 0.0)
        return boost_NP @ np.eye(self.taste_NC.shape[1])[self.broke_topic]

    @property
    def item_ids(self) -> list[str]:
        """Ids of the articles in the order of their numbers."""
        return [item_id(n) for n in range(len(self.item_topic))]


@dataclass(frozen=True)
class NewsLog:
    """A log that is drawn round by round as it is read."""

    plan: NewsPlan
    truth: NewsTruth
    attributes: np.ndarray  # int64 [N, 2]: age group, job
    about: str = "a news service whose articles are born hourly"

    @staticmethod
    def make(plan: NewsPlan) -> NewsLog:
        """Draw the true parameters."""
        rng = np.random.default_rng([plan.seed, 10])
        num_topics = len(NEWS_TOPICS)
        attributes, taste = draw_users(plan.users, num_topics, rng)
        born_s = START_S - EARLIER_S + np.arange(plan.items) / plan.items * (SPAN_S + EARLIER_S)
        num_broke = max(int(BREAKING_A_DAY * SPAN_S / 86_400), 1)
        truth = NewsTruth(
            item_topic=rng.integers(num_topics, size=plan.items),
            item_born_us=(born_s // 3600 * 3600).astype(np.int64) * US,
            item_appeal=rng.normal(0, APPEAL, plan.items),
            item_halves_s=HALVES_S * np.exp(rng.normal(0, HALVES_SPREAD, plan.items)),
            taste_NC=taste,
            broke_us=np.sort(rng.integers(START_S, START_S + SPAN_S, num_broke)) * US,
            broke_topic=rng.integers(num_topics, size=num_broke),
        )
        return NewsLog(plan, truth, attributes)

    def chunks(self) -> Iterator[pa.Table]:
        """Tables of events; visits are in the order of their starts."""
        return draw_events(self.plan, self.truth, SPAN_S, np.random.default_rng([self.plan.seed, 11]))

    def items_table(self) -> pa.Table:
        """Headlines whose words carry the topic, and the time of the birth."""
        rng = np.random.default_rng([self.plan.seed, 12])
        names, headlines = list(NEWS_TOPICS), []
        for topic in self.truth.item_topic.tolist():
            words = NEWS_TOPICS[names[topic]]
            first, second = rng.choice(len(words), 2, replace=False).tolist()
            place, verb = NEWS_PLACES[rng.integers(len(NEWS_PLACES))], NEWS_VERBS[rng.integers(len(NEWS_VERBS))]
            headlines.append(f"{place}: {words[first]} {verb} {words[second]}")
        return pa.table(
            {
                "item_id": self.truth.item_ids,
                "title": headlines,
                "topic": pa.array(names).take(pa.array(self.truth.item_topic)),
                "published": self.truth.item_born_us // US,
            }
        )

    def users_table(self) -> pa.Table:
        """Attributes that half of the taste follows from."""
        return users_table(self.attributes)
