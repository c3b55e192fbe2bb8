"""A replica without HTTP: model, store, batches, and the thread of each."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException

from ctxrec.bundle.registry import Published, find_bundle, is_models, read_published, version_folder
from ctxrec.core.errors import UserError
from ctxrec.experiments.ab_test import Experiment, read_experiment
from ctxrec.live.opening import open_store
from ctxrec.live.store import LoggedEvent, StoreError
from ctxrec.retrieval.bundle_texts import NoEncoder
from ctxrec.retrieval.item_encoder import ItemEncoder
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.retriever import Retriever
from ctxrec.retrieval.slate.rules import Rules
from serve.api import RecommendRequest
from serve.arguments import AppArgs
from serve.arms import Arms, Call, ExposureLog, Version
from serve.engine import Answer, Engine, Reply, load_engine, use_threads
from serve.item_sync import Every, ItemSync
from serve.journal import FileWriter, Journal, without_effect
from serve.micro_batching import MicroBatcher
from serve.rule_file import RuleFile
from serve.service_metrics import Metrics
from serve.shown_lists import ShownLists
from serve.store_failures import StoreFailures
from serve.user_rows import UserRows

logger = logging.getLogger(__name__)

_EVENTS_AT_ONCE = 4096  # that go to the store in one write


class Replica:
    """Answers the calls of the HTTP routes: requests, events, items and users.

    All computing happens in one thread of its own: the event loop stays free for health checks, batches do not
    compete for cores, and the catalogue changes between batches. New items are encoded in another, and events and users
    go to the store in a third.

    Args:
        args: of the service.
        metrics: of this process.
        num_threads: that compute.
        service: name of the service, the same for all its replicas and for no other service.
    """

    def __init__(self, args: AppArgs, metrics: Metrics, *, num_threads: int, service: str = ""):
        self._args, self._metrics = args, metrics
        # Thread limits hold for the thread that sets them, hence the initializer.
        self._computing = ThreadPoolExecutor(1, "compute", initializer=use_threads, initargs=(num_threads,))
        self._encoding = ThreadPoolExecutor(1, "items", initializer=use_threads, initargs=(1,))
        self._writing = ThreadPoolExecutor(1, "store")
        self._store = open_store(args.store, durable=args.store_durable, on_failure=StoreFailures(metrics))
        self._pulling = ThreadPoolExecutor(1, "live")
        self._will_pull = False
        self._loading = ThreadPoolExecutor(1, "load", initializer=use_threads, initargs=(1,))
        self._rules = RuleFile(args.rules)
        self._arms = Arms()
        self._engine, self._items = self._first_version()
        self._rules.put_in_force(self._engine.retriever.slate_builder)
        self._users = UserRows(self._store, metrics.users)
        self._journal = Journal(self._store, lambda contexts: self._engine.check_contexts(contexts))
        self._shown = ShownLists(metrics.count_list_event)
        self._exposures = ExposureLog(args.exposures, every_s=args.event_files_every_s)
        self._batches = MicroBatcher(
            self._recommend_all, self._computing, max_size=args.max_batch_size, size=lambda call: self._size(call[0])
        )
        self._events = MicroBatcher(self._journal.append, self._writing, max_size=_EVENTS_AT_ONCE, size=len)
        self._num_waiting = 0
        spec = self._engine.retriever.recommender.spec
        folders = {"events": args.event_files, "items": args.item_files, "users": args.user_files}
        self._files = FileWriter(
            self._store,
            **folders,
            spec=spec,
            every_s=args.event_files_every_s,
            service=service or f"{args.run} in process {os.getpid()}",
            metrics=metrics,
        )
        self._others = Every(args.items_every_s, self._catch_up, "items of other replicas")
        self._refused = ""  # a published version that cannot be served
        self._refused_test: Experiment | None = None
        self._published = None
        if is_models(args.run):
            self._follow_test_at_start()
            self._published = Every(args.models_every_s, self._follow_models, "published models")
        self._watch = Every(args.rules_every_s, self._follow_rules, "rule file") if args.rules else None
        if args.load_encoder:
            self._encoding.submit(self._load_encoder)
        metrics.model.labels(self.model_version).set(1)

    @property
    def model_version(self) -> str:
        return self._engine.model_version

    def close(self) -> None:
        """Stop the threads and write what is left to be written."""
        for each in (self._published, self._watch, self._others):
            if each is not None:
                each.stop()
        for pool in (self._loading, self._encoding, self._computing, self._writing, self._pulling):
            pool.shutdown()
        self._files.stop()
        self._exposures.stop()
        self._store.close()

    def check_room(self, requests: int = 1) -> None:
        """Refuse a call when too many requests are waiting: at once, before work is done on it.

        A replica where nothing waits takes a call of any size.
        """
        if self._num_waiting and self._num_waiting + requests > self._args.max_waiting:
            raise HTTPException(503, "too many requests are waiting; try again later", headers={"Retry-After": "1"})

    async def recommend(self, requests: Sequence[RecommendRequest], request_id: str | None = None) -> Reply:
        self._engine.check_work(requests)
        with self._admitted(self._size(requests)):
            return await self._batches.submit((requests, request_id))

    def _size(self, requests: Sequence[RecommendRequest]) -> int:
        """How many requests a call counts as: each candidate that a second stage reads takes as long as some plain ones."""
        engines = (self._engine, *(engine for engine, _ in self._arms.versions.values()))
        return sum(max(1, *(engine.num_reranked(body) for engine in engines)) for body in requests)

    async def similar(self, item_id: str, k: int) -> Answer | None:
        with self._admitted():
            return await self._in(self._computing, lambda: self._engine.similar(item_id, k))

    async def look(self, call: Callable[[Engine], Any]) -> Any:
        """The result of a function of the present version's engine, which runs between two batches."""
        with self._admitted():
            return await self._in(self._computing, lambda: call(self._engine))

    async def append(self, events: Sequence[LoggedEvent]) -> int | Exception:
        """How many events are on disk now, or why they are not."""
        with self._admitted():
            result = await self._events.submit(events)
        if isinstance(result, int):
            self._pull_soon()
            self._metrics.events.inc(result)
            recommender = self._engine.retriever.recommender
            self._arms.count_events(events, list(recommender.kinds.actions), self._metrics.arm_events)
            self._shown.credit(events, recommender.kinds)
        return result

    def without_effect(self, events: Sequence[LoggedEvent]) -> list[dict[str, Any]]:
        """What of stored events changes no recommendation of the present version, as the API's warnings."""
        model = self._engine.retriever.recommender
        known, unknown = model.item_position, model.contexts.unknown_values
        actions, valued = model.kinds.actions, model.kinds.are_graded
        return without_effect(events, actions=actions, known_items=known, values_count=valued, unknown_context=unknown)

    async def put_items(self, rows: Sequence[Mapping[str, Any]]) -> int:
        with self._admitted():
            accepted = await self._in(self._encoding, lambda: self._put(rows))
        self._metrics.items.inc(accepted)
        return accepted

    async def remove_item(self, item_id: str) -> bool:
        with self._admitted():
            removed = await self._in(self._encoding, lambda: self._remove(item_id))
        self._metrics.items.inc(removed)
        return removed

    async def about_users(self, call: Callable[[UserRows, Retriever[Recommender]], Any]) -> Any:
        """The result of a call about posted users, which runs in the thread that writes to the store."""
        with self._admitted():
            return await self._in(self._writing, lambda: call(self._users, self._engine.retriever))

    def _put(self, rows: Sequence[Mapping[str, Any]]) -> int:
        accepted = self._items.put(rows, self._between_batches)
        self._catch_up_arms()
        return accepted

    def _remove(self, item_id: str) -> bool:
        removed = self._items.remove(item_id, self._between_batches)
        self._catch_up_arms()
        return removed

    def count(self, reply: Reply, seconds: Mapping[str, float]) -> None:
        """Take note of an answered call, whose own stages took `seconds`."""
        self._metrics.stages(reply.seconds)
        self._metrics.stages(seconds)
        self._metrics.call_requests.observe(len(reply.answers))
        answers = [answer for answer in reply.answers if isinstance(answer, Answer)]
        self._metrics.fallbacks.inc(sum(answer.fallback for answer in answers))
        self._metrics.degraded.inc(sum(answer.degraded is not None for answer in answers))
        for answer in answers:
            if answer.experiment is not None:
                self._metrics.arm_answers.labels(*answer.experiment, answer.model_version).inc()

    def _first_version(self) -> tuple[Engine, ItemSync]:
        """The served version, or the latest earlier version that is not damaged."""
        if not is_models(self._args.run):
            return self._load(self._args.run)
        now = read_published(self._args.run)
        for version in reversed(now.previous[-2:]):
            try:
                return self._load_version(now.version)
            except UserError as error:
                logger.error("the published version is refused; starting with an earlier one: %s", error)
                now = Published(version)
        return self._load_version(now.version)

    def _load_version(self, version: str) -> tuple[Engine, ItemSync]:
        """A published version.

        Raises:
            UserError: it is damaged, or not one that this code can load.
        """
        try:
            return self._load(version_folder(self._args.run, version))
        except (UserError, OSError):  # files that cannot be read may be readable the next time
            raise
        except Exception as error:
            raise UserError(f"version {version} does not load: {' '.join(str(error).split())[:500]}") from error

    def _load(self, bundle: str) -> tuple[Engine, ItemSync]:
        """A version of the model with all items that the store knows, warmed up; the old one serves meanwhile."""
        engine = self._loading.submit(
            load_engine, bundle, self._args.max_batch_size, self._store, overrides=self._args.overrides
        ).result()
        recommender = engine.retriever.recommender
        recommender.set_precision(self._args.precision)
        if engine.retriever.reranker is not None:
            engine.retriever.reranker.set_precision(self._args.precision)
        recommender.keep_histories(self._args.history_cache_mb << 20)
        encoder = ItemEncoder(find_bundle(bundle), recommender)
        items = ItemSync(engine.retriever, encoder, self._store)
        try:
            self._loading.submit(items.catch_up).result()
        except (NoEncoder, StoreError) as error:
            logger.warning("going on without the items that came after training: %s", error)
        return engine, items

    def _follow_models(self) -> None:
        self._follow()
        self._follow_test()

    def _follow(self) -> None:
        """Take over the published version, if it is another one."""
        now = read_published(self._args.run)
        if now.version in (self.model_version, self._refused):
            return
        try:
            engine, items = self._version(now.version)
        except UserError as error:
            logger.error("the published version %s is refused, %s stays: %s", now.version, self.model_version, error)
            self._refused = now.version  # until another one is published
            self._metrics.swaps.labels("refused").inc()
            return
        self._refused = ""
        old = self.model_version
        # From the thread of the items: what it takes over meanwhile would reach only the old version.
        self._encoding.submit(self._switch, engine, items).result()
        self._metrics.swaps.labels("done").inc()
        self._metrics.model.labels(old).set(0)
        self._metrics.model.labels(self.model_version).set(1)
        logger.info("serving %s, before %s", self.model_version, old)

    def _follow_test(self) -> None:
        """Take over the A/B test that runs now, if it is another one: all its arms or, where one is refused, none."""
        test = read_experiment(self._args.run)
        if test == self._arms.test or (test is not None and test == self._refused_test):
            return
        try:
            versions = {arm.version: self._version(arm.version) for arm in test.arms} if test is not None else {}
        except UserError as error:
            logger.error("the A/B test %s is refused, all stays as it is: %s", test.name if test else "", error)
            self._refused_test = test
            self._metrics.swaps.labels("refused").inc()
            return
        self._refused_test = None
        self._encoding.submit(self._switch_arms, Arms(test, versions)).result()
        logger.info("A/B test: %s", test or "none")

    def _follow_test_at_start(self) -> None:
        try:
            self._follow_test()
        except UserError as error:  # looked at again and again; until it is right everybody gets the current version
            logger.error("the A/B test is refused: %s", error)

    def _version(self, version: str) -> Version:
        """A version that is loaded already, or else loaded now."""
        if version == self.model_version:
            return self._engine, self._items
        return self._arms.versions.get(version) or self._load_version(version)

    def _switch_arms(self, arms: Arms) -> None:
        """The whole test changes between two batches."""

        def change() -> None:
            for engine, _ in arms.versions.values():
                self._rules.put_in_force(engine.retriever.slate_builder)
            self._arms = arms

        for _, items in arms.versions.values():
            self._catch_up_one(items)
        self._between_batches(change)

    def _switch(self, engine: Engine, items: ItemSync) -> None:
        """Model, catalogue and index change as one, between two batches."""
        self._catch_up_one(items)

        def change() -> None:
            self._rules.put_in_force(engine.retriever.slate_builder)
            self._engine, self._items = engine, items

        self._between_batches(change)

    def _follow_rules(self) -> None:
        """Take over the rule file, if it has changed."""
        try:
            rules = self._rules.look()
            if rules is None:
                return
            self._between_batches(lambda: self._take_over(rules))
        except UserError as error:
            logger.error("the changed rule file is refused, the rules before it stay: %s", error)
            self._metrics.rule_changes.labels("refused").inc()
            return
        self._metrics.rule_changes.labels("done").inc()
        logger.info("rules of %s are in force", self._args.rules)

    def _take_over(self, rules: Rules) -> None:
        self._rules.take_over(rules, self._engine.retriever.slate_builder)
        for engine, _ in self._arms.versions.values():
            self._rules.put_in_force(engine.retriever.slate_builder)

    def _load_encoder(self) -> None:
        try:
            self._items.load_encoder()
        except NoEncoder as error:
            logger.warning("no new item can be taken: %s", error)

    def _pull_soon(self) -> None:
        """Read what was posted, so that it counts for all users; posts that come meanwhile wait for one further read."""
        if not self._will_pull:
            self._will_pull = True
            self._pulling.submit(self._pull)

    def _pull(self) -> None:
        self._will_pull = False  # a post from now on asks for another read
        for engine in {id(e): e for e in (self._engine, *(e for e, _ in self._arms.versions.values()))}.values():
            engine.live.pull()

    def _catch_up(self) -> None:
        self._pulling.submit(self._pull).result()
        self._encoding.submit(lambda: self._items.catch_up(self._between_batches)).result()
        if self._arms.versions:
            self._encoding.submit(self._catch_up_arms).result()
        self._metrics.live_items.set(self._engine.retriever.num_live_items)
        if (cache := self._engine.retriever.recommender.cache) is not None:
            for result, count in zip(("kept", "read"), cache.take_counts(), strict=True):
                self._metrics.histories.labels(result).inc(count)

    def _catch_up_arms(self) -> None:
        for _, items in self._arms.versions.values():
            if items is not self._items:
                self._catch_up_one(items)

    def _catch_up_one(self, items: ItemSync) -> None:
        try:
            items.catch_up(self._between_batches)
        except (NoEncoder, StoreError) as error:
            logger.warning("some items may be missing for a moment: %s", error)

    def _between_batches(self, change: Callable[[], None]) -> None:
        self._computing.submit(change).result()

    def _recommend_all(self, calls: Sequence[Call]) -> list[Reply]:
        replies = self._arms.recommend(calls, self._engine, self._exposures.add)
        self._shown.add(calls, replies)
        return replies

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    @contextmanager
    def _admitted(self, requests: int = 1) -> Iterator[None]:
        """Count these requests among the waiting ones inside this context, or refuse them when there are too many."""
        self.check_room(requests)
        self._num_waiting += requests
        self._metrics.waiting.set(self._num_waiting)
        try:
            yield
        finally:
            self._num_waiting -= requests
            self._metrics.waiting.set(self._num_waiting)
