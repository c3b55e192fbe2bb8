"""Micro-batches: the requests that arrive while one batch is computed make the next batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any


class MicroBatcher:
    """Joins the items of many callers into batches, and calls a function with each batch.

    An idle service answers at once and a busy one fills its batches, without a waiting time to tune.
    `ray.serve.batch` closes its batches by the clock, while the one before is still computing: under load
    they stay small, and with no load everybody waits.

    Args:
        compute: items to results of the same number and order; runs in `executor`.
        max_size: size of a batch, at most; an item that is larger makes one alone.
        size: of an item.
    """

    def __init__(
        self,
        compute: Callable[[list[Any]], Sequence[Any]],
        executor: Executor,
        *,
        max_size: int,
        size: Callable[[Any], int] = lambda item: 1,
    ):
        self._compute = compute
        self._executor = executor
        self._max_size = max_size
        self._size = size
        self._queue: deque[tuple[Any, asyncio.Future]] = deque()
        self._worker: asyncio.Task | None = None

    async def submit(self, item: Any) -> Any:
        """The result of one item; what `compute` raises is raised for all items of its batch."""
        future = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                batch = self._next_batch()
                if batch:
                    computing = loop.run_in_executor(self._executor, self._compute, [item for item, _ in batch])
                    await self._hand_out(computing, [future for _, future in batch])
        finally:
            self._worker = None

    def _next_batch(self) -> list[tuple[Any, asyncio.Future]]:
        batch: list[tuple[Any, asyncio.Future]] = []
        room = self._max_size
        while self._queue and (not batch or self._size(self._queue[0][0]) <= room):
            item, future = self._queue.popleft()
            if not future.cancelled():  # else the client has gone
                batch.append((item, future))
                room -= self._size(item)
        return batch

    async def _hand_out(self, computing: asyncio.Future, futures: list[asyncio.Future]) -> None:
        try:
            results = await computing
        except Exception as error:  # whatever went wrong is the callers' to see, and must not stop later batches
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, result in zip(futures, results, strict=True):
            if not future.done():  # the client may have gone meanwhile
                future.set_result(result)
