"""Upper bounds for a simulated log: a ranking by the simulator's parameters, and one that learns taste from the log.

Legend: N requests or users, I items, E events, A attribute values, C categories, B brands, X context values of a feature.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ctxrec.core import schema, storage
from ctxrec.core.errors import UserError
from ctxrec.data.events import US, Context, Histories, histories_from_table
from ctxrec.data.prepared import FeatureMeta, PreparedData
from ctxrec.data.requests import Requests
from ctxrec.data.splits import held_out_items
from ctxrec.datasets.simulation import (
    DAYPARTS,
    DEVICES,
    FROM_ATTRIBUTES,
    LIKING,
    NEVER,
    PLACES,
    SEARCH,
    TASTE,
    TRUTH,
    Truth,
    item_id,
    searches_by_text,
)
from ctxrec.datasets.visits import HOURS
from ctxrec.datasets.vocabulary import BRANDS

_CANDIDATES = 1_000  # weights that an item of unknown weight may have
_ITERATIONS = 100  # of the search for the likeliest tastes
_EVENTS_AT_ONCE, _ITEMS_AT_ONCE = 1 << 18, 1 << 12


@dataclass(frozen=True)
class Oracle:
    """An upper bound that ranks by the true probabilities (`Ranker` of `ctxrec.evaluation.rank_requests`).

    Items are in the order of the item table, which is the order of the catalogue. Without context, the probabilities are
    averaged over the distribution of device, place and part of the day.
    """

    truth: Truth
    devices: np.ndarray  # int64: maps the code of a request's context to a device, -1 = unknown
    places: np.ndarray
    use_context: bool
    sought: dict[str, int] = dataclasses.field(default_factory=searches_by_text)  # categories by the texts of searches

    def scores(self, requests: Requests) -> np.ndarray:
        """float32 [N, I] log probabilities; NEVER for items launched later."""
        users = _numbers(requests.users.ids)
        scores = np.full((len(requests), len(self.truth.item_weight)), NEVER, np.float32)
        late = requests.times >= self.truth.launch_us
        for part in (False, True):
            rows = np.flatnonzero(late == part)
            if len(rows):
                cells_NCB = self._cells(users[rows], requests, rows, late=part)
                scores[rows] = self._items(cells_NCB, late=part)
        return scores

    def effect(self, context: Context, times: np.ndarray) -> np.ndarray:
        """Effect of contexts and of times (microseconds) on the logit of each category: float32 [N, C]."""
        device, place = self.devices[context.cat["device"]], self.places[context.cat["place"]]
        effect = self.truth.context_effect(device, place, times // US // 3600 % 24)
        if "search" not in context.text:
            return effect
        sought = np.array([self.sought.get(text, -1) for text in context.text["search"]], np.int64)
        return effect + self.truth.search_effect(sought)

    def _items(self, cells_NCB: np.ndarray, *, late: bool) -> np.ndarray:
        """Log probabilities of items, float32 [N, I]: an item has its share of the probability of its cell."""
        category, brand = self.truth.item_category, self.truth.item_brand
        weights = self.truth.launched(late=late)
        mass = np.maximum(self.truth.cell_mass(late=late)[category, brand], np.finfo(float).tiny)  # 0: nothing is there
        with np.errstate(divide="ignore"):
            share = np.log(weights / mass)
        scores = cells_NCB[:, category, brand] + share
        return np.where(weights > 0, scores, NEVER).astype(np.float32)

    def _cells(self, users: np.ndarray, requests: Requests, rows: np.ndarray, *, late: bool) -> np.ndarray:
        """float64 [N, C, B] log probabilities of the cells."""
        mass_CB = self.truth.cell_mass(late=late)
        if self.use_context:
            effect = self.effect(requests.context.take(rows), requests.times[rows])
            return _log_softmax(self.truth.cell_logits(users, effect, mass_CB))
        total = np.zeros((len(users), *mass_CB.shape))
        for share, effect_C in context_distribution(self.truth):
            effect = np.broadcast_to(effect_C, (len(users), len(effect_C)))
            total += share * self._searched(np.exp(_log_softmax(self.truth.cell_logits(users, effect, mass_CB))))
        with np.errstate(divide="ignore"):
            return np.log(total)

    def _searched(self, cells_NCB: np.ndarray) -> np.ndarray:
        """Probabilities of the cells, averaged over all searches: float64 [N, C, B].

        A search looks for category q with the probability P(q). It makes the cells of q e = exp(`SEARCH`) times as likely,
        and all are divided by Z_q = 1 + (e - 1) P(q).
        """
        share, odds = self.truth.searches, math.exp(SEARCH) - 1
        of_category = cells_NCB.sum(2, keepdims=True)
        found = of_category / (1 + odds * of_category)  # P(q) / Z_q
        return cells_NCB * (1 - share + share * (found.sum(1, keepdims=True) + odds * found))


def _numbers(user_ids: np.ndarray) -> np.ndarray:
    """The users' numbers, int64 (the inverse of `user_id`)."""
    return np.array([int(name[1:]) for name in user_ids], np.int64)


def _log_softmax(logits_NCB: np.ndarray) -> np.ndarray:
    logits = logits_NCB.astype(np.float64)
    top = logits.max(axis=(1, 2), keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=(1, 2), keepdims=True))


def context_distribution(truth: Truth) -> Iterator[tuple[float, np.ndarray]]:
    """Share and effect float32 [C] of each combination of device, place and part of the day."""
    dayparts = HOURS.reshape(DAYPARTS, -1).sum(axis=1) / HOURS.sum()
    for device, of_device in enumerate(DEVICES.values()):
        for place, of_place in enumerate(PLACES.values()):
            for daypart, of_daypart in enumerate(dayparts):
                effect = truth.device_XC[device] + truth.place_XC[place] + truth.daypart_XC[daypart]
                yield of_device * of_place * float(of_daypart), effect


def load_oracle(folder: str, features: FeatureMeta) -> dict[str, Oracle]:
    """The best possible rankers of a simulated log, with and without the request's context.

    Args:
        folder: what `simulate` wrote.
        features: of the data prepared from it, to read the context's codes.

    Raises:
        UserError: the folder does not hold a simulated log.
    """
    truth = Truth.load(storage.join(folder, TRUTH))

    def by_code(name: str, values: dict[str, float]) -> np.ndarray:
        known = list(values)
        names = features.context_categories[name]
        return np.array([-1] * schema.FIRST_CODE + [known.index(n) if n in known else -1 for n in names], np.int64)

    devices, places = by_code("device", DEVICES), by_code("place", PLACES)
    return {
        name: Oracle(truth=truth, devices=devices, places=places, use_context=use_context)
        for name, use_context in (("oracle", True), ("oracle_no_context", False))
    }


def load_oracles(folder: str, prepared: PreparedData) -> dict[str, Oracle]:
    """`load_oracle`, for data that was prepared from the simulated log.

    Raises:
        UserError: the folder does not hold a simulated log, or the data comes from another log or lacks its context.
    """
    missing = {"device", "place"} - set(prepared.features.context_categories)
    if missing:
        raise UserError(
            f"the data at {prepared.path} has no context column {min(missing)!r}, which the true preferences depend on; "
            "expected it in [events.context] categorical of the dataset spec"
        )
    oracles = load_oracle(folder, prepared.features)
    truth, items = oracles["oracle"].truth, prepared.items
    expected, titles = [item_id(n) for n in range(len(truth.item_weight))], items.column(schema.ITEM_TITLE).to_pylist()
    brands = [BRANDS[brand] for brand in truth.item_brand]
    if items.column(schema.ITEM_ID).to_pylist() != expected or not all(
        title is None or title.startswith(f"{brand} ") for title, brand in zip(titles, brands, strict=True)
    ):
        raise UserError(
            f"the items of {prepared.path} ({len(items):,}) are not those of the simulated log in {folder} "
            f"({len(expected):,}); expected data that was prepared from that log as it is there now"
        )
    return oracles


def oracle_of_log(oracle: Oracle, prepared: PreparedData, before: int) -> Oracle:
    """An upper bound that knows the simulator's parameters and infers each user's taste from the log.

    The parameters are the process that draws events, the effects of attributes and contexts, and the sum of the item
    weights of each cell. Two things are inferred from the events:

    - The part of a user's taste that the attributes do not explain. It is the likeliest one under the normal
      distribution that it is drawn from; an average over all tastes would rank a little better.
    - The weight of an item. It is the expectation under the distribution of all weights, which is the mean for an item
      that was not launched or is held out of all training.

    Args:
        oracle: ranks by the true parameters.
        prepared: the data with the events.
        before: the events of splits earlier than this one count (`schema.VALID` or `schema.TEST`).
    """
    known, share = oracle.truth, prepared.meta.get("cold_items", 0.0)
    weights = known.item_weight
    if share:
        weights = np.where(held_out_items(prepared.items.column(schema.ITEM_ID).to_pylist(), share), 0, weights)
    shown = dataclasses.replace(known, item_weight=weights)  # without the items whose events were taken out of the log
    parts = []
    for bucket in range(len(prepared.bucket_paths)):
        histories = histories_from_table(prepared.read_bucket(bucket), prepared.features)
        parts.append(_seen(oracle, histories, prepared.features, before))
    seen = _Seen(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})
    taste_NC, liking_NB = known.taste_NC.copy(), known.liking_NB.copy()
    taste_NC[seen.users], liking_NB[seen.users] = _likeliest_tastes(shown, seen)
    weights = _expected_weights(shown, known.item_weight, seen)
    truth = dataclasses.replace(known, taste_NC=taste_NC, liking_NB=liking_NB, item_weight=weights)
    return dataclasses.replace(oracle, truth=truth)


@dataclass(frozen=True)
class _Seen:
    """The users of a log and their events."""

    users: np.ndarray  # int64 [N] numbers
    attributes_NA: np.ndarray  # float32 one-hot attributes; the first column is 1 for everybody
    user: np.ndarray  # int64 [E] number
    items: np.ndarray  # int32 [E]
    effect_EC: np.ndarray  # float32, of the context
    late: np.ndarray  # bool [E] after the launch


def _seen(oracle: Oracle, histories: Histories, features: FeatureMeta, before: int) -> _Seen:
    users = _numbers(histories.users.ids)
    events = histories.events.keep(histories.split < before)
    one_hot = [np.ones((len(users), 1), np.float32)]
    for name, values in features.user_categories.items():  # of simulated users, who have one value each
        one_hot.append(np.eye(schema.FIRST_CODE + len(values), dtype=np.float32)[histories.users.cat[name]])
    return _Seen(
        users=users,
        attributes_NA=np.concatenate(one_hot, 1),
        user=np.repeat(users, events.lengths),
        items=events.items,
        effect_EC=oracle.effect(events.context, events.times),
        late=events.times >= oracle.truth.launch_us,
    )


def _likeliest_tastes(shown: Truth, seen: _Seen) -> tuple[np.ndarray, np.ndarray]:
    """Taste float32 [N, C] and liking [N, B] of the users: the part of their attributes plus the likeliest rest."""
    num_categories = shown.taste_NC.shape[1]
    # float64, because the line search needs small differences of a sum over all events.
    expected_NW = torch.from_numpy(_expected_tastes(shown, seen))
    own_std = math.sqrt(1 - FROM_ATTRIBUTES)
    spread_W = torch.tensor([TASTE] * num_categories + [LIKING] * shown.liking_NB.shape[1]).double() * own_std
    row = np.zeros(len(shown.taste_NC), np.int64)
    row[seen.users] = np.arange(len(seen.users))
    row_E, effect_EC = torch.from_numpy(row[seen.user]), torch.from_numpy(seen.effect_EC)
    category_E, brand_E = (torch.from_numpy(of_item[seen.items]) for of_item in (shown.item_category, shown.item_brand))
    masses = [torch.from_numpy(shown.cell_mass(late=late)) for late in (False, True)]
    late_E = torch.from_numpy(seen.late)
    own_NW = torch.zeros(expected_NW.shape, dtype=torch.float64, requires_grad=True)  # in standard deviations
    optimizer = torch.optim.LBFGS([own_NW], lr=1, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def nll(part: slice) -> torch.Tensor:
        both_EW = (expected_NW + own_NW * spread_W)[row_E[part]]
        taste_EC, liking_EB = both_EW[:, :num_categories] + effect_EC[part], both_EW[:, num_categories:]
        took = taste_EC.gather(1, category_E[part, None]).sum() + liking_EB.gather(1, brand_E[part, None]).sum()
        could = torch.zeros((), dtype=torch.float64)
        for late, mass_CB in enumerate(masses):
            rows = late_E[part] == bool(late)
            could = could + (taste_EC[rows].exp() * (liking_EB[rows].exp() @ mass_CB.T)).sum(1).log().sum()
        return could - took

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = own_NW.square().sum() / 2
        value.backward()
        for start in range(0, len(row_E), _EVENTS_AT_ONCE):
            of_part = nll(slice(start, start + _EVENTS_AT_ONCE))
            of_part.backward()
            value = value.detach() + of_part.detach()
        return value

    optimizer.step(closure)
    made = (expected_NW + own_NW.detach() * spread_W).numpy().astype(np.float32)
    return made[:, :num_categories], made[:, num_categories:]


def _expected_tastes(shown: Truth, seen: _Seen) -> np.ndarray:
    """Taste and liking that a user's attributes predict: float64 [N, C + B].

    The prediction is a least-squares fit to the true values of all other users, so that it does not contain the user's
    own. It is 0 for a user who is the only one with some attribute value.
    """
    true = np.concatenate([shown.taste_NC, shown.liking_NB], 1)[seen.users].astype(np.float64)
    inverse_AN = np.linalg.pinv(seen.attributes_NA.astype(np.float64))
    own_share_N = (seen.attributes_NA * inverse_AN.T).sum(1)[:, None]
    others = seen.attributes_NA @ (inverse_AN @ true) - own_share_N * true
    alone = own_share_N > 1 - 1e-3
    return np.where(alone, 0, others / np.where(alone, 1, 1 - own_share_N))


def _expected_weights(shown: Truth, weights_I: np.ndarray, seen: _Seen) -> np.ndarray:
    """Expected weights of the items given their events: float64 [I].

    The number of an item's events is Poisson with the item's weight times a rate. The rate is the number of events of
    the item's cell over the weight of the cell, while the item was launched. Every item may have any of `weights_I`.
    Expectations are scaled so that the items of a cell that were there from the start have the true sum.
    """
    cells = shown.item_category * shown.liking_NB.shape[1] + shown.item_brand
    rate_I = np.zeros(len(cells))
    for late in (False, True):
        mass = shown.cell_mass(late=late).ravel()
        events = np.bincount(cells[seen.items[seen.late == late]], minlength=len(mass))
        rate_I += np.divide(events, mass, out=np.zeros(len(mass)), where=mass > 0)[cells] * (
            shown.launched(late=late) > 0
        )
    candidates = np.quantile(weights_I, np.linspace(0, 1, min(_CANDIDATES, len(cells))))
    counts_I = np.bincount(seen.items, minlength=len(cells))
    expected_I = np.empty(len(cells))
    for start in range(0, len(cells), _ITEMS_AT_ONCE):
        part = slice(start, start + _ITEMS_AT_ONCE)
        likely = counts_I[part, None] * np.log(candidates) - rate_I[part, None] * candidates
        odds = np.exp(likely - likely.max(1, keepdims=True))
        expected_I[part] = odds @ candidates / odds.sum(1)
    there_I = shown.launched(late=False) > 0
    mass = shown.cell_mass(late=False).ravel()
    found = np.bincount(cells, expected_I * there_I, minlength=len(mass))
    factor = np.divide(mass, found, out=np.ones(len(mass)), where=found > 0)
    return np.where(there_I, expected_I * factor[cells], expected_I)
