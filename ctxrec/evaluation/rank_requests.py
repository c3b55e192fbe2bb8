"""Rank the whole catalogue for every request of a split: Ray Data actors, one user bucket at a time.

A small split is ranked in the command's own process, as actors would take longer to start than to rank it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from ctxrec.core import schema, storage
from ctxrec.core.errors import UserError
from ctxrec.core.terminal import progress_bar
from ctxrec.data.clock import Clock
from ctxrec.data.events import histories_from_table, ranges
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests, split_requests
from ctxrec.evaluation.feedback_metrics import known_dislikes
from ctxrec.evaluation.knockouts import knocked_out, moved_parts
from ctxrec.evaluation.ranking_plan import RankingPlan, load_system
from ctxrec.evaluation.slices import time_labels
from ctxrec.evaluation.summary import SLICE_K, RankedLists
from ctxrec.evaluation.systems import MODEL, RERANKED, SHUFFLED, SHUFFLED_SAME_TIME
from ctxrec.index.topk import top_k
from ctxrec.memory.item_memory import ItemMemory
from ctxrec.retrieval.cross_encoder import RerankedRecommender
from ctxrec.retrieval.load import trained_items
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.reranker_files import load_reranker
from ctxrec.retrieval.retriever import Retriever

_NOTHING = np.zeros(0, np.int64)
_RECENT = 5  # events of the history that the report's examples show
_WEIGHTS, _DISLIKED = "target_weights", "disliked"
_TOP, _COLD, _ATTRIBUTE = "top/", "cold/", "attribute/"  # prefixes of columns in the actors' tables


class Ranker(Protocol):
    """Anything that ranks: a recommender or a baseline."""

    def scores(self, requests: Requests) -> np.ndarray:
        """float [N, I], higher is better."""
        ...


Shared = tuple[np.ndarray, np.ndarray, dict[str, Ranker], ItemMemory | None]  # eligible, cold, fitted, textless


class BucketRanker:
    """Ranks the catalogue for every request of a bucket with every system, as an actor of Ray Data or in this process."""

    def __init__(self, plan: RankingPlan, shared: Shared | list[ray.ObjectRef]) -> None:
        torch.set_num_threads(plan.cpus_per_actor)
        self.plan = plan
        self.data = PreparedData.open(plan.data)
        self.rankers: dict[str, Ranker] = {}
        self.rankers |= {system: load_system(plan, self.data, system) for system in plan.bundles}
        if plan.reranker is not None:
            model: Any = self.rankers[MODEL]
            second = load_reranker(plan.reranker, model_version=model.model_version)
            self.rankers[RERANKED] = RerankedRecommender(model, second)
        self.arranged = self._retrievers()
        # Of an actor they lie in shared memory and are not copied.
        given: Shared = tuple(ray.get(shared)) if isinstance(shared, list) else shared
        self.eligible, self.cold, fitted, textless = given
        self.rankers |= fitted
        self.hidden: dict[str, Recommender] = self._knocked_out(textless) if plan.knockouts else {}

    def _knocked_out(self, textless: ItemMemory | None) -> dict[str, Recommender]:
        """The model without each of its sources."""
        model: Any = self.rankers[MODEL]
        bundle = self.plan.bundles[MODEL]
        trained_I = self.eligible & ~self.cold if self.plan.split == schema.VALID else trained_items(bundle)
        return knocked_out(
            model,
            bundle,
            storage.parent(bundle),
            self.data,
            trained_I=trained_I,
            textless=textless,
            tuned=self.plan.tuned,
        )

    def _retrievers(self) -> dict[str, Retriever[Recommender]]:
        """Retrievers that make the model's lists with diversity and rules, as the service does."""
        if not self.plan.arranged:
            return {}
        model: Any = self.rankers[MODEL]
        second = None
        if self.plan.reranker is not None:
            found = load_reranker(self.plan.reranker, model_version=model.model_version)
            second = found if found.weight > 0 else None
        return {
            system: Retriever(model, None, second, diversity, self.plan.rules if diversity.rules else None)
            for system, diversity in self.plan.arranged.items()
        }

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        for bucket in batch["bucket"]:
            table = self.data.read_bucket(int(bucket))
            histories = histories_from_table(table, self.data.features, self.data.kinds)
            requests = split_requests(histories, self.plan.split, repeats=self.data.spec.split.repeats)
            requests = drop_targets(requests, self.eligible)
            dislikes = None
            if self.data.kinds.are_judged:
                dislikes = known_dislikes(histories, requests.users.ids)
            # Context moves among all requests of the bucket, whatever is ranked at once.
            clock, seed = Clock.of(self.data.spec, self.data.features), self.plan.seed + int(bucket)
            shuffled = shuffle_context(requests, clock, seed=seed) if MODEL in self.rankers else {}
            if self.plan.knockouts:
                shuffled |= moved_parts(requests, seed=seed)
            for start in range(0, len(requests), self.plan.batch_size):
                rows = np.arange(start, min(start + self.plan.batch_size, len(requests)))
                changed = {system: other.take(rows) for system, other in shuffled.items()}
                part = self._rank(int(bucket), requests.take(rows), changed)
                yield part if dislikes is None else _with_feedback(part, requests.take(rows), dislikes, rows)

    def _rank(self, bucket: int, requests: Requests, shuffled: dict[str, Requests]) -> pa.Table:
        """One row for each request: user, targets, history, attributes, and the list of every system."""
        history = requests.history
        offsets, targets, actions = requests.target_offsets, requests.target_items, requests.target_actions
        assert offsets is not None and targets is not None and actions is not None
        seen = [_NOTHING] * len(requests) if self.data.spec.split.repeats else requests.seen()
        closed, not_cold = np.flatnonzero(~self.eligible), np.flatnonzero(~self.cold)
        excluded = [np.concatenate([items, closed]) for items in seen]
        recent = history.cut(np.maximum(history.offsets[1:] - _RECENT, history.offsets[:-1]), history.offsets[1:])
        columns: dict[str, Any] = {
            schema.USER_ID: pa.array(requests.users.ids, pa.string()),
            "bucket": pa.array(np.full(len(requests), bucket)),
            "targets": _list_array(offsets, targets),
            "target_actions": _list_array(offsets, actions, np.int64),
            "history_length": pa.array(history.lengths),
            "time": pa.array(requests.times),
            "recent": _list_array(recent.offsets, recent.items),
        }
        for name, codes in requests.users.cat.items():
            columns[_ATTRIBUTE + name] = pa.array(_labels(codes, self.data.features.user_categories[name]), pa.string())
        for name, lists in requests.users.lists.items():
            columns[_ATTRIBUTE + name] = pa.array(
                _labels_of_lists(lists, self.data.features.user_categories[name]), pa.string()
            )
        for name, values in requests.users.num.items():
            columns[_ATTRIBUTE + name] = pa.array(values.astype(np.float64))
        for name, labels in self._context_labels(requests).items():
            columns.setdefault(_ATTRIBUTE + name, labels)
        with_cold = _requests_with_target(requests, self.cold)
        for system, ranker in self.rankers.items():
            scores = ranker.scores(requests)
            columns[_TOP + system] = _top_column(top_k(scores, self.plan.k, excluded))
            if self.cold.any():
                cold = np.full((len(requests), SLICE_K), -1)
                not_shown = [np.concatenate([seen[n], not_cold]) for n in with_cold]
                cold[with_cold] = top_k(scores[with_cold], SLICE_K, not_shown)
                columns[_COLD + system] = _top_column(cold)
        for system, retriever in self.arranged.items():
            found = retriever.top_k(requests, self.plan.k, exclude=[closed] * len(requests))
            columns[_TOP + system] = _top_column(_padded([items for items, _ in found], self.plan.k))
        for system, hidden in self.hidden.items():
            columns[_TOP + system] = _top_column(top_k(hidden.scores(requests), self.plan.k, excluded))
        for system, other in shuffled.items():
            columns[_TOP + system] = _top_column(top_k(self.rankers[MODEL].scores(other), self.plan.k, excluded))
        return pa.table(columns)

    def _context_labels(self, requests: Requests) -> dict[str, pa.Array]:
        """Labels for the slices by context: names of times and categories, and numbers."""
        context, features = requests.context, self.data.features
        time = {name: context.cat[name] - schema.FIRST_CODE for name in schema.TIME_CONTEXT}
        labels = {name: pa.array(values, pa.string()) for name, values in time_labels(**time).items()}
        for name, vocabulary in features.context_categories.items():
            labels[name] = pa.array(_labels(context.cat[name], vocabulary), pa.string())
        for name in features.context_numbers:
            labels[name] = pa.array(context.num[name].astype(np.float64))
        return labels


def _with_feedback(
    table: pa.Table, requests: Requests, dislikes: tuple[np.ndarray, np.ndarray], rows: np.ndarray
) -> pa.Table:
    """The table with the weights of the targets and what the users are known to dislike."""
    assert requests.target_offsets is not None and requests.target_weights is not None
    places, offsets = ranges(dislikes[0][rows], dislikes[0][rows + 1])
    weights = _list_array(requests.target_offsets, requests.target_weights, np.float32)
    disliked = _list_array(offsets, dislikes[1][places])
    return table.append_column(_WEIGHTS, weights).append_column(_DISLIKED, disliked)


def shuffle_context(requests: Requests, clock: Clock, *, seed: int) -> dict[str, Requests]:
    """The same requests with the context of other requests, in two ways.

    "shuffled_context" also takes the other request's time, but not a time before the last event of the history, because
    no request precedes its own history. "shuffled_context_same_time" keeps the request's time, so that recency stays
    true, and shuffles hour, weekday, month and every feature of the context.
    """
    order = np.random.default_rng(seed).permutation(len(requests))
    context, history = requests.context.take(order), requests.history
    times = requests.times[order]
    known = np.flatnonzero(history.lengths)
    times[known] = np.maximum(times[known], history.times[history.offsets[known + 1] - 1])
    moved = context.cat | clock.codes(times)
    return {
        SHUFFLED: dataclasses.replace(requests, times=times, context=dataclasses.replace(context, cat=moved)),
        SHUFFLED_SAME_TIME: dataclasses.replace(requests, context=context),
    }


def _requests_with_target(requests: Requests, items: np.ndarray) -> np.ndarray:
    """Rows of requests that have a target in `items` (bool [I])."""
    assert requests.target_offsets is not None and requests.target_items is not None
    kept = np.concatenate([[0], np.cumsum(items[requests.target_items])])[requests.target_offsets]
    return np.flatnonzero(np.diff(kept))


def _padded(lists: Sequence[np.ndarray], k: int) -> np.ndarray:
    """int64 [N, k], filled up with -1."""
    made = np.full((len(lists), k), -1, np.int64)
    for row, items in zip(made, lists, strict=True):
        row[: len(items)] = items
    return made


def _top_column(top: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(top.astype(np.int32).ravel(), top.shape[1])


def drop_targets(requests: Requests, eligible: np.ndarray) -> Requests:
    """Requests without the targets that may not be recommended; a request that has no target left is removed."""
    assert requests.target_items is not None
    return requests.with_targets(eligible[requests.target_items])


def _labels(codes: np.ndarray, vocabulary: list[str]) -> list[str | None]:
    names = np.array([None, "other values", *vocabulary], object)
    return names[codes].tolist()


def _labels_of_lists(codes: np.ndarray, vocabulary: list[str]) -> list[str | None]:
    """The values of each row in the order of the vocabulary, as one label; None without any."""
    names = ["", "other values", *vocabulary]
    rows = (sorted({int(code) for code in row if code}) for row in codes)
    return [", ".join(names[code] for code in row) or None for row in rows]


def _list_array(offsets: np.ndarray, values: np.ndarray, dtype: type = np.int32) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values.astype(dtype)))


def rank_requests(
    plan: RankingPlan,
    eligible: np.ndarray,
    cold: np.ndarray,
    fitted: dict[str, Ranker],
    textless: ItemMemory | None = None,
) -> pa.Table | None:
    """The tables of all buckets as one, users in the order of their ids; None without any request.

    Args:
        plan: see `RankingPlan`.
        eligible: bool [I] items that may be recommended.
        cold: bool [I] eligible items without training event, which are also ranked among themselves.
        fitted: rankers besides the plan's bundles.
        textless: the model's memory as if no item had a text; needed for knock-outs of a model with a memory.

    Raises:
        UserError: a bundle of the plan cannot be used, as a worker found out.
    """
    parts = []
    with progress_bar(plan.num_buckets, "evaluate", "bucket") as progress:
        try:
            for part in _tables(plan, (eligible, cold, fitted, textless)):
                if part.num_rows:
                    parts.append(part)
                    progress.update(max(0, part.column("bucket")[-1].as_py() + 1 - progress.n))
        except UserError as error:  # Ray wraps it with the actor's traceback; the user gets the line alone
            raise UserError(str(getattr(error, "cause", error)).partition("\nFailed to apply")[0]) from None
        progress.update(plan.num_buckets - progress.n)
    if not parts:
        return None
    # By id, so that the resamples, and with them the intervals, do not depend on the number of buckets.
    return pa.concat_tables(parts).sort_by(schema.USER_ID).combine_chunks()


def _tables(plan: RankingPlan, shared: Shared) -> Iterator[pa.Table]:
    """The tables of the buckets, in the order of the buckets."""
    if plan.num_actors == 0:
        threads = torch.get_num_threads()
        try:
            ranker = BucketRanker(plan, shared)
            for bucket in range(plan.num_buckets):
                yield from ranker({"bucket": np.array([bucket])})
        finally:
            torch.set_num_threads(threads)
        return
    ranked = ray.data.from_items(
        [{"bucket": b} for b in range(plan.num_buckets)], override_num_blocks=plan.num_buckets
    ).map_batches(
        BucketRanker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
        num_cpus=plan.cpus_per_actor,
        fn_constructor_args=(plan, [ray.put(part) for part in shared]),
    )
    yield from ranked.iter_batches(batch_size=None, batch_format="pyarrow")


def ranked_lists(table: pa.Table, actions: Sequence[str] = ()) -> RankedLists:
    """The arrays of the table that `rank_requests` made; `actions`: names of the log's action codes from 1 on."""
    targets = table.column("targets").combine_chunks()
    lengths = targets.value_lengths().to_numpy()
    tops, cold_tops, attributes = {}, {}, {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name.startswith(_TOP):
            tops[name.removeprefix(_TOP)] = column.flatten().to_numpy().reshape(len(table), -1)
        elif name.startswith(_COLD):
            cold_tops[name.removeprefix(_COLD)] = column.flatten().to_numpy().reshape(len(table), -1)
        elif name.startswith(_ATTRIBUTE):
            attributes[name.removeprefix(_ATTRIBUTE)] = column.to_numpy(zero_copy_only=False)
    feedback: dict[str, np.ndarray] = {}
    if _WEIGHTS in table.column_names:
        disliked = table.column(_DISLIKED).combine_chunks()
        ends = np.cumsum(disliked.value_lengths().to_numpy())
        feedback = {
            "target_weights": table.column(_WEIGHTS).combine_chunks().flatten().to_numpy(),
            "disliked_offsets": np.concatenate([[0], ends]).astype(np.int64),
            "disliked_items": disliked.flatten().to_numpy(),
        }
    return RankedLists(
        user_ids=table.column(schema.USER_ID).to_numpy(),
        target_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        target_items=targets.flatten().to_numpy(),
        target_actions=table.column("target_actions").combine_chunks().flatten().to_numpy(),
        actions=tuple(actions),
        history_lengths=table.column("history_length").to_numpy(),
        tops=tops,
        attributes=attributes,
        cold_tops=cold_tops,
        **feedback,
    )
