"""The best possible rankings of a simulated log, by the preferences that it was drawn from, and by what a log of that
size can tell of them.

Legend: N requests or users, I items, E events, A attribute values, C categories, B brands, X context values of a feature.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ctxrec import schema, storage
from ctxrec.events import US, Context, Histories, Requests, histories_from_table
from ctxrec.prepared import FeatureMeta, PreparedData
from ctxrec.simulation import (
    DAYPARTS,
    DEVICES,
    FROM_ATTRIBUTES,
    HOURS,
    LIKING,
    NEVER,
    PLACES,
    TASTE,
    TRUTH,
    Truth,
)
from ctxrec.splits import held_out_items

_CANDIDATES = 1_000  # weights that an item of unknown weight may have
_ITERATIONS = 100  # of the search for the likeliest tastes


@dataclass(frozen=True)
class Oracle:
    """Ranks by the true probabilities (the `Ranker` protocol of `ctxrec.ranking`).

    Items are in the order of the item table, which is the catalogue's. Without context, the probabilities are
    averaged over the distribution of device, place and part of the day.
    """

    truth: Truth
    devices: np.ndarray  # int64: code of a request's context -> device, -1 = unknown
    places: np.ndarray
    use_context: bool

    def scores(self, requests: Requests) -> np.ndarray:
        """float32 [N, I] log probabilities; NEVER for items launched later."""
        users = np.array([int(name[1:]) for name in requests.users.ids], np.int64)
        scores = np.full((len(requests), len(self.truth.item_weight)), NEVER, np.float32)
        late = requests.times >= self.truth.launch_us
        for part in (False, True):
            rows = np.flatnonzero(late == part)
            if len(rows):
                cells_NCB = self._cells(users[rows], requests, rows, late=part)
                scores[rows] = self._items(cells_NCB, late=part)
        return scores

    def effect(self, context: Context, times: np.ndarray) -> np.ndarray:
        """What contexts (and microsecond times) do to each category: float32 [N, C]."""
        device, place = self.devices[context.cat["device"]], self.places[context.cat["place"]]
        return self.truth.context_effect(device, place, times // US // 3600 % 24)

    def _items(self, cells_NCB: np.ndarray, *, late: bool) -> np.ndarray:
        """float32 [N, I] from the log probabilities of the cells: an item has its share of its cell's."""
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
            total += share * np.exp(_log_softmax(self.truth.cell_logits(users, effect, mass_CB)))
        with np.errstate(divide="ignore"):
            return np.log(total)


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
        UserError: the folder is none of a simulated log.
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


def oracle_of_log(oracle: Oracle, prepared: PreparedData, before: int) -> Oracle:
    """Ranks as well as the events of the splits earlier than `before` allow: it knows how a log is drawn, what
    attributes and contexts do, and what each cell weighs, but learns from the log what is a user's own (the likeliest
    taste, given the normal distribution that it is drawn from) and an item's weight (its expectation, given the
    distribution of all weights), which is the mean for an item that was not launched or is held out of all training."""
    known, share = oracle.truth, prepared.meta.get("cold_items", 0.0)
    weights = known.item_weight
    if share:
        weights = np.where(held_out_items(prepared.items.column(schema.ITEM_ID).to_pylist(), share), 0, weights)
    shown = dataclasses.replace(known, item_weight=weights)  # what events were drawn from that the log still has
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
    attributes_NA: np.ndarray  # float32, 1 where the user has the value
    user: np.ndarray  # int64 [E] number
    items: np.ndarray  # int32 [E]
    effect_EC: np.ndarray  # float32, of the context
    late: np.ndarray  # bool [E] after the launch


def _seen(oracle: Oracle, histories: Histories, features: FeatureMeta, before: int) -> _Seen:
    users = np.array([int(name[1:]) for name in histories.users.ids], np.int64)
    events = histories.events.keep(histories.split < before)
    codes = histories.users.cat
    sizes = {name: schema.FIRST_CODE + len(values) for name, values in features.user_categories.items()}
    return _Seen(
        users=users,
        attributes_NA=np.concatenate([np.eye(sizes[name], dtype=np.float32)[codes[name]] for name in sizes], 1),
        user=np.repeat(users, events.lengths),
        items=events.items,
        effect_EC=oracle.effect(events.context, events.times),
        late=events.times >= oracle.truth.launch_us,
    )


def _likeliest_tastes(shown: Truth, seen: _Seen) -> tuple[np.ndarray, np.ndarray]:
    """Taste float32 [N, C] and liking [N, B] of the users seen: those of their attributes, and the likeliest own part.

    What attributes do is what tells the true tastes of many users best by them (least squares).
    """
    true = np.concatenate([shown.taste_NC, shown.liking_NB], 1)[seen.users]
    expected_NW = seen.attributes_NA @ np.linalg.lstsq(seen.attributes_NA, true, rcond=None)[0]
    num_categories = shown.taste_NC.shape[1]
    own_std = math.sqrt(1 - FROM_ATTRIBUTES)
    spread_W = torch.tensor([TASTE] * num_categories + [LIKING] * shown.liking_NB.shape[1]) * own_std
    row = np.zeros(len(shown.taste_NC), np.int64)
    row[seen.users] = np.arange(len(seen.users))
    row_E, effect_EC = torch.from_numpy(row[seen.user]), torch.from_numpy(seen.effect_EC)
    category_E, brand_E = (torch.from_numpy(of_item[seen.items]) for of_item in (shown.item_category, shown.item_brand))
    phases = [
        (torch.from_numpy(seen.late == late), torch.from_numpy(shown.cell_mass(late=late)).float())
        for late in (False, True)
    ]
    own_NW = torch.zeros(expected_NW.shape, requires_grad=True)  # in standard deviations
    optimizer = torch.optim.LBFGS([own_NW], lr=1, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def surprise() -> torch.Tensor:
        both_EW = (torch.from_numpy(expected_NW).float() + own_NW * spread_W)[row_E]
        taste_EC, liking_EB = both_EW[:, :num_categories] + effect_EC, both_EW[:, num_categories:]
        took = taste_EC.gather(1, category_E[:, None]).sum() + liking_EB.gather(1, brand_E[:, None]).sum()
        could = sum(
            (taste_EC[rows].exp() * (liking_EB[rows].exp() @ mass_CB.T)).sum(1).log().sum() for rows, mass_CB in phases
        )
        return could - took + own_NW.square().sum() / 2

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = surprise()
        value.backward()
        return value

    optimizer.step(closure)
    made = expected_NW + (own_NW.detach() * spread_W).numpy()
    return made[:, :num_categories].astype(np.float32), made[:, num_categories:].astype(np.float32)


def _expected_weights(shown: Truth, weights_I: np.ndarray, seen: _Seen) -> np.ndarray:
    """float64 [I] expected weights, given that an item's events are Poisson with its weight times a rate, the events of
    its cell over the cell's weight while it was there, and that any item may have any of `weights_I`."""
    cells = shown.item_category * shown.liking_NB.shape[1] + shown.item_brand
    rate_I = np.zeros(len(cells))
    for late in (False, True):
        mass = shown.cell_mass(late=late).ravel()
        events = np.bincount(cells[seen.items[seen.late == late]], minlength=len(mass))
        rate_I += (events / np.maximum(mass, np.finfo(float).tiny))[cells] * (shown.launched(late=late) > 0)
    candidates = np.quantile(weights_I, np.linspace(0, 1, min(_CANDIDATES, len(cells))))
    counts_I = np.bincount(seen.items, minlength=len(cells))
    likely = counts_I[:, None] * np.log(candidates) - rate_I[:, None] * candidates
    odds = np.exp(likely - likely.max(1, keepdims=True))
    return odds @ candidates / odds.sum(1)
