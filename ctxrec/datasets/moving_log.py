"""What the simulated logs that move have in common: their users, and visits that are drawn at their own times.

A visit takes one to six items without repetition, drawn at the time of its start from a softmax over the items that the
user has not taken before. All users visit once in each round, and hours are as busy as in the other simulated logs.

Legend: N users, I items, C topics or categories, X values of an attribute.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import safetensors.numpy

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.data.requests import Requests
from ctxrec.datasets.simulation import AGE_GROUPS, JOBS, NEVER, item_id, user_id
from ctxrec.datasets.visits import HOURS, START_S

VISIT_MAX, VISIT_MEAN, VISIT_STEP_S = 6, 2.5, 45
TASTE, FROM_ATTRIBUTES = 1.2, 0.5  # standard deviation, and the share of its variance that follows from attributes
_VISITS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class MovingPlan:
    """What to simulate: numbers of users, items and events, and the seed."""

    users: int = 3_000
    items: int = 2_400
    events: int = 90_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("users", "items", "events"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected at least 1")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; expected 0 or more")


@dataclass(frozen=True)
class MovingTruth:
    """The true parameters of such a log, arrays by name: how much users want the items at a moment."""

    def logits(self, users: np.ndarray, times_us: np.ndarray) -> np.ndarray:
        """Unnormalised log probabilities of users (int64 [N] numbers) at times (int64 [N]): float32 [N, I]; `NEVER` for
        an item that is not out."""
        raise NotImplementedError

    def scores(self, requests: Requests) -> np.ndarray:
        """The best possible scores of requests (`Ranker` of `ctxrec.evaluation.rank_requests`): float32 [N, I]."""
        users = np.array([int(name[1:]) for name in requests.users.ids], np.int64)
        return self.logits(users, requests.times)

    def save(self, path: str) -> None:
        """Write the parameters as safetensors to a path or URI."""
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(self).items()}
        storage.write_bytes(path, safetensors.numpy.save(arrays))

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Self:
        """The parameters from what `save` wrote."""
        return cls(**arrays)

    @classmethod
    def is_in(cls, arrays: dict[str, np.ndarray]) -> bool:
        """Whether a file of true parameters is that of such a log."""
        return {field.name for field in dataclasses.fields(cls)} == set(arrays)


def draw_users(users: int, topics: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Attributes of users, int64 [N, 2] (age group, job), and their tastes, float64 [N, C]."""
    attributes = np.stack([rng.integers(len(values), size=users) for values in (AGE_GROUPS, JOBS)], axis=1)
    of_attribute = TASTE * math.sqrt(FROM_ATTRIBUTES / 2)
    taste = rng.normal(0, TASTE * math.sqrt(1 - FROM_ATTRIBUTES), (users, topics))
    for column, values in enumerate((AGE_GROUPS, JOBS)):
        taste += rng.normal(0, of_attribute, (len(values), topics))[attributes[:, column]]
    return attributes, taste


def users_table(attributes: np.ndarray) -> pa.Table:
    """Attributes that a part of the taste follows from, as a table."""
    return pa.table(
        {
            "user_id": [user_id(n) for n in range(len(attributes))],
            "age_group": pa.array(AGE_GROUPS).take(pa.array(attributes[:, 0])),
            "job": pa.array(JOBS).take(pa.array(attributes[:, 1])),
        }
    )


def draw_events(plan: MovingPlan, truth: MovingTruth, span_s: int, visiting: np.random.Generator) -> Iterator[pa.Table]:
    """Tables of events; visits are in the order of their starts.

    Args:
        plan: how many there are.
        truth: what users want.
        span_s: seconds that the log lasts, whole days.
        visiting: draws sizes of visits, users and items.
    """
    rng = visiting
    sizes = np.minimum(rng.geometric(1 / VISIT_MEAN, plan.events), VISIT_MAX)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), plan.events)) + 1]
    sizes[-1] -= int(sizes.sum()) - plan.events
    starts_us = _starts_us(len(sizes), span_s)
    taken_NI = np.zeros((plan.users, plan.items), bool)
    for first in range(0, len(sizes), plan.users):  # a round: everybody visits once
        users = rng.permutation(plan.users)
        for start in range(first, min(first + plan.users, len(sizes)), _VISITS_AT_ONCE):
            stop = min(start + _VISITS_AT_ONCE, first + plan.users, len(sizes))
            who = users[start - first : stop - first]
            yield _draw(truth, who, starts_us[start:stop], sizes[start:stop], taken_NI, rng)


def _draw(
    truth: MovingTruth,
    users: np.ndarray,
    starts_us: np.ndarray,
    sizes: np.ndarray,
    taken_NI: np.ndarray,
    rng: np.random.Generator,
) -> pa.Table:
    """The events of one visit of each user; `taken_NI` takes what they took. Adding Gumbel noise to the logits and
    taking the best n draws n items one after another without repetition."""
    logits_NI = truth.logits(users, starts_us)
    logits_NI[taken_NI[users]] = NEVER
    order_NI = np.argsort(-(logits_NI + rng.gumbel(size=logits_NI.shape)), axis=1)[:, :VISIT_MAX]
    open_N = (logits_NI > NEVER / 2).sum(1)
    taken = np.arange(VISIT_MAX) < np.minimum(sizes, open_N)[:, None]
    visit, place = np.nonzero(taken)
    items = order_NI[visit, place]
    taken_NI[users[visit], items] = True
    return pa.table(
        {
            "user_id": [user_id(n) for n in users[visit].tolist()],
            "item_id": [item_id(n) for n in items.tolist()],
            "timestamp": starts_us[visit] // US + place * VISIT_STEP_S,
        }
    )


def _starts_us(num_visits: int, span_s: int) -> np.ndarray:
    """When visits start, in microseconds: int64 [visits] that never decrease; days are equally busy."""
    days = (np.arange(num_visits) + 0.5) / num_visits * (span_s / 86_400)
    edges = np.concatenate([[0.0], np.cumsum(HOURS / HOURS.sum())])
    seconds = np.interp(days % 1.0, edges, np.arange(25) * 3600.0)
    return (START_S + np.floor(days).astype(np.int64) * 86_400 + seconds.astype(np.int64)) * US
