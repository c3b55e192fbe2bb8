"""Top-k search by inner product over item vectors: FAISS flat, HNSW, IVF and IVF-PQ; on a GPU flat, IVF and CAGRA.

Every search gives k results whenever k items are eligible, whatever the filter: approximate indexes
search wider and at last rank all vectors exactly where filters leave them short.

Legend: I items, D width of a vector, N queries.
"""

from __future__ import annotations

import logging
import math
import threading
from functools import cached_property

import faiss
import numpy as np

from ctxrec.core import storage
from ctxrec.core.config import IndexConfig
from ctxrec.core.errors import UserError
from ctxrec.index.exact import Allowed, Excluded, blank, by_mask, exact_search
from ctxrec.index.topk import NO_ITEM

logger = logging.getLogger(__name__)

_SLACK = 8  # results fetched beyond k, so that most ties at the border are complete
_FEW_EXCLUDED = 256  # items of a row that are rather fetched and dropped than skipped
_WIDEN = 4  # factor on the search effort when filters leave a row short of k
_EXACT_SHARE = 0.05  # filters that leave less than this share of items are ranked exactly
_GPU_MAX_K, _CAGRA_MAX_K = 2048, 512  # results of a search on a GPU, at most
_GPU_MAX_LISTS = 2048
_SAMPLE, _SAMPLE_K = 200, 10  # queries by which recall is measured, and how many items of each
_REFINE = 16  # candidates of ivfpq that are ranked exactly, as a multiple of k
_FIRST_EFFORT = {"ivf": 8, "ivfpq": 8, "hnsw": 32, "cagra": 32}  # lists and graph nodes that are tried first


def load_index(path: str, config: IndexConfig) -> Index:
    """Read an index that `Index.save` wrote; search options (`nprobe`, `ef_search`) are `config`'s.

    A local file is mapped into memory, so that it is there at once and replicas of a machine share it; it may be
    replaced by another, not written over. FAISS trusts the files it reads: call this only on a bundle whose hashes
    were checked.

    Raises:
        UserError: nothing is at `path`.
    """
    if not storage.exists(path):
        raise UserError(f"found nothing at {path}; expected the index of a bundle")
    try:
        if storage.is_uri(path):
            return Index(faiss.deserialize_index(np.frombuffer(storage.read_bytes(path), np.uint8)), config)
        return Index(faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC), config)
    except RuntimeError as error:  # FAISS's only exception type
        raise UserError(f"{path} is no FAISS index ({str(error).splitlines()[0]}); export the bundle again") from error


class Index:
    """A FAISS index of item vectors; safe to search from several threads."""

    def __init__(self, index: faiss.Index, config: IndexConfig):
        self._owner = index  # the downcast below is a view that frees nothing and keeps nothing alive
        self._index = faiss.downcast_index(index)
        self._config = config
        self._gpu_lock = threading.Lock()  # FAISS's GPU indexes bear no concurrent searches, not even reads

    @property
    def num_items(self) -> int:
        return self._index.ntotal

    @property
    def dim(self) -> int:
        return self._index.d

    @property
    def kind(self) -> str:
        """What was built: flat, hnsw, ivf, ivfpq or cagra."""
        if isinstance(self._index, faiss.IndexHNSWCagra):
            return "cagra"
        if isinstance(self._index, faiss.IndexHNSW):
            return "hnsw"
        if isinstance(self._index, faiss.IndexRefine):
            return "ivfpq"
        return "ivf" if isinstance(self._index, faiss.IndexIVF) else "flat"

    @cached_property
    def vectors(self) -> np.ndarray:
        """The item vectors, float32 [I, D]; a view, except for IVF, whose lists hold them in another order."""
        if self.kind == "ivf":
            return self._index.reconstruct_n(0, self.num_items)
        whole = {"hnsw": "storage", "cagra": "storage", "ivfpq": "refine_index"}.get(self.kind)
        flat = self._index if whole is None else faiss.downcast_index(getattr(self._index, whole))
        return faiss.rev_swig_ptr(flat.get_xb(), self.num_items * self.dim).reshape(self.num_items, self.dim)

    def save(self, path: str) -> None:
        """Write the index to a local path or URI."""
        storage.write_bytes(path, faiss.serialize_index(self._index).tobytes())

    def search(
        self, queries: np.ndarray, k: int, *, allowed: Allowed = None, excluded: Excluded = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items of highest inner product for each query.

        Args:
            queries: float32 [N, D].
            k: at least 1.
            allowed: bool [I] for all queries, or one such mask (None: all items) for each.
            excluded: item positions that each query must not get.

        Returns:
            Positions int64 and scores float32, both [N, min(k, I)]: best first, equal scores by position;
            rows with fewer eligible items end in `NO_ITEM` and -inf.
        """
        assert k >= 1, f"k is {k}"
        queries = np.ascontiguousarray(queries, np.float32)
        width = min(k, self.num_items)
        excluded = _unique(excluded, len(queries))
        ids, scores = blank(len(queries), width)
        for rows, mask in by_mask(allowed, len(queries)):
            drop = [excluded[r] for r in rows]
            ids[rows], scores[rows] = self._search_same_mask(queries[rows], width, mask, drop)
        return ids, scores

    def _search_same_mask(
        self, queries: np.ndarray, width: int, mask: np.ndarray | None, excluded: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        num_allowed = self.num_items if mask is None else int(mask.sum())
        selects = self.kind == "flat" and not self.on_gpu
        if mask is not None and not selects and num_allowed < _EXACT_SHARE * self.num_items:
            # Few items pass the filter: a search would mostly visit items that do not, and ranking all that pass is
            # cheap.
            return exact_search(self.vectors, queries, width, allowed=mask, excluded=excluded)
        wanted = [min(width, num_allowed - len(d if mask is None else d[mask[d]])) for d in excluded]
        if self.on_gpu or self.kind == "flat":
            ids, scores, unsure = self._over_fetch(queries, width, mask, excluded)
        else:
            ids, scores, unsure = self._select(queries, width, mask, excluded, np.array(wanted))
        unsure |= (ids != NO_ITEM).sum(1) < wanted
        for n in np.flatnonzero(unsure):
            row = slice(n, n + 1)
            ids[row], scores[row] = exact_search(
                self.vectors, queries[row], width, allowed=mask, excluded=excluded[row]
            )
        return ids, scores

    def _over_fetch(
        self, queries: np.ndarray, width: int, mask: np.ndarray | None, excluded: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One search for all rows, with excluded items fetched too and dropped after.

        The third result marks rows whose border may cut through equal scores.
        """
        num = min(self.num_items, width + _SLACK + max(map(len, excluded)))
        if self.on_gpu:  # GPU indexes have no selectors: fetch more, and search wider
            share = 1.0 if mask is None else max(float(mask.mean()), 1 / self.num_items)
            num = min(math.ceil(num / share), self.num_items, _CAGRA_MAX_K if self.kind == "cagra" else _GPU_MAX_K)
            found_scores, found_ids = self._search_gpu(queries, num, 1 / share)
            if mask is not None:
                found_ids = np.where(mask[found_ids], found_ids, NO_ITEM)
        else:
            params = faiss.SearchParameters(sel=_bitmap(mask)) if mask is not None else None
            found_scores, found_ids = self._index.search(queries, num, params=params)
        lowest = found_scores[:, -1]
        ids, scores = _rank(found_ids, found_scores, width, excluded, self.num_items)
        unsure = (scores[:, -1] == lowest) & (ids[:, -1] != NO_ITEM) & (found_ids.shape[1] < self.num_items)
        return ids, scores, unsure

    def _select(
        self,
        queries: np.ndarray,
        width: int,
        mask: np.ndarray | None,
        excluded: list[np.ndarray],
        wanted: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Approximate search on a CPU. For rows with few excluded items, one search fetches so many items more, and
        the excluded ones are dropped. For rows with many, FAISS itself skips them, which takes one search for each
        row.

        The fewer items pass, the wider it searches, so that it sees as many of those as without a filter.
        """
        share = 1.0 if mask is None else max(float(mask.mean()), 1 / self.num_items)
        ids, scores = blank(len(queries), width)
        few = np.array([len(d) <= _FEW_EXCLUDED for d in excluded], bool)
        calls = [np.array([n]) for n in np.flatnonzero(~few)]
        if few.any():
            calls.append(np.flatnonzero(few))
        for effort in (1, _WIDEN):
            for rows in calls:
                rows = rows[(ids[rows] != NO_ITEM).sum(1) < wanted[rows]]
                if len(rows):
                    dropped = [excluded[n] for n in rows] if few[rows[0]] else [excluded[n][:0] for n in rows]
                    num = min(width + max(map(len, dropped)), self.num_items)
                    selector = _selector(mask, excluded[rows[0]][:0] if few[rows[0]] else excluded[rows[0]])
                    params = self._search_params(num * effort, effort / share, selector, refine=effort)
                    found_scores, found_ids = self._index.search(queries[rows], num, params=params)
                    ids[rows], scores[rows] = _rank(found_ids, found_scores, width, dropped, self.num_items)
        return ids, scores, np.zeros(len(queries), bool)

    def _search_params(
        self, num: int, effort: float, selector: faiss.IDSelector | None, *, refine: int = 1
    ) -> faiss.SearchParameters:
        """FAISS's search parameters. `effort` multiplies how many lists or nodes are visited, and `refine` how many
        results are ranked exactly."""
        more = {} if selector is None else {"sel": selector}
        if self.kind in ("ivf", "ivfpq"):
            lists = faiss.extract_index_ivf(self._index)
            nprobe = self._config.nprobe or lists.nprobe
            params = faiss.SearchParametersIVF(nprobe=min(math.ceil(nprobe * effort), lists.nlist), **more)
            if self.kind == "ivf":
                return params
            padded = faiss.SearchParametersPreTransform(index_params=params)
            return faiss.IndexRefineSearchParameters(k_factor=float(_REFINE * refine), base_index_params=padded)
        ef_search = self._config.ef_search or self._index.hnsw.efSearch
        return faiss.SearchParametersHNSW(efSearch=max(math.ceil(ef_search * effort), num), **more)

    def reach(self, recall: float, queries: np.ndarray | None = None) -> None:
        """Search so many lists, or nodes of a graph, that queries find their items with this recall; the number is saved
        with the index, for searches whose `nprobe` or `ef_search` is 0.

        Without `queries` (float32 [N, D], of real requests) some are made up: each between two items, with more noise
        than that, since those of users are not items.
        """
        if self.kind == "flat":
            return
        vectors = self.vectors
        if queries is None or not len(queries):
            rng = np.random.default_rng(0)
            first, second = (vectors[rng.integers(self.num_items, size=_SAMPLE)] for _ in range(2))
            queries = first + second + 2 * rng.standard_normal(first.shape, dtype=np.float32) * vectors.std(0)
        exact, _ = exact_search(vectors, queries, _SAMPLE_K)
        enough = (1 + recall) / 2  # other queries may be harder than those sampled
        most = self.num_items if self.kind in ("hnsw", "cagra") else faiss.extract_index_ivf(self._index).nlist
        effort, found = min(_FIRST_EFFORT[self.kind], most), 0.0
        while True:
            self._search_by_default(effort)
            ids, _ = self.search(queries, _SAMPLE_K)
            found = np.mean([np.isin(row, other).mean() for row, other in zip(exact, ids, strict=True)])
            if found >= enough or effort == most:
                break
            effort = min(2 * effort, most)
        what = "graph nodes" if self.kind in ("hnsw", "cagra") else "lists"
        logger.info("%d of %d %s are searched: recall@%d %.3f", effort, most, what, _SAMPLE_K, found)

    def _search_by_default(self, effort: int) -> None:
        if self.kind in ("hnsw", "cagra"):
            self._index.hnsw.efSearch = effort
        else:
            faiss.extract_index_ivf(self._index).nprobe = effort

    @property
    def on_gpu(self) -> bool:
        """Whether searches run on a GPU."""
        return self._gpu_index is not None

    @cached_property
    def _gpu_index(self) -> faiss.Index | None:
        """The index on the GPU: what FAISS has no GPU form of (HNSW) stays on the CPU."""
        found = num_gpus(self._config)
        if self._config.use_gpu == "yes" and found == 0:
            raise UserError(
                "index.use_gpu is yes, but FAISS finds no GPU; install ctxrec[gpu] in the place of ctxrec[cpu], or set it to auto"
            )
        if found == 0:
            return None
        if self.kind == "cagra" and "CUVS" not in faiss.get_compile_options():
            logger.info("this FAISS has no cuVS; the CPU searches what CAGRA built")
            return None
        if self.kind in ("hnsw", "ivfpq"):
            logger.info("%s has no GPU form in FAISS; the index stays on the CPU", self.kind)
            return None
        self._gpu_resources = faiss.StandardGpuResources()  # must live as long as the index
        return faiss.index_cpu_to_gpu(self._gpu_resources, 0, self._index)

    def _search_gpu(self, queries: np.ndarray, num: int, effort: float) -> tuple[np.ndarray, np.ndarray]:
        params = None
        if self.kind == "ivf":
            lists = faiss.extract_index_ivf(self._index)
            nprobe = math.ceil((self._config.nprobe or lists.nprobe) * effort)
            params = faiss.SearchParametersIVF(nprobe=min(nprobe, lists.nlist, _GPU_MAX_LISTS))
        elif self.kind == "cagra":
            params = faiss.SearchParametersCagra()
            params.itopk_size = max(self._config.ef_search or self._index.hnsw.efSearch, num)
        assert self._gpu_index is not None
        with self._gpu_lock:
            return self._gpu_index.search(queries, num, params=params)


def num_gpus(config: IndexConfig) -> int:
    """GPUs that FAISS finds, where it may use them."""
    if config.use_gpu == "no" or not hasattr(faiss, "StandardGpuResources"):
        return 0
    return faiss.get_num_gpus()


def _unique(excluded: Excluded, num_rows: int) -> list[np.ndarray]:
    if excluded is None:
        return [np.zeros(0, np.int64)] * num_rows
    assert len(excluded) == num_rows, f"{len(excluded)} exclusions for {num_rows} queries"
    return [np.unique(np.asarray(e, np.int64)) for e in excluded]


def _bitmap(mask: np.ndarray) -> faiss.IDSelector:
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _selector(mask: np.ndarray | None, excluded: np.ndarray) -> faiss.IDSelector | None:
    """What FAISS may return; None when that is everything."""
    if len(excluded) == 0:
        return None if mask is None else _bitmap(mask)
    rest = faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded))
    return rest if mask is None else faiss.IDSelectorAnd(_bitmap(mask), rest)


def _rank(
    found_ids: np.ndarray, found_scores: np.ndarray, width: int, excluded: list[np.ndarray], num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `width` of FAISS's results [N, m] without the excluded ones, equal scores by position."""
    of_row = np.repeat(np.arange(len(excluded)), [len(e) for e in excluded])
    excluded_keys = of_row * num_items + np.concatenate([*excluded, np.zeros(0, np.int64)])
    keys = np.arange(len(found_ids))[:, None] * num_items + found_ids
    dropped = (found_ids == NO_ITEM) | np.isin(keys, excluded_keys)
    scores = np.where(dropped, -np.inf, found_scores).astype(np.float32)
    ids = np.where(dropped, NO_ITEM, found_ids)
    order = np.lexsort((ids, -scores), axis=-1)[:, :width]
    ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
    short = width - ids.shape[1]
    if short > 0:
        ids = np.pad(ids, ((0, 0), (0, short)), constant_values=NO_ITEM)
        scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
    return ids, scores
