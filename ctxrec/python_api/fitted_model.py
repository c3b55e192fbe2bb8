"""A trained model in Python: recommends, finds similar items, explains, evaluates, saves."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ctxrec.core import schema, storage
from ctxrec.core.config import Config, load_config
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.run_paths import BundlePaths, RunPaths
from ctxrec.python_api.frames import Kind, from_arrow, kind_of, to_arrow
from ctxrec.python_api.notebook import Evaluation, Report
from ctxrec.python_api.request_arguments import (
    Id,
    attributes_of,
    context_of,
    events_of,
    filter_rules,
    id_text,
    id_texts,
    strength_of,
    truth_of,
    users_of,
    whole_number,
)
from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.heard_words import why_unheard
from ctxrec.retrieval.item_probabilities import NO_CALIBRATION, list_probabilities
from ctxrec.retrieval.no_effect import (
    NO_SECOND_STAGE,
    Note,
    not_calibrated,
    notes_of,
    notes_of_events,
    notes_of_ids,
    says_nothing,
    unknown_users,
    unread_values,
)
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.retriever import Retriever, load_retriever
from ctxrec.retrieval.short_lists import is_expected, why_short


class Model:
    """A finished training. `ctxrec.fit`, `ctxrec.train` and `ctxrec.load` make it.

    Args:
        run: folder of the training, path or URI.
        kind: which tables the methods return: "pandas", "polars" or "arrow".
        kept: the temporary folder that holds the run and goes with the model; None where the run has a folder of its own.
    """

    def __init__(self, run: str, kind: Kind, kept: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.run, self.kind, self._kept = run, kind, kept

    def __repr__(self) -> str:
        model = self._retriever.recommender
        return (
            f"ctxrec.Model({len(model.item_ids):,} items, {len(model.user_row):,} users, version {model.model_version})"
        )

    @cached_property
    def config(self) -> Config:
        """All options of the training."""
        return load_config(base=BundlePaths(RunPaths(self.run).bundle).config)

    @cached_property
    def _retriever(self) -> Retriever[Recommender]:
        options = self.config
        bundle, use = RunPaths(self.run).bundle, options.rerank.use
        return load_retriever(bundle, options.index, rerank=use, on_request=True, diversity=options.diversity)

    def recommend(
        self,
        user: Id | Sequence[Id] | None = None,
        k: int = 10,
        *,
        context: Mapping[str, Any] | None = None,
        history: Sequence[Id | Mapping[str, Any]] | None = None,
        exclude: Iterable[Id] = (),
        dislike: Iterable[Id] = (),
        filter: Mapping[str, Any] | None = None,
        allow: Iterable[Id] | None = None,
        diversity: float | None = None,
        user_attributes: Mapping[str, Any] | None = None,
        query: str | None = None,
        rerank: bool | None = None,
        probability: bool = False,
    ) -> Any:
        """The best k items for a user, for each of several users, or for a history. It means what the HTTP call means.

        Args:
            user: id of a user; several ids give one list each; None with a `history` is somebody without a name. Ids that
                the model does not know are named in a warning; without a history their lists go by context and popularity.
            k: number of items of a list.
            context: what is known when the list is asked for, by name; `timestamp` is in epoch seconds, UTC.
            history: replaces the stored history: item ids, oldest first, or mappings with `item_id` and, where they are
                known, `action`, `timestamp` (epoch seconds, UTC) and `context`.
            exclude: items that are not wanted.
            dislike: items the like of which is not wanted either; what is like them falls.
            filter: rules by item column: a list of values of which an item needs one, or a mapping with some of `any`,
                `none`, `min` and `max`.
            allow: items that alone are wanted; None: all.
            diversity: strength of MMR from 0 to 1; None takes that of the options.
            user_attributes: by column of the user file, in the place of those that are stored for the user (of all users,
                where several are asked for); what is left out stays, and None says that it is not known. In the HTTP call
                this is `user`.
            query: free text that the list should fit besides the taste, such as "quiet sci-fi for tonight". A model
                without a text encoder warns that it has no effect.
            rerank: whether the second stage (`ctxrec.rerank`) ranks the best candidates again; None takes `rerank.use` of
                the options. A model without one warns that it has no effect.
            probability: adds a column `probability`, calibrated on the validation events; `probability_of` says what it is
                of. A model without them warns that it has no effect.

        Returns:
            A table with the columns `item_id`, `score` and, where they are asked for, `probability` and, where the catalogue
            has texts, `title`, best item first. With several users the first column is `user_id`.

        Raises:
            UserError: an argument is of a kind that the HTTP call would not take, such as a text in the place of a list of
                ids, or the context, a rule or an event of the history is not one of this model. `query` has at most 1,000
                characters. How large `k` and the lists may be is limited over HTTP alone, to protect a service.
        """
        num = whole_number(k, "k")
        users, several = users_of(user, has_history=history is not None)
        retriever = self._retriever
        unliked = id_texts(dislike, "dislike")
        requests = self._requests(users, context, history, query, user_attributes, unliked)
        said, probable = [truth_of(rerank, "rerank")] * len(users), bool(truth_of(probability, "probability"))
        rules = filter_rules(filter)
        only, unwanted_ids = None if allow is None else id_texts(allow, "allow"), id_texts(exclude, "exclude")
        allowed = retriever.compile_filter(rules, allow=only)
        with retriever.catalogue.reading():
            notes = [
                *notes_of_ids(retriever, history=events_of(history), allow=only, exclude=unwanted_ids, dislike=unliked),
                *self._told(events_of(history) or (), rules, context, user_attributes, query, rerank),
                *(not_calibrated(retriever, query, unliked) if probable else ()),
            ]
        for note in notes:
            warnings.warn(note.text, stacklevel=2)
        unwanted = retriever.positions(unwanted_ids)
        strengths = [strength_of(diversity)] * len(users)
        if rerank and retriever.reranker is None:
            warnings.warn(f"rerank has no effect: {NO_SECOND_STAGE}", stacklevel=2)
        scored = retriever.scored(requests)
        found = retriever.top_k(
            requests,
            num,
            exclude=[unwanted] * len(users),
            allowed=allowed,
            diversity=strengths,
            rerank=said,
            scored=scored,
        )
        with retriever.catalogue.reading():
            short = [
                why_short(
                    retriever, requests.take(np.array([n])), len(items), num, rules=rules, allow=only, exclude=unwanted
                )
                for n, (items, _) in enumerate(found)
                if len(items) < num and not is_expected(len(items), notes, only)
            ]
        if told := [note.text for note in short]:
            others = f"; those of {len(told) - 1} more users are short too" if len(told) > 1 else ""
            warnings.warn(told[0] + others, stacklevel=2)
        if probable and retriever.recommender.calibration is None:
            warnings.warn(f"probability has no effect: {NO_CALIBRATION}", stacklevel=2)
        lists = [items for items, _ in found]
        asked = [probable] * len(lists)
        probabilities = list_probabilities(retriever.recommender, requests, lists, asked, scored=scored)
        tables = [self._list(*one, p) for one, p in zip(found, probabilities, strict=True)]
        if not several:
            return from_arrow(tables[0], self.kind)
        ids = [name for name, table in zip(users, tables, strict=True) for _ in range(len(table))]
        joined = pa.concat_tables(tables or [self._list(*_NOTHING)])
        return from_arrow(joined.add_column(0, "user_id", pa.array(ids, pa.string())), self.kind)

    @property
    def probability_of(self) -> str | None:
        """What `recommend(..., probability=True)` tells the probability of: "success" (if the user meets the item now) or
        "next" (the item is the user's next event); None: the model tells none."""
        calibration = self._retriever.recommender.calibration
        return None if calibration is None else calibration.of

    def similar(self, item: Id, k: int = 10) -> Any:
        """The k items most like one, as a table with `item_id`, `score` and `title`.

        Raises:
            UserError: `k` is no whole number of at least 1, or the catalogue lacks the item.
        """
        num = whole_number(k, "k")
        return from_arrow(self._list(*self._retriever.similar(self._position(item), num)), self.kind)

    def explain(
        self,
        user: Id | None,
        item: Id,
        *,
        context: Mapping[str, Any] | None = None,
        history: Sequence[Id | Mapping[str, Any]] | None = None,
        dislike: Iterable[Id] = (),
        user_attributes: Mapping[str, Any] | None = None,
        query: str | None = None,
    ) -> Any:
        """Why an item has its score for a user; the arguments are those of `recommend`.

        Returns:
            A table with the columns `part`, `name` and `effect`. The effects of the part `source` sum to the score. The
            parts `history`, `context` and `user` say by how much the score would fall without an item, a feature or an
            attribute.

        Raises:
            UserError: the catalogue lacks the item, or the context or the history is not one of this model.
        """
        from ctxrec.retrieval.explain import explain

        asks = None if user is None else id_text(user)
        if asks is None and history is None:
            raise UserError("neither a user nor a history is given; expected one of them")
        position, unliked = self._position(item), id_texts(dislike, "dislike")
        request = self._requests([asks], context, history, query, user_attributes, unliked)
        with self._retriever.catalogue.reading():
            notes = [
                *notes_of_ids(self._retriever, history=events_of(history), dislike=unliked),
                *self._told(events_of(history) or (), {}, context, user_attributes, query, rerank=False),
            ]
        for note in notes:
            warnings.warn(note.text, stacklevel=2)
        (why,) = explain(self._retriever.recommender, request, np.array([position]))
        parts = {"source": why.sources, "history": why.history, "context": why.context, "user": why.user}
        rows = [(part, name, effect) for part, effects in parts.items() for name, effect in effects.items()]
        columns = zip(*rows, strict=True)
        return from_arrow(pa.table(dict(zip(("part", "name", "effect"), map(list, columns), strict=True))), self.kind)

    def evaluate(self, test: Any = None, *, split: str = "test") -> Evaluation:
        """How well the model ranks.

        Args:
            test: a table of later events, with the columns of the log; None takes a split of the log that the model was
                trained on, next to baselines, and writes the report (`ctxrec.evaluate`).
            split: "test" or "valid", where no table is given.

        Raises:
            UserError: there is nothing to evaluate on, or the table lacks a column.
        """
        options = self.config.evaluate
        if test is not None:
            from ctxrec.python_api.held_out_table import evaluate_table

            table = to_arrow(test, what="test")
            return Evaluation(
                evaluate_table(self._retriever.recommender, table, ks=options.ks, resamples=options.bootstrap)
            )
        from ctxrec.evaluation.offline import evaluate_run

        return Evaluation(evaluate_run(self.run, split=split, config=self.config), self.run)

    def report(self) -> Report:
        """The report of the run, which shows inline in a notebook. A run without one is evaluated first.

        Raises:
            UserError: the run was not evaluated, and has no test events.
        """
        if not storage.exists(RunPaths(self.run).report):
            self.evaluate()
        return Report(RunPaths(self.run).report)

    def save(self, path: str) -> str:
        """Copy the run into a folder, from which `ctxrec.load` and every command read it; returns the folder.

        Raises:
            UserError: the folder is there already.
        """
        path = os.path.abspath(path)
        if os.path.exists(path):
            raise UserError(f"{path} is there already; give another folder, or delete it")
        shutil.copytree(storage.fetch_dir(self.run, scratch=storage.temporary_folder()), path)
        if os.path.isdir(data := os.path.join(path, "data")):
            storage.write_json(RunPaths(path).manifest, read_run_manifest(path) | {"data_path": data})
        return path

    def _requests(
        self,
        users: Sequence[str | None],
        context: Mapping[str, Any] | None,
        history: Sequence[Id | Mapping[str, Any]] | None,
        query: str | None,
        user_attributes: Mapping[str, Any] | None,
        dislike: Sequence[str] = (),
    ) -> Any:
        if (
            history is None
            and (told := unknown_users(users, self._retriever.recommender.user_row.__contains__)) is not None
        ):
            warnings.warn(told, stacklevel=3)
        if not says_nothing(query) and (reason := why_unheard(self._retriever.recommender)) is not None:
            warnings.warn(f"the query has no effect: {reason}", stacklevel=3)
        events, known, about = events_of(history), context_of(context), attributes_of(user_attributes)
        raw = [
            RawRequest(user_id=user, context=known, history=events, user=about, dislike=dislike, query=query)
            for user in users
        ]
        return self._retriever.recommender.make_requests(raw, including_now=True)[0]

    def _told(
        self,
        events: Sequence[RawEvent],
        rules: Mapping[str, ColumnRule],
        context: Mapping[str, Any] | None,
        user_attributes: Mapping[str, Any] | None,
        query: str | None,
        rerank: bool | None,
    ) -> list[Note]:
        """What is to be said of the values of a request that the model can read."""
        model, known, about = self._retriever.recommender, context_of(context), attributes_of(user_attributes)
        return [
            *unread_values(model, events),
            *notes_of_events(model, events),
            *notes_of(self._retriever, rules, known, about, query=query, rerank=rerank),
        ]

    def _list(self, positions: np.ndarray, scores: np.ndarray, probabilities: np.ndarray | None = None) -> pa.Table:
        """Items with their scores, probabilities where they are told and, where the catalogue has texts, their titles."""
        items = self._retriever.recommender.items
        ids = pa.array(self._retriever.item_ids(positions), pa.string())
        columns = {"item_id": ids, "score": pa.array(scores, pa.float32())}
        columns |= {} if probabilities is None else {"probability": pa.array(probabilities, pa.float64())}
        titles = items.column(schema.ITEM_TITLE)
        if titles.null_count < len(titles):
            columns["title"] = titles.combine_chunks().take(pa.array(positions, pa.int64()))
        return pa.table(columns)

    def _position(self, item: Id) -> int:
        position = self._retriever.recommender.item_position.get(id_text(item))
        if position is None:
            raise UserError(f"the catalogue has no item {item!r}; expected an id of the log or the item table")
        return position


_NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.float32))


def kind_or(table: Any, default: Kind) -> Kind:
    """The kind of a table, or a default where it is none, as a path."""
    return kind_of(table) or default
