"""The item memory: what the log says of pairs of items and of popularity.

Linear models on co-occurrence win where histories are short or baskets are large. Sequence models win where the order
carries the signal. The model therefore has both, and `ctxrec.memory.blend` weighs them for every request.

Legend: N requests, I items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse as sp

from ctxrec.core.errors import UserError
from ctxrec.data.events import Events
from ctxrec.data.feedback import EventKinds
from ctxrec.data.log_statistics import TrainingEvents, gather_statistics
from ctxrec.memory.cooccurrence import COOCCURRENCE, CooccurrenceParams, largest_of_rows, pairs_in_order, pairs_of_users
from ctxrec.memory.text_similarity import TEXT_SIMILARITY, TextSimilarityParams, history_weights, proxy_weights


@dataclass(frozen=True)
class FeedbackParams:
    """How much events count where values say what is liked (`ctxrec.data.feedback`). The lab book is `tests/bench/RESULTS.md`
    ("What ratings mean", and "What ratings gain for liked items", where no other choice was better by more than its noise).

    Events of negative feedback make no pairs of items and no popularity: on the validation events of MovieLens-100K that
    raises the NDCG of liked targets or leaves it, and a third fewer disliked items are in lists. Events between the
    thresholds count in full; with half, or without them, nothing is gained.

    Attributes:
        negative: what an event of negative feedback in a history speaks for items like its own; other events speak 1. Of 1
            to -1, lower values show fewer disliked items, and below -.1 they begin to cost liked ones.
    """

    negative: float = -0.1

    def speaks(self, kinds: EventKinds) -> np.ndarray:
        """What an event of each code speaks for items like its own: float32 [A + 1]."""
        return np.where(kinds.grades_A < 0, self.negative, 1).astype(np.float32)


FEEDBACK = FeedbackParams()


@dataclass(frozen=True)
class ItemMemoryParams:
    """Tuned numbers of the item memory. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        next_steps: an item that comes up to so many steps after another one counts as following it, 1 / steps each time.
            5 steps instead of 1 improved the likelihood of the validation events or left it on all data sets; 10 and 20
            are level with 5.
        recent_share: recent popularity is that of the latest 1 / `recent_share` of the events. A tenth has a better or
            equal likelihood than a twentieth on all data sets that were tried; a fifth and a fiftieth are not better.
        cooccurrence_decay: weight of an item of the history, relative to the item one step later, in the scores of the
            recent items by cooccurrence. Other decays did not improve the likelihood.
        next_decay, next_last: the same for what follows, and how many of the latest items count. Slower decays are
            level with 0.7. No measurement supports the number of items.
        repeat_decay: the same for the user's own items. No measurement supports it.
    """

    next_steps: int = 5
    recent_share: int = 10
    cooccurrence_decay: float = 0.97
    next_decay: float = 0.7
    next_last: int = 10
    repeat_decay: float = 0.98
    feedback: FeedbackParams = FEEDBACK
    cooccurrence: CooccurrenceParams = COOCCURRENCE
    text_similarity: TextSimilarityParams = TEXT_SIMILARITY


ITEM_MEMORY = ItemMemoryParams()
COOCCURRENCE_ALL, COOCCURRENCE_RECENT, NEXT = "cooccurrence", "cooccurrence_recent", "next"
REPEAT_ALL, REPEAT_RECENT = "repeat", "repeat_recent"


@dataclass(frozen=True)
class ItemMemory:
    """Item-to-item weights, all of them 0 or more, and popularity.

    An item without event takes the mean of its proxies, the items of nearest text. Without text it has no pairs, and
    mean popularity.

    Attributes:
        cooccurrence_II: sparse float32, how much an item (row) speaks for another one (column) because the same users
            have both (`ctxrec.memory.cooccurrence`).
        next_II: sparse float32, how much an item (row) speaks for what comes soon after it (column).
        popularity_I: float32, log(1 + events), standardised.
        recent_I: float32, the same for the latest events.
        known_I: bool, whether an item has events.
        repeats: whether the items of a history may be recommended again, so that they are a source.
        params: tuned numbers.
        speaks_A: float32, how much an event of each code speaks for what is like its item, below 0 against it
            (`FeedbackParams`); None: all speak alike.
    """

    cooccurrence_II: sp.csr_array
    next_II: sp.csr_array
    popularity_I: np.ndarray
    recent_I: np.ndarray
    known_I: np.ndarray
    repeats: bool
    params: ItemMemoryParams = ITEM_MEMORY
    speaks_A: np.ndarray | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that depend on the history."""
        pairs = (COOCCURRENCE_ALL, COOCCURRENCE_RECENT, NEXT)
        return (*pairs, REPEAT_ALL, REPEAT_RECENT) if self.repeats else pairs

    def source_scores(self, history: Events) -> list[sp.csr_array]:
        """Scores of every source, each scaled to a standard deviation of 1 over the catalogue: float32 [N, I] each."""
        return [_scaled_rows(self._source(name, history)) for name in self.sources]

    def _source(self, name: str, history: Events) -> sp.csr_array:
        """Scores of a source: float32 [N, I], 0 or more."""
        scores = self._signed(name, history)
        if self.speaks_A is not None:
            scores.data = np.maximum(scores.data, 0)
            scores.eliminate_zeros()
        return scores

    def _signed(self, name: str, history: Events) -> sp.csr_array:
        params = self.params
        weights = partial(history_weights, history, len(self.popularity_I), speaks_A=self.speaks_A)
        if name == NEXT:
            return weights(decay=params.next_decay, last=params.next_last) @ self.next_II
        if name == REPEAT_RECENT:
            return weights(decay=params.repeat_decay)
        if name == COOCCURRENCE_RECENT:
            return weights(decay=params.cooccurrence_decay) @ self.cooccurrence_II
        counts = weights(decay=1.0)
        if name == REPEAT_ALL:
            counts.data = np.log1p(np.maximum(counts.data, 0))
            return counts
        # Each item once, by the one of its events that speaks most.
        counts.data[:] = 1 if self.speaks_A is None else np.clip(counts.data, self.speaks_A.min(), 1)
        return counts @ self.cooccurrence_II


def _scaled_rows(scores_NI: sp.csr_array) -> sp.csr_array:
    """Rows over their standard deviation; a row of zeros stays as it is."""
    rows, num_items = scores_NI.shape
    scores_NI = scores_NI.tocsr()
    lengths = np.diff(scores_NI.indptr)
    of_row = np.repeat(np.arange(rows), lengths)
    values = scores_NI.data.astype(np.float64)
    mean = np.bincount(of_row, values, minlength=rows) / num_items
    spread = np.sqrt(np.maximum(np.bincount(of_row, values**2, minlength=rows) / num_items - mean**2, 0))
    factor = np.divide(1.0, spread, out=np.zeros(rows), where=spread > 1e-9)
    data = (values * factor[of_row]).astype(np.float32)
    return sp.csr_array((data, scores_NI.indices, scores_NI.indptr), shape=scores_NI.shape)


def fit_memory(
    parts: Iterable[TrainingEvents],
    num_items: int,
    *,
    repeats: bool,
    text_IC: np.ndarray | None = None,
    kinds: EventKinds | None = None,
    params: ItemMemoryParams = ITEM_MEMORY,
) -> ItemMemory:
    """Fit a memory to the events of users.

    Args:
        parts: events of some users each.
        num_items: size of the catalogue.
        repeats: whether the items of a history may be recommended again.
        text_IC: text vectors (`ctxrec.memory.text_similarity.reduced`), which are the prior of the pairs of items, and
            give items without event their proxies; None: there is neither.
        kinds: what the codes of events say; None: all events count alike.
        params: tuned numbers.
    """
    parts, speaks_A = list(parts), None
    known = sum((np.bincount(p.items, minlength=num_items) for p in parts), np.zeros(num_items, np.int64)) > 0
    if kinds is not None and kinds.are_judged:
        speaks_A = params.feedback.speaks(kinds)
        parts = [part if part.grades is None else part.where(part.grades >= 0) for part in parts]
    log = gather_statistics(parts, num_items, steps=params.next_steps)
    latest = log.items[-max(len(log.items) // params.recent_share, 1) :]
    popularity = _standardised(log.item_counts, known)
    memory = ItemMemory(
        cooccurrence_II=pairs_of_users(log, popularity, text_IC, params=params.cooccurrence),
        next_II=pairs_in_order(log, params=params.cooccurrence),
        popularity_I=popularity,
        recent_I=_standardised(np.bincount(latest, minlength=num_items), known),
        known_I=known,
        repeats=repeats,
        params=params,
        speaks_A=speaks_A,
    )
    return memory if text_IC is None or known.all() else as_if_known(memory, known, text_IC)


def as_if_known(memory: ItemMemory, known_I: np.ndarray, text_IC: np.ndarray | None) -> ItemMemory:
    """The memory as if only some of its known items had events.

    Args:
        memory: fitted on all events.
        known_I: bool, the items that keep what is known of them. All others take the weighted mean of their proxies.
        text_IC: text vectors, which give the proxies; None: the other items have nothing.
    """
    alone = sp.diags_array(known_I.astype(np.float32)).tocsr()
    weights_II = alone if text_IC is None else proxy_weights(text_IC, known_I, params=memory.params.text_similarity)

    def pairs(matrix_II: sp.csr_array) -> sp.csr_array:
        return largest_of_rows(weights_II @ matrix_II @ weights_II.T, params=memory.params.cooccurrence)

    return dataclasses.replace(
        memory,
        cooccurrence_II=pairs(memory.cooccurrence_II),
        next_II=pairs(memory.next_II),
        popularity_I=weights_II @ memory.popularity_I,
        recent_I=weights_II @ memory.recent_I,
        known_I=known_I,
    )


def _standardised(counts: np.ndarray, known: np.ndarray) -> np.ndarray:
    """log(1 + counts) with mean 0 and standard deviation 1 over the known items, 0 for the others. float32"""
    values = np.log1p(counts.astype(np.float64))
    if not known.any():
        return np.zeros(len(counts), np.float32)
    spread = values[known].std()
    scaled = (values - values[known].mean()) / (spread if spread > 1e-9 else 1.0)
    return np.where(known, scaled, 0).astype(np.float32)


def to_arrays(memory: ItemMemory) -> dict[str, np.ndarray]:
    """The memory as plain arrays, which safetensors can hold: [I] for each popularity, three arrays for each sparse
    matrix. Their names are those of bundles of all versions."""
    arrays = {"popularity": memory.popularity_I, "recent": memory.recent_I}
    arrays |= {"known": memory.known_I.astype(np.uint8), "own": np.array([memory.repeats], np.uint8)}
    arrays |= {} if memory.speaks_A is None else {"speaks": memory.speaks_A}
    for name, matrix in (("together", memory.cooccurrence_II), ("next", memory.next_II)):
        arrays[f"{name}.weights"] = matrix.data.astype(np.float32)
        arrays[f"{name}.items"] = matrix.indices.astype(np.int32)
        arrays[f"{name}.offsets"] = matrix.indptr.astype(np.int64)
    return arrays


def from_arrays(arrays: dict[str, np.ndarray]) -> ItemMemory:
    """The inverse of `to_arrays`.

    Raises:
        UserError: an earlier version wrote the arrays, without cooccurrence for large catalogues.
        ValueError: the arrays of a matrix do not fit together, or name an item that does not exist.
    """
    num_items = len(arrays["popularity"])
    if "together.weights" not in arrays:
        raise UserError(
            "the model's item memory has no pairs of items, because it is of an earlier version; train again"
        )

    def matrix(name: str) -> sp.csr_array:
        parts = arrays[f"{name}.weights"], arrays[f"{name}.items"], arrays[f"{name}.offsets"]
        made = sp.csr_array(parts, shape=(num_items, num_items))
        made.check_format(full_check=True)
        return made

    return ItemMemory(
        cooccurrence_II=matrix("together"),
        next_II=matrix("next"),
        popularity_I=arrays["popularity"],
        recent_I=arrays["recent"],
        known_I=arrays["known"] > 0,
        repeats=bool(arrays["own"][0]),
        speaks_A=arrays.get("speaks"),
    )
