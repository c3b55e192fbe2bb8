"""A simulated behaviour log whose true preferences are known, so that the best possible ranking is known too.

The probability that user u takes item i in context c at time t is a softmax over the items launched by t:

    logit(i | u, c, t) = taste_u[category_i] + liking_u[brand_i] + context_c[category_i] + log weight_i

Most of `taste` and `liking` follows from the user's attributes; the rest is individual. `context` adds the effects of
device, place and part of the day (UTC), scaled by the strength. The weights have a long tail. An item enters the logit
through its category and its brand only. A draw therefore picks a (category, brand) cell and then an item of the cell;
this is exact, and its cost does not depend on the number of items.

Users come in rounds. In each round every user who has joined makes one visit of one to eight events in one context.
Half of the users are there from the start, and the others join over time. All draws are independent given user, context
and time: a history tells the user's taste and nothing else, and the context is known from the request alone. With up to
about 25 events for each user, the test part of a temporal split (10 %) has hardly more than one visit of each user. The
context of the first event, which the request has, is then the context of all its targets. Cold items are launched just
after the cut of that split.

A share of the visits may begin with a search, which the context has as a text. It names a thing of the category that is
looked for. That category is drawn as the category of an item is, and each event of the visit then adds `SEARCH` to its
logit. The thing need not be in the title of the item that is taken, so what the text means decides.

Legend: N users or requests, I items, E events of a chunk, V visits, C categories, B brands,
X context values of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.numpy

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.datasets.visits import TEST_SHARE, VISIT_MEAN, VISIT_STEP_S, Visits, draw_joining, visit_starts, visitors
from ctxrec.datasets.vocabulary import ADJECTIVES, BRANDS, CATEGORIES, SEARCHES

TRUTH = "truth.safetensors"

DEVICES = {"phone": 0.5, "desktop": 0.3, "tablet": 0.15, "tv": 0.05}  # shares of visits
PLACES = {"home": 0.45, "work": 0.2, "commute": 0.15, "outdoors": 0.12, "travel": 0.08}
DAYPARTS = 6  # of four hours each, from midnight UTC
AGE_GROUPS = ("18-24", "25-34", "35-49", "50-64", "65+")
JOBS = ("student", "teacher", "engineer", "nurse", "artist", "manager", "retired", "other")

TASTE, LIKING, CONTEXT = 1.0, 0.7, 2.0  # standard deviations of the parts of the logit
FROM_ATTRIBUTES = 0.75  # share of the variance of taste and liking
SEARCH = 3.0  # what a search adds to the logit of its category
POPULARITY = 0.8  # exponent of the items' weights by rank
EVENTS_AT_ONCE = 65_536
NEVER = np.float32(-1e30)  # log probability of an item that is not launched


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What to simulate.

    context: strength of the context's effect, from 0 (none) to 1 (twice as strong as the taste).
    cold: share of items that are launched after the temporal cut.
    searches: share of visits that begin with a search.
    descriptions: items have long texts, which alone tell what users like (`ctxrec.datasets.described`). There is then no
        context, and the items that come late are part of the design.
    """

    users: int = 4_000
    items: int = 1_000
    events: int = 100_000
    context: float = 1.0
    cold: float = 0.0
    searches: float = 0.0
    descriptions: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("users", "items", "events"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected at least 1")
        for name in ("context", "cold", "searches"):
            if not 0 <= getattr(self, name) <= 1 or (name == "cold" and self.cold == 1):
                raise UserError(f"--{name} is {getattr(self, name)}; expected from 0 to 1 (cold: below 1)")
        for name in ("cold", "searches"):
            if self.descriptions and getattr(self, name):
                raise UserError(f"--{name} is {getattr(self, name)}; expected 0 with --descriptions")
        if self.descriptions and self.context != 1:
            raise UserError(f"--context is {self.context}; expected none with --descriptions, which has no context")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; expected 0 or more")


@dataclass(frozen=True)
class Truth:
    """The true parameters. Item n has the id item_id(n), user n user_id(n)."""

    item_category: np.ndarray  # int64 [I]
    item_brand: np.ndarray  # int64 [I]
    item_weight: np.ndarray  # float64 [I]
    item_cold: np.ndarray  # bool [I]
    taste_NC: np.ndarray  # float32
    liking_NB: np.ndarray  # float32
    device_XC: np.ndarray  # float32, the strength is in it
    place_XC: np.ndarray
    daypart_XC: np.ndarray
    launch_us: int  # cold items can be taken from then on
    searches: float = 0.0  # share of visits that begin with a search

    def launched(self, *, late: bool) -> np.ndarray:
        """float64 [I] weights of the items before (after) the launch; 0 = not there."""
        return self.item_weight if late else np.where(self.item_cold, 0.0, self.item_weight)

    def cell_mass(self, *, late: bool) -> np.ndarray:
        """float64 [C, B] sums of the weights of the items in each cell."""
        cells = self.item_category * len(BRANDS) + self.item_brand
        mass = np.bincount(cells, self.launched(late=late), minlength=len(CATEGORIES) * len(BRANDS))
        return mass.reshape(len(CATEGORIES), len(BRANDS))

    def cell_logits(self, users: np.ndarray, context_EC: np.ndarray, mass_CB: np.ndarray) -> np.ndarray:
        """float32 [E, C, B] unnormalised log probabilities of the cells."""
        with np.errstate(divide="ignore"):
            mass = np.log(mass_CB).astype(np.float32)
        by_category = self.taste_NC[users] + context_EC
        return by_category[:, :, None] + self.liking_NB[users][:, None, :] + mass

    def context_effect(self, device: np.ndarray, place: np.ndarray, hour: np.ndarray) -> np.ndarray:
        """float32 [E, C]; -1 = unknown device or place, which has no effect."""
        device_XC, place_XC = (
            np.vstack([table, np.zeros_like(table[:1])]) for table in (self.device_XC, self.place_XC)
        )
        return device_XC[device] + place_XC[place] + self.daypart_XC[hour // (24 // DAYPARTS)]

    def search_effect(self, sought: np.ndarray) -> np.ndarray:
        """float32 [E, C] of searches for a category; -1 = no search."""
        return np.where(sought[:, None] == np.arange(len(CATEGORIES)), np.float32(SEARCH), np.float32(0))

    def save(self, path: str) -> None:
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(self).items() if np.ndim(value)}
        arrays["item_cold"] = arrays["item_cold"].astype(np.uint8)
        arrays["launch_us"] = np.array([self.launch_us], np.int64)
        arrays["searches"] = np.array([self.searches])
        storage.write_bytes(path, safetensors.numpy.save(arrays))

    @staticmethod
    def load(path: str) -> Truth:
        if not storage.exists(path):
            raise UserError(f"there is no {path}; expected a folder that ctxrec datasets simulate wrote")
        arrays = safetensors.numpy.load(storage.read_bytes(path))
        arrays["item_cold"] = arrays["item_cold"].astype(bool)
        launch_us, searches = int(arrays.pop("launch_us")[0]), float(arrays.pop("searches", [0.0])[0])
        return Truth(launch_us=launch_us, searches=searches, **arrays)


def item_id(n: int) -> str:
    """The id of the item with number `n`."""
    return f"i{n}"


def user_id(n: int) -> str:
    """The id of the user with number `n`."""
    return f"u{n}"


def draw_truth(plan: Simulation, launch_s: int, attributes: np.ndarray, rng: np.random.Generator) -> Truth:
    """True parameters of a catalogue and of users with the given attributes (int64 [N, 2]: age group, job)."""
    num_categories, num_brands = len(CATEGORIES), len(BRANDS)
    known, own = math.sqrt(FROM_ATTRIBUTES), math.sqrt(1 - FROM_ATTRIBUTES)

    def normal(*shape: int, std: float) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) * np.float32(std)).astype(np.float32)

    age_XC = normal(len(AGE_GROUPS), num_categories, std=TASTE * known * math.sqrt(0.5))
    job_XC = normal(len(JOBS), num_categories, std=TASTE * known * math.sqrt(0.5))
    age_XB = normal(len(AGE_GROUPS), num_brands, std=LIKING * known)
    context_std = plan.context * CONTEXT / math.sqrt(3)  # three features share it
    weights = np.arange(1, plan.items + 1, dtype=np.float64) ** -POPULARITY
    cold = np.zeros(plan.items, bool)
    cold[rng.permutation(plan.items)[: round(plan.items * plan.cold)]] = True
    return Truth(
        item_category=rng.integers(num_categories, size=plan.items),
        item_brand=rng.integers(num_brands, size=plan.items),
        item_weight=rng.permutation(weights),
        item_cold=cold,
        taste_NC=age_XC[attributes[:, 0]]
        + job_XC[attributes[:, 1]]
        + normal(plan.users, num_categories, std=TASTE * own),
        liking_NB=age_XB[attributes[:, 0]] + normal(plan.users, num_brands, std=LIKING * own),
        device_XC=normal(len(DEVICES), num_categories, std=context_std),
        place_XC=normal(len(PLACES), num_categories, std=context_std),
        daypart_XC=normal(DAYPARTS, num_categories, std=context_std),
        launch_us=launch_s * US,
        searches=plan.searches,
    )


class Sampler:
    """Draws items from the true probabilities before (late=False) or after the launch of the cold ones."""

    def __init__(self, truth: Truth, *, late: bool) -> None:
        self.truth = truth
        self.mass_CB = truth.cell_mass(late=late)
        cells = truth.item_category * len(BRANDS) + truth.item_brand
        self.items = np.argsort(cells, kind="stable")
        self.ends = np.cumsum(truth.launched(late=late)[self.items])
        self.cell_starts = np.concatenate([[0.0], np.cumsum(self.mass_CB.ravel())])[:-1]

    def draw(self, users: np.ndarray, context_EC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 [E] items, one for each user in its context."""
        logits = self.truth.cell_logits(users, context_EC, self.mass_CB).reshape(len(users), -1)
        logits -= logits.max(axis=1, keepdims=True)
        ends = np.cumsum(np.exp(logits, out=logits), axis=1, dtype=np.float64)
        cell = (ends <= (rng.random(len(users)) * ends[:, -1])[:, None]).sum(axis=1)
        place = self.cell_starts[cell] + rng.random(len(users)) * self.mass_CB.ravel()[cell]
        return self.items[np.minimum(np.searchsorted(self.ends, place, side="right"), len(self.items) - 1)]


@dataclass(frozen=True)
class SimulatedLog:
    """A log that is drawn chunk by chunk as it is read."""

    plan: Simulation
    truth: Truth
    visits: Visits
    attributes: np.ndarray  # int64 [N, 2]
    joined: np.ndarray  # float64 [N] share of all visits after which a user joins

    @staticmethod
    def make(plan: Simulation) -> SimulatedLog:
        rng = np.random.default_rng([plan.seed, 0])
        attributes = np.stack(
            [rng.integers(len(AGE_GROUPS), size=plan.users), rng.integers(len(JOBS), size=plan.users)], axis=1
        )
        joined = draw_joining(plan.users, rng)
        visits = Visits.draw(plan.events, rng)
        truth = draw_truth(plan, visits.start_after(1 - TEST_SHARE), attributes, rng)
        return SimulatedLog(plan, truth, visits, attributes, joined)

    def chunks(self) -> Iterator[pa.Table]:
        """Tables of about EVENTS_AT_ONCE events, visits in the order of their starts."""
        samplers = {late: Sampler(self.truth, late=late) for late in (False, True)}
        step = max(1, int(EVENTS_AT_ONCE / VISIT_MEAN))
        rng, searching = (np.random.default_rng([self.plan.seed, number]) for number in (1, 3))
        start = 0
        for users in visitors(self.joined, len(self.visits.sizes), step, rng):
            yield self._draw(start, users, samplers, rng, searching)
            start += len(users)

    def _draw(
        self,
        start: int,
        users: np.ndarray,
        samplers: dict[bool, Sampler],
        rng: np.random.Generator,
        searching: np.random.Generator,
    ) -> pa.Table:
        """The events of the visits of `users`, the first of which is visit number `start`."""
        num, stop = len(users), start + len(users)
        sizes = self.visits.sizes[start:stop].astype(np.int64)
        device = rng.choice(len(DEVICES), num, p=list(DEVICES.values()))
        place = rng.choice(len(PLACES), num, p=list(PLACES.values()))
        starts = visit_starts(np.arange(start, stop), len(self.visits.sizes))
        visit = np.repeat(np.arange(num), sizes)
        order = np.arange(len(visit)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        times = starts[visit] + order * VISIT_STEP_S
        context_EC = self.truth.context_effect(device[visit], place[visit], times // 3600 % 24)
        late = times * US >= self.truth.launch_us
        texts: dict[str, pa.Array] = {}
        if self.plan.searches:
            first = np.cumsum(sizes) - sizes
            some_item = _drawn(samplers, late[first], users, context_EC[first], searching)
            sought, found = self._searches(some_item, searching)
            context_EC = context_EC + self.truth.search_effect(sought)[visit]
            texts = {"search": found.take(pa.array(visit))}
        items = _drawn(samplers, late, users[visit], context_EC, rng)
        return pa.table(
            {
                "user_id": _numbered("u", users[visit]),
                "item_id": _numbered("i", items),
                "timestamp": pa.array(times),
                "device": pa.DictionaryArray.from_arrays(pa.array(device[visit], pa.int8()), list(DEVICES)),
                "place": pa.DictionaryArray.from_arrays(pa.array(place[visit], pa.int8()), list(PLACES)),
                **texts,
            }
        )

    def _searches(self, some_item: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, pa.Array]:
        """The category that each of V visits looks for (int64 [V], -1 = none) and the text of its search, for things of
        the categories of `some_item` (int64 [V])."""
        num, things = len(some_item), list(CATEGORIES.values())
        searches = rng.random(num) < self.plan.searches
        sought = np.where(searches, self.truth.item_category[some_item], -1)
        form, thing = rng.integers(len(SEARCHES), size=num), rng.random(num)
        texts = [
            SEARCHES[form[v]].format(things[sought[v]][int(thing[v] * len(things[sought[v]]))]) if searches[v] else None
            for v in range(num)
        ]
        return sought, pa.array(texts, pa.string())

    def items_table(self) -> pa.Table:
        """Titles whose words carry the item's category and brand."""
        rng = np.random.default_rng([self.plan.seed, 2])
        names = list(CATEGORIES)
        adjectives, nouns = rng.integers(len(ADJECTIVES), size=self.plan.items), rng.random((self.plan.items, 2))
        titles = []
        for n, category in enumerate(self.truth.item_category):
            words = CATEGORIES[names[category]]
            first, second = (words[int(share * len(words))] for share in nouns[n])
            both = first if first == second else f"{first} and {second}"
            titles.append(f"{BRANDS[self.truth.item_brand[n]]} {ADJECTIVES[adjectives[n]]} {both}")
        return pa.table(
            {
                "item_id": _numbered("i", np.arange(self.plan.items)),
                "title": titles,
                "category": pa.array(names).take(pa.array(self.truth.item_category)),
                "brand": pa.array(BRANDS).take(pa.array(self.truth.item_brand)),
            }
        )

    def users_table(self) -> pa.Table:
        return pa.table(
            {
                "user_id": _numbered("u", np.arange(self.plan.users)),
                "age_group": pa.array(AGE_GROUPS).take(pa.array(self.attributes[:, 0])),
                "job": pa.array(JOBS).take(pa.array(self.attributes[:, 1])),
            }
        )


def _drawn(
    samplers: dict[bool, Sampler],
    late: np.ndarray,
    users: np.ndarray,
    context_EC: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """int64 [E] items, one for each user in its context, before or after the launch (`late`, bool [E])."""
    items = np.empty(len(users), np.int64)
    for part in (False, True):
        rows = np.flatnonzero(late == part)
        if len(rows):
            items[rows] = samplers[part].draw(users[rows], context_EC[rows], rng)
    return items


def searches_by_text() -> dict[str, int]:
    """The category that each text of a search looks for."""
    things = [(thing, c) for c, names in enumerate(CATEGORIES.values()) for thing in names]
    return {form.format(thing): category for form in SEARCHES for thing, category in things}


def _numbered(letter: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(letter, pa.array(numbers).cast(pa.string()), "")
