"""The best possible ranking of a simulated log, by the preferences that it was drawn from.

Legend: N requests, I items, C categories, B brands, X context values of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ctxrec import schema, storage
from ctxrec.events import US, Requests
from ctxrec.prepared import FeatureMeta
from ctxrec.simulation import DAYPARTS, DEVICES, HOURS, NEVER, PLACES, TRUTH, Truth


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
            device = self.devices[requests.context.cat["device"][rows]]
            place = self.places[requests.context.cat["place"][rows]]
            effect = self.truth.context_effect(device, place, requests.times[rows] // US // 3600 % 24)
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
