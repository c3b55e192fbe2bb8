"""The best eligible items of requests: without items of the history and excluded ones, and after filters.

Evaluation, batch scoring and the HTTP service all go through `Retriever`, so their scores agree.

Legend: I items, N requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np
import scipy.sparse as sp

from ctxrec.bundle.content_check import Unsound
from ctxrec.bundle.format import damage_named
from ctxrec.bundle.registry import find_bundle
from ctxrec.core.config import DiversityConfig, IndexConfig
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths
from ctxrec.core.stopwatch import Stopwatch
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests
from ctxrec.index.exact import Allowed, Excluded, exact_search
from ctxrec.index.faiss_index import Index, load_index
from ctxrec.index.topk import NO_ITEM, top_k
from ctxrec.memory.scoring import Scored, Scorer
from ctxrec.retrieval.cross_encoder import Reranker, titles_of
from ctxrec.retrieval.filters import ColumnRule, ItemFilter
from ctxrec.retrieval.live_catalogue import EncodedItems, LiveCatalogue
from ctxrec.retrieval.live_search import search_live
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.per_request import all_of, of_request, rows_of, without_gaps
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.reranker_files import second_stage_of
from ctxrec.retrieval.slate.rules import Rules
from ctxrec.retrieval.slate.slate_builder import Found, SlateBuilder


class SearchedModel(Scorer, Protocol):
    """What a `Retriever` needs of a model. `ctxrec.retrieval.recommender.Recommender` is one."""

    @property
    def catalogue(self) -> LiveCatalogue:
        """The items that are searched, whose vectors are `vectors`."""
        ...

    @property
    def features(self) -> FeatureMeta:
        """What a second stage reads of a request."""
        ...

    @property
    def repeats(self) -> bool:
        """Whether an item of the history may be recommended again."""
        ...

    def similar_query(self, item: int) -> tuple[np.ndarray, sp.csr_array | None]:
        """What finds items like one (a position): a query, float32 [1, D], and what is added to its products, [1, I]."""
        ...

    def content_vectors(self, items: np.ndarray) -> np.ndarray:
        """Unit vectors of items (int64 positions of any shape) by which a list is diverse: float32 [..., C]."""
        ...


Model = TypeVar("Model", bound=SearchedModel)


class Retriever(Generic[Model]):
    """A model with its index.

    Args:
        recommender: the model. The retriever hands it on, with all that it offers besides a `SearchedModel`.
        index: an index of `recommender.vectors`; None ranks the whole catalogue exactly.
        reranker: an optional second stage, which puts the best candidates of a request in a new order.
        reranks: whether it does so for requests that do not say.
        diversity: what is done with the best candidates at the end; None: nothing.
        rules: besides, those of a file; `diversity.rules` is not read here.
    """

    def __init__(
        self,
        recommender: Model,
        index: Index | None = None,
        reranker: Reranker | None = None,
        diversity: DiversityConfig | None = None,
        rules: Rules | None = None,
        *,
        reranks: bool = True,
    ):
        expected = recommender.vectors.shape
        if index is not None and (index.num_items, index.dim) != expected:
            raise UserError(
                f"the index holds {index.num_items} vectors of width {index.dim}; expected {expected[0]} of width "
                f"{expected[1]}, one for each item. Export the bundle again"
            )
        self.recommender = recommender
        self.index = index
        self.reranker, self.reranks = reranker, reranks
        self.catalogue = recommender.catalogue
        self.item_filter = ItemFilter(self.catalogue)
        self.slate_builder = SlateBuilder(
            self.catalogue,
            self.item_filter,
            recommender.content_vectors,
            diversity or DiversityConfig(),
            rules or Rules(),
        )

    def top_k(
        self,
        requests: Requests,
        k: int | Sequence[int],
        *,
        exclude: Excluded = None,
        allowed: Allowed = None,
        diversity: Sequence[float | None] | None = None,
        rerank: Sequence[bool | None] | None = None,
        scored: Scored | None = None,
        watch: Stopwatch | None = None,
    ) -> Found:
        """The best k items of each request: always k unless fewer are eligible.

        Args:
            requests: N requests of `recommender.make_requests`.
            k: at least 1; one for all, or one for each.
            exclude: item positions that a request must not get, besides the items of its history (those
                are left out unless the spec says `split.repeats`).
            allowed: bool [I] for all requests or one such mask for each (`compile_filter`); None: all items.
            diversity: strength of MMR for each request; None: that of the options.
            rerank: whether the second stage ranks the candidates of each request; None: as the options say.
            scored: of these requests, where it is needed after the search too; None: it is computed.
            watch: takes the times of the stages "tower", "memory", "search" and, where there are such, "rerank"
                (a second stage) and "arrange" (diversity and rules).

        Returns:
            For each request item positions (int64) and scores (float32, non-increasing; without diversity and rules
            ties by position).
        """
        with self.catalogue.reading():
            if not len(requests):
                return []
            watch = watch or Stopwatch()
            scored = scored or self.scored(requests, watch)
            return self._top_k(requests, k, exclude, allowed, diversity, rerank, scored, watch)

    def scored(self, requests: Requests, watch: Stopwatch | None = None) -> Scored:
        """What the model makes of requests, for `top_k` and for what reads the scores of its items.

        Args:
            requests: N requests.
            watch: takes the times of the stages "tower" and "memory".
        """
        watch = watch or Stopwatch()
        with self.catalogue.reading():
            queries = self.recommender.queries(requests)
            watch.lap("tower")
            remembered = self.recommender.remembered(requests)
            watch.lap("memory")
        return Scored(queries, remembered)

    def _top_k(
        self,
        requests: Requests,
        k: int | Sequence[int],
        exclude: Excluded,
        allowed: Allowed,
        diversity: Sequence[float | None] | None,
        rerank: Sequence[bool | None] | None,
        scored: Scored,
        watch: Stopwatch,
    ) -> Found:
        ks = [k] * len(requests) if isinstance(k, int) else list(k)
        strengths = self.slate_builder.strengths(diversity, len(requests))
        arranged = self.slate_builder.is_needed(strengths)
        # As many as each request alone would get, so that no list depends on what else is asked.
        sizes = [self.slate_builder.num_candidates(k) for k in ks] if arranged else ks
        wanted = max(sizes)
        queries, remembered = scored.queries, scored.remembered
        allowed = self.slate_builder.open_items(requests, allowed)
        unwanted = self._unwanted(requests, exclude)
        asked = np.flatnonzero([self.is_reranked(said) for said in rerank or [None] * len(requests)])
        most = wanted if self.reranker is None or not len(asked) else max(wanted, self.reranker.candidates)
        found = self._find(queries, most, exclude=unwanted, allowed=allowed, added=remembered)
        watch.lap("search")
        if self.reranker is not None and len(asked):
            part, before, features = requests.take(asked), [found[n] for n in asked], self.recommender.features
            again = self.reranker.rerank(part, before, wanted, features=features, titles=self._titles)
            for n, ranked in zip(asked, again, strict=True):
                found[n] = ranked
            watch.lap("rerank")
        found = [(items[:size], scores[:size]) for (items, scores), size in zip(found, sizes, strict=True)]
        if arranged:

            def among(rows: np.ndarray, masks: Sequence[np.ndarray], num: int) -> Found:
                """The best of some of the requests, each among the items of a mask."""
                return self._find(
                    queries[rows],
                    num,
                    exclude=None if unwanted is None else [unwanted[n] for n in rows],
                    allowed=all_of([of_request(allowed, n) for n in rows], masks),
                    added=None if remembered is None else remembered[rows],
                )

            found = self.slate_builder.arrange(requests, found, ks, strengths, among)
            watch.lap("arrange")
        return found

    def is_reranked(self, said: bool | None) -> bool:
        """Whether the second stage ranks the candidates of a request that says so, says not, or does not say (None)."""
        return self.reranker is not None and (self.reranks if said is None else said)

    def similar(self, item: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k items most like `item`, itself left out (`Recommender.similar_query` says by what)."""
        with self.catalogue.reading():
            query, added = self.recommender.similar_query(item)
            return self._find(query, k, exclude=[np.array([item])], allowed=None, added=added)[0]

    def update(self, changed: EncodedItems | None, removed: Iterable[str] = ()) -> None:
        """Put items into the catalogue, or in the place of those of the same id, and take items out of it.

        Such items are searched exactly, beside the index. The change waits until no other thread searches.
        """
        self.catalogue.update(changed, removed)

    @property
    def num_live_items(self) -> int:
        """Items that are searched beside the index."""
        return len(self.catalogue.fresh)

    @property
    def num_items(self) -> int:
        """Items that may be found."""
        return self.catalogue.num_alive

    def has_item(self, item_id: str) -> bool:
        """Whether the catalogue has the item, so that it can be recommended."""
        return self.catalogue.has(item_id)

    def positions(self, item_ids: Iterable[str]) -> np.ndarray:
        """Positions of those ids that the catalogue has: int64 [known ids]; the others are left out."""
        return self.catalogue.positions(item_ids)

    def item_ids(self, positions: np.ndarray) -> list[str]:
        ids = self.catalogue.ids
        return [ids[p] for p in positions.tolist()]

    def compile_filter(
        self, wanted: Mapping[str, ColumnRule | Sequence[str]] | None, *, allow: Iterable[str] | None = None
    ) -> np.ndarray | None:
        """The items that pass the rule of every named column, and are among those of `allow` where it is given.

        Args:
            wanted: rules by item column; a list of values stands for any of them, as
                `{"category": ["Comedy", "Drama"]}`. A value that no item has matches nothing; it is not an error.
            allow: item ids; those that the catalogue lacks match nothing.

        Returns:
            bool [I], not to be changed, or None when there is no filter.

        Raises:
            UserError: a column is unknown or a rule does not fit it; names it and what is valid.
        """
        with self.catalogue.reading():
            return self._mask(wanted, allow)

    def _mask(
        self, wanted: Mapping[str, ColumnRule | Sequence[str]] | None, allow: Iterable[str] | None
    ) -> np.ndarray | None:
        mask = None
        if wanted:
            rules = {c: r if isinstance(r, ColumnRule) else ColumnRule(any=r) for c, r in wanted.items()}
            mask = self.item_filter.mask(rules)
        if allow is not None:
            listed = np.zeros(len(self.catalogue), bool)
            listed[self.positions(allow)] = True
            mask = listed if mask is None else mask & listed
        return mask

    @cached_property
    def _titles(self) -> list[str | None]:
        return titles_of(self.catalogue.bundled)

    def _find(
        self, queries: np.ndarray, k: int, *, exclude: Excluded, allowed: Allowed, added: sp.csr_array | None
    ) -> Found:
        """The best k eligible items of each request by the products with `queries` and what the memory adds to them."""
        if self._is_exact:
            return self._rank_all(queries, k, exclude=exclude, allowed=allowed, added=added)
        found = self._search(queries, k, exclude=exclude, allowed=allowed)
        if added is None:
            return found
        return [
            self._with_memory(found[n][0], queries[n], row, values, k, of_request(exclude, n), of_request(allowed, n))
            for n, (row, values) in enumerate(rows_of(added))
        ]

    def _unwanted(self, requests: Requests, exclude: Excluded) -> Excluded:
        """What each request must not get: the items of its history, those that it dislikes, and `exclude`."""
        parts: list[Sequence[np.ndarray]] = [] if self.recommender.repeats else [requests.seen()]
        parts += [] if requests.disliked is None else [list(requests.disliked)]
        parts += [] if exclude is None else [exclude]
        return [np.concatenate(each) for each in zip(*parts, strict=True)] if parts else None

    def _with_memory(
        self,
        found: np.ndarray,
        query: np.ndarray,
        remembered: np.ndarray,
        added: np.ndarray,
        k: int,
        unwanted: np.ndarray | None,
        allowed: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k among the index's best and all remembered items, of which `added` are the memory's scores.

        The memory never lowers a score, so no other item can be among the best. The result is exact where the index
        is exact.
        """
        extra = remembered
        if allowed is not None:
            extra = extra[allowed[extra]]
        extra = extra[self.catalogue.alive[extra]]
        if unwanted is not None and len(unwanted):
            extra = extra[~np.isin(extra, unwanted)]
        candidates = np.union1d(found, extra)
        scores = self.recommender.vectors[candidates] @ query
        place = np.minimum(np.searchsorted(candidates, remembered), len(candidates) - 1)
        inside = candidates[place] == remembered if len(candidates) else np.zeros(len(remembered), bool)
        scores[place[inside]] += added[inside]
        best = top_k(scores[None], k)[0]
        best = best[best != NO_ITEM]
        return candidates[best], scores[best]

    def _search(
        self, queries: np.ndarray, k: int, *, exclude: Excluded, allowed: Allowed
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        if self._is_exact:
            return self._rank_all(queries, k, exclude=exclude, allowed=allowed)
        assert self.index is not None
        if not self.catalogue.version:
            return without_gaps(*self.index.search(queries, k, allowed=allowed, excluded=exclude))
        return search_live(self.index, self.catalogue, queries, k, exclude=exclude, allowed=allowed)

    @property
    def _is_exact(self) -> bool:
        """Whether a search ranks every item: it then takes one matrix product, and adds the memory's scores to it."""
        return self.index is None or (self.index.kind == "flat" and not self.index.on_gpu)

    def _rank_all(
        self, queries: np.ndarray, k: int, *, exclude: Excluded, allowed: Allowed, added: sp.csr_array | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        allowed, vectors = self.catalogue.alive_among(allowed), self.catalogue.vectors_by_column
        return without_gaps(*exact_search(vectors, queries, k, allowed=allowed, excluded=exclude, added=added))


def load_retriever(
    run: str,
    index: IndexConfig | None = None,
    *,
    rerank: bool = False,
    on_request: bool = False,
    diversity: DiversityConfig | None = None,
    rules: Rules | None = None,
) -> Retriever[Recommender]:
    """The recommender and the index of a run or bundle, after the check of all its hashes.

    Args:
        run: path or URI.
        index: search options; None takes those of the bundle.
        rerank: whether the second stage (`ctxrec.rerank`) ranks the candidates of requests that do not say. One that was
            found to add nothing is left out.
        on_request: loads the second stage, where there is one that fits, for the requests that ask for it.
        diversity: what is done with the best candidates at the end; None: nothing.
        rules: besides, those of a file; `diversity.rules` is not read here.

    Raises:
        UserError: it is missing or damaged, or its catalogue lacks an item or a column that is named; or `rerank` is True,
            and there is no second stage that fits.
    """
    bundle = find_bundle(run)
    recommender = load_recommender(bundle)
    second = None
    if rerank or on_request:
        second = second_stage_of(bundle, recommender.model_version, required=rerank)
    found = load_index(BundlePaths(bundle).index, index or recommender.config.index)
    if found.num_items != len(recommender.item_vectors):
        raise UserError(
            f"the bundle at {bundle} is damaged: index.faiss has {found.num_items} items and vectors.safetensors "
            f"{len(recommender.item_vectors)}. Restore it or train again"
        )
    with damage_named(bundle):
        if found.dim != recommender.vectors.shape[1]:
            raise Unsound(
                f"index.faiss has vectors of {found.dim} numbers, and the model of {recommender.vectors.shape[1]}"
            )
        return Retriever(recommender, found, second, diversity, rules, reranks=rerank)
