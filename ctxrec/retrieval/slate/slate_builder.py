"""Makes the list of a request from its best candidates: diversity, caps, freshness and rules.

Evaluation, batch scoring and the service all come here through `Retriever.top_k`.

Legend: N requests, P candidates of a request, I items, C width of the vectors that similarity compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ctxrec.core.config import DiversityConfig
from ctxrec.core.errors import UserError
from ctxrec.data.requests import Requests
from ctxrec.index.exact import Allowed
from ctxrec.index.topk import NO_ITEM
from ctxrec.retrieval.filters import ItemFilter
from ctxrec.retrieval.live_catalogue import LiveCatalogue
from ctxrec.retrieval.slate.mmr import pick
from ctxrec.retrieval.slate.rules import InForce, Rule, RuleBook, Rules

Found = list[tuple[np.ndarray, np.ndarray]]  # of each request item positions and scores
More = Callable[[np.ndarray, Sequence[np.ndarray], int], Found]


class SlateBuilder:
    """Makes lists of candidates.

    Args:
        catalogue: may change.
        item_filter: of the same catalogue.
        content_vectors: unit vectors of items by position, whose products are the similarity.
        config: what to do.
        rules: besides; see `use_rules`.

    Raises:
        UserError: a column of `config` or an item or a column of `rules` is not in the catalogue.
    """

    def __init__(
        self,
        catalogue: LiveCatalogue,
        item_filter: ItemFilter,
        content_vectors: Callable[[np.ndarray], np.ndarray],
        config: DiversityConfig,
        rules: Rules,
    ):
        self._catalogue, self._filter, self._config = catalogue, item_filter, config
        self._content_vectors = content_vectors
        self._codes = {column: self._catalogue.codes(column, option="diversity.caps") for column in config.caps}
        self._births = self._catalogue.births(config.date_column) if config.freshness else None
        self._known_rules = RuleBook(Rules(), self._matching)
        self._version = self._catalogue.version  # of the catalogue that the rules' masks are for
        self.use_rules(rules)

    def use_rules(self, rules: Rules, *, lenient: bool = False) -> list[str]:
        """Take over rules in the place of those in force; not to be called while another thread searches.

        Args:
            rules: of a file.
            lenient: leave out the rules that do not fit this catalogue, as for one that has just come.

        Returns:
            What is wrong with the rules that were left out; an item that is not there leaves the rest of its rule.

        Raises:
            UserError: a rule does not fit, and the rules are not `lenient`; the old ones stay.
        """
        wrong, kept = [], []
        for rule in rules:
            problem = self._problem(rule)
            wrong += [problem] if problem else []
            if not problem or rule.items:
                kept.append(rule)
        if wrong and not lenient:
            raise UserError(wrong[0])
        fitting = {name: tuple(r for r in getattr(rules, name) if r in kept) for name in ("block", "boost", "pin")}
        self._known_rules = RuleBook(Rules(**fitting), self._matching)
        return wrong

    @property
    def _book(self) -> RuleBook:
        """The rules in force, whose masks fit the catalogue as it is now."""
        if self._version != self._catalogue.version:
            self._known_rules.forget()
            self._version = self._catalogue.version
        return self._known_rules

    def strengths(self, given: Sequence[float | None] | None, num: int) -> np.ndarray:
        """Strength of MMR for each request, float32 [N]: its own, else that of the options."""
        own = [None] * num if given is None else given
        return np.array([self._config.strength if s is None else s for s in own], np.float32)

    def is_needed(self, strengths_N: np.ndarray) -> bool:
        """Whether any list differs from the best candidates in their order."""
        return bool((strengths_N > 0).any() or self._config.caps or self._config.freshness or self._book)

    def num_candidates(self, k: int) -> int:
        """Candidates that a request for k items wants."""
        return max(k, self._config.pool) + self._book.num_pins

    def open_items(self, requests: Requests, allowed: Allowed) -> Allowed:
        """Masks for a search: those of `allowed` without the items that are blocked at the time of the request."""
        if not self._book:
            return allowed
        num = len(requests)
        masks = [allowed] * num if allowed is None or isinstance(allowed, np.ndarray) else list(allowed)
        for rows, now in self._book.groups(requests.times):
            made: dict[int, np.ndarray | None] = {}  # one for all rows that share a mask
            for n in rows.tolist():
                mask = masks[n]
                if id(mask) not in made:
                    both = mask is not None and now.open_I is not None
                    made[id(mask)] = mask & now.open_I if both else (now.open_I if mask is None else mask)
                masks[n] = made[id(mask)]
        return masks

    def arrange(
        self, requests: Requests, found: Found, ks: Sequence[int], strengths_N: np.ndarray, more: More
    ) -> Found:
        """The list of each request: as long as its candidates allow, at most its k.

        Pins outrank caps; where caps leave places empty though items are eligible, these come by relevance.
        Scores are the model's own; an item that was put higher takes the score of the best one below it, so that
        scores never increase.

        Args:
            requests: N requests.
            found: their candidates, best first; `num_candidates` of each where so many are eligible.
            ks: items of each.
            strengths_N: of MMR.
            more: finds for some requests (rows) the best items of a mask for each: as `found`.
        """
        pools = [_Pool(*candidates) for candidates in found]
        groups = self._book.groups(requests.times) if self._book else []
        for rows, now in groups:
            self._lift(pools, rows, now, more)
        if self._births is not None:
            self._freshen(pools, requests)
        lengths = [k + self._book.num_pins for k in ks]  # a pin may take an item from above its place
        picked = self._pick(pools, strengths_N, max(lengths))
        lists = [row[row >= 0][:k] for row, k in zip(picked, lengths, strict=True)]
        if self._codes:
            for n, k in enumerate(lengths):
                if len(lists[n]) < min(k, pools[n].num):
                    lists[n] = self._fill(n, pools[n], lists[n], k, strengths_N[n], more)
        made = [(pool.items[places], pool.scores[places]) for pool, places in zip(pools, lists, strict=True)]
        for rows, now in groups:
            self._pin(made, rows, now, more)
        return [(items[:k], _never_rising(scores[:k])) for (items, scores), k in zip(made, ks, strict=True)]

    def _problem(self, rule: Rule) -> str | None:
        kind = type(rule).__name__.lower()
        if rule.items:
            missing = [item for item in rule.items if item not in self._catalogue.position]
            return f"a {kind} rule names the item {missing[0]!r}; the catalogue has no such item" if missing else None
        try:
            self._filter.mask(rule.on_column())
        except UserError as error:
            return f"a {kind} rule does not fit the catalogue: {str(error).removeprefix('filter: ')}"
        return None

    def _matching(self, rule: Rule) -> np.ndarray:
        if not rule.items:
            return self._filter.mask(rule.on_column())
        known = self._catalogue.position
        mask = np.zeros(len(self._catalogue), bool)
        mask[[known[item] for item in rule.items if item in known]] = True
        return mask

    def _lift(self, pools: list[_Pool], rows: np.ndarray, now: InForce, more: More) -> None:
        """Add boosts to the candidates. Boosted items that are not among the best become candidates first."""
        if now.gain_I is None:
            return
        lifted = now.gain_I > 0
        if lifted.any():
            for n, others in zip(rows, more(rows, [lifted] * len(rows), self._config.pool), strict=True):
                pools[n].join(*others)
        for n in rows:
            pools[n].relevance += now.gain_I[pools[n].items]

    def _freshen(self, pools: list[_Pool], requests: Requests) -> None:
        assert self._births is not None
        for pool, time in zip(pools, requests.times, strict=True):
            days = self._births.days(pool.items[None], np.array([time]))[0]
            share = np.where(np.isnan(days), 0, np.exp2(-days / self._config.half_life_days))
            pool.relevance += (self._config.freshness * share).astype(np.float32)

    def _pick(self, pools: Sequence[_Pool], strengths_N: np.ndarray, k: int) -> np.ndarray:
        """Places among the candidates of each request, int64 [N, k], -1 where the caps let none through."""
        width = max((pool.num for pool in pools), default=0)
        if not width:
            return np.full((len(pools), k), -1, np.int64)
        items = np.stack([np.pad(pool.items, (0, width - pool.num), constant_values=NO_ITEM) for pool in pools])
        relevance = np.stack([np.pad(pool.relevance, (0, width - pool.num), constant_values=-np.inf) for pool in pools])
        vectors = self._content_vectors(items) if (strengths_N > 0).any() else np.zeros((*items.shape, 0))
        caps = [(self._codes[column].codes_IM[items], cap) for column, cap in self._config.caps.items()]
        return pick(relevance, vectors, strengths_N, k, caps)

    def _fill(self, n: int, pool: _Pool, places: np.ndarray, k: int, strength: np.float32, more: More) -> np.ndarray:
        """Fill a list up to its length: first with other items that the caps allow, then with any items."""
        while len(places) < k:
            (others,) = more(np.array([n]), [self._below_caps(pool.items[places], pool.items)], self._config.pool)
            if not pool.join(*others):
                break
            (row,) = self._pick([pool], np.array([strength]), k)
            places = row[row >= 0]
        rest = np.setdiff1d(np.arange(pool.num), places)
        rest = rest[np.argsort(-pool.relevance[rest], kind="stable")]
        return np.concatenate([places, rest])[:k]

    def _below_caps(self, listed: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Items besides the candidates that the caps still allow in the list: bool [I]."""
        mask = np.ones(len(self._catalogue), bool)
        mask[candidates] = False
        for column, cap in self._config.caps.items():
            codes_IM = self._codes[column].codes_IM
            values, counts = np.unique(codes_IM[listed], return_counts=True)
            full = values[(counts >= cap) & (values >= 0)]
            mask &= ~np.isin(codes_IM, full).any(1)
        return mask

    def _pin(self, made: Found, rows: np.ndarray, now: InForce, more: More) -> None:
        """Put the best item of each pin that no earlier pin has taken in its place."""
        pinned: dict[int, list[tuple[int, int, float]]] = {n: [] for n in rows.tolist()}
        for place, mask in now.pins:
            for n, (items, scores) in zip(pinned, more(rows, [mask] * len(rows), len(now.pins)), strict=True):
                taken = {item for _, item, _ in pinned[n]}
                free = [m for m, item in enumerate(items.tolist()) if item not in taken]
                if free:
                    pinned[n].append((place, int(items[free[0]]), float(scores[free[0]])))
        for n, own in pinned.items():
            items, scores = made[n]
            kept = ~np.isin(items, [item for _, item, _ in own])
            items, scores = items[kept], scores[kept]
            for place, item, score in own:
                at = min(place, len(items))
                items, scores = np.insert(items, at, item), np.insert(scores, at, score)
            made[n] = items, scores


@dataclass
class _Pool:
    """Candidates of one request. `relevance` is 1 for the model's best candidate and 0 for its last one, plus the
    boosts."""

    items: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        self._low = float(self.scores[-1]) if len(self.scores) else 0.0
        self._span = float(self.scores[0]) - self._low if len(self.scores) else 0.0
        self.relevance = self._relative(self.scores)

    @property
    def num(self) -> int:
        return len(self.items)

    def join(self, items: np.ndarray, scores: np.ndarray) -> bool:
        """Add the items that are no candidates yet; returns whether there were any."""
        new = ~np.isin(items, self.items)
        self.items = np.concatenate([self.items, items[new]])
        self.scores = np.concatenate([self.scores, scores[new]])
        self.relevance = np.concatenate([self.relevance, self._relative(scores[new])])
        return bool(new.any())

    def _relative(self, scores: np.ndarray) -> np.ndarray:
        return ((scores - self._low) / self._span if self._span > 0 else scores - self._low).astype(np.float32)


def _never_rising(scores: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(scores[::-1])[::-1]
