"""A simulated shop with campaigns: the demand for a few items jumps when a campaign starts, and decays when it ends.

The probability that user u buys item i at time t is a softmax over the items that u has not bought:

    logit(i | u, t) = taste_u[category_i] + log appeal_i + campaigns_i(t)

A campaign runs for some hours to two days and has `CAMPAIGN_ITEMS` items. While it runs, it adds the logarithm of its
factor to their logits; after its end, that addition halves every `AFTER_HALVES_S`. Which items come next, and when, does not
follow from the past. The catalogue stands still, and tastes and appeals too: only campaigns move. Half of the variance of
`taste` follows from the user's attributes, and `moving_log.py` draws the visits.

Legend: N users or requests, I items, C categories, P campaigns, J items of a campaign.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.datasets.moving_log import MovingPlan, MovingTruth, draw_events, draw_users, users_table
from ctxrec.datasets.simulation import item_id
from ctxrec.datasets.visits import START_S
from ctxrec.datasets.vocabulary import ADJECTIVES, BRANDS, CATEGORIES

SPAN_S = 21 * 86_400  # the log lasts three weeks
APPEAL = 1.0  # standard deviation
CAMPAIGN_ITEMS, CAMPAIGNS_A_DAY = 3, 4.0
LEAST_S, MOST_S = 6 * 3600.0, 48 * 3600.0  # that a campaign runs
LEAST_FACTOR, MOST_FACTOR = 10.0, 60.0  # of the demand for an item of a campaign
AFTER_HALVES_S = 4 * 3600.0


@dataclass(frozen=True, kw_only=True)
class ShopPlan(MovingPlan):
    """What to simulate: numbers of users, items and events, and the seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.items < 24:
            raise UserError(f"--items is {self.items}; expected at least 24 items of a shop")


@dataclass(frozen=True)
class ShopTruth(MovingTruth):
    """The true parameters. Item n has the id item_id(n); campaigns are in the order of their starts."""

    item_category: np.ndarray  # int64 [I]
    item_appeal: np.ndarray  # float64 [I], logarithms
    taste_NC: np.ndarray  # float64
    campaign_start_us: np.ndarray  # int64 [P]
    campaign_stop_us: np.ndarray  # int64 [P]
    campaign_lift: np.ndarray  # float64 [P], logarithms of factors
    campaign_items_PJ: np.ndarray  # int64

    def logits(self, users: np.ndarray, times_us: np.ndarray) -> np.ndarray:
        """Unnormalised log probabilities of users (int64 [N] numbers) at times (int64 [N]): float32 [N, I]."""
        found = self.taste_NC[users][:, self.item_category] + self.item_appeal + self.campaigns(times_us)
        return found.astype(np.float32)

    def campaigns(self, times_us: np.ndarray) -> np.ndarray:
        """What campaigns add to each item at times (int64 [N]): float64 [N, I]."""
        after_s_NP = np.maximum(times_us[:, None] - self.campaign_stop_us, 0) / US
        started_NP = times_us[:, None] >= self.campaign_start_us
        lift_NP = np.where(started_NP, self.campaign_lift * 0.5 ** (after_s_NP / AFTER_HALVES_S), 0.0)
        of_item_PI = np.zeros((len(self.campaign_lift), len(self.item_category)))
        np.put_along_axis(of_item_PI, self.campaign_items_PJ, 1.0, axis=1)
        return lift_NP @ of_item_PI


@dataclass(frozen=True)
class ShopLog:
    """A log that is drawn round by round as it is read."""

    plan: ShopPlan
    truth: ShopTruth
    attributes: np.ndarray  # int64 [N, 2]: age group, job

    @staticmethod
    def make(plan: ShopPlan) -> ShopLog:
        """Draw the true parameters."""
        rng = np.random.default_rng([plan.seed, 20])
        attributes, taste = draw_users(plan.users, len(CATEGORIES), rng)
        num = int(CAMPAIGNS_A_DAY * SPAN_S / 86_400)
        start_s = np.sort(rng.integers(START_S, START_S + SPAN_S, num))
        length_s = np.exp(rng.uniform(np.log(LEAST_S), np.log(MOST_S), num)).astype(np.int64)
        truth = ShopTruth(
            item_category=rng.integers(len(CATEGORIES), size=plan.items),
            item_appeal=rng.normal(0, APPEAL, plan.items),
            taste_NC=taste,
            campaign_start_us=start_s * US,
            campaign_stop_us=(start_s + length_s) * US,
            campaign_lift=rng.uniform(np.log(LEAST_FACTOR), np.log(MOST_FACTOR), num),
            campaign_items_PJ=np.stack([rng.choice(plan.items, CAMPAIGN_ITEMS, replace=False) for _ in range(num)]),
        )
        return ShopLog(plan, truth, attributes)

    def chunks(self) -> Iterator[pa.Table]:
        """Tables of events; visits are in the order of their starts."""
        return draw_events(self.plan, self.truth, SPAN_S, np.random.default_rng([self.plan.seed, 21]))

    def items_table(self) -> pa.Table:
        """Titles whose words carry the category; nothing of an item tells of its campaigns."""
        rng = np.random.default_rng([self.plan.seed, 22])
        names, titles = list(CATEGORIES), []
        for category in self.truth.item_category.tolist():
            things = CATEGORIES[names[category]]
            brand, adjective = BRANDS[rng.integers(len(BRANDS))], ADJECTIVES[rng.integers(len(ADJECTIVES))]
            titles.append(f"{brand} {adjective} {things[rng.integers(len(things))]}")
        return pa.table(
            {
                "item_id": [item_id(n) for n in range(self.plan.items)],
                "title": titles,
                "category": pa.array(names).take(pa.array(self.truth.item_category)),
            }
        )

    def users_table(self) -> pa.Table:
        """Attributes that half of the taste follows from."""
        return users_table(self.attributes)
