"""The training stream: which windows make up step s of epoch e, whatever the number of workers.

Every worker iterates over the same global batches, which depend on the seed alone, and takes its share of each by rank.
So a resumed run, or one on another number of workers, reads the same windows in the same steps. Memory holds one shard:
as many buckets as fit SHARD_EVENTS events, and at least one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.data.batching import Asked, Batch, Batcher, Windows, make_windows
from ctxrec.data.events import Histories, histories_from_table
from ctxrec.data.log_statistics import BUCKET_EVENTS, BucketEvents, LogScan
from ctxrec.data.prepared import PreparedData

SHARD_EVENTS = 10_000_000


@dataclass(frozen=True)
class Step:
    """This worker's share of one global batch, cut into micro-batches."""

    epoch: int
    step_in_epoch: int
    micro_batches: list[Batch]
    distinct_items: list[np.ndarray]  # of each micro-batch over all workers: items of histories and targets
    num_slots: int  # events that hold these items, over all workers
    asked: list[Asked] = field(
        default_factory=list
    )  # of each micro-batch over all workers; row r is with worker r % world. Empty with one worker


@dataclass(frozen=True)
class NewEvents:
    """Which windows a training reads that goes on from an earlier one.

    Attributes:
        since_us: events after this time, in microseconds, are new.
        replay: windows without new events that are read too, as a multiple of those with new ones.
    """

    since_us: int
    replay: float


class TrainStream:
    """Global batches of training windows over a prepared folder."""

    def __init__(
        self,
        data: PreparedData,
        log: LogScan,
        batcher: Batcher,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int,
        world: int,
        last_split: int = schema.TRAIN,
        new: NewEvents | None = None,
    ) -> None:
        """Plan the shards.

        Args:
            data: the prepared log.
            log: a scan of it, for the batcher's length of history.
            batcher: makes the batches.
            global_batch_size: windows of a step over all workers.
            micro_batch_size: windows of a worker that are processed at a time; 0: all of its step.
            seed: of the order.
            rank, world: of this worker.
            last_split: train on the events of the splits up to this one (schema.VALID for a refit).
            new: read only the windows with new events, and some others; None: all windows.
        """
        self.data = data
        self.batcher = batcher
        self.global_batch_size = global_batch_size
        per_worker = -(-global_batch_size // world)
        self.rows_at_once = min(micro_batch_size or per_worker, per_worker) * world
        self.seed, self.rank, self.world, self.last_split = seed, rank, world, last_split
        self._cached: tuple[tuple[int, ...], Histories] | None = None
        part = log.up_to(last_split)
        self.bucket_events: list[int] = part.events_K.tolist()
        self.bucket_windows: list[int] = part.windows_K.tolist()
        self.new = new
        if new is not None:
            counts = [self._count_new(bucket) for bucket in range(len(self.bucket_windows))]
            self.bucket_windows = [found + self._replayed(found, all_) for found, all_ in counts]

    @property
    def accumulation(self) -> int:
        """Micro-batches a step."""
        return -(-self.global_batch_size // self.rows_at_once)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; each shard's last batch may be short."""
        return sum(
            -(-sum(self.bucket_windows[b] for b in shard) // self.global_batch_size) for shard in self._shards(0)
        )

    @property
    def num_events(self) -> int:
        """Training events of one epoch."""
        return sum(self.bucket_events)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Step]:
        """The steps of an epoch from number `start` on."""
        index = 0
        for number, shard in enumerate(self._shards(epoch)):
            num_windows = sum(self.bucket_windows[b] for b in shard)
            num_steps = -(-num_windows // self.global_batch_size)
            if index + num_steps <= start:
                index += num_steps
                continue
            histories = self._read(shard)
            windows, order = self._shuffled(histories, epoch, number)
            for begin in range(0, len(order), self.global_batch_size):
                if index >= start:
                    rows = order[begin : begin + self.global_batch_size]
                    yield self._step(histories, windows, rows, epoch, index)
                index += 1

    def users(self, epoch: int, step: int) -> list[str]:
        """Ids of the users whose histories a step reads.

        Raises:
            IndexError: the epoch has fewer steps.
        """
        index = 0
        for number, shard in enumerate(self._shards(epoch)):
            num_steps = -(-sum(self.bucket_windows[b] for b in shard) // self.global_batch_size)
            if step < index + num_steps:
                histories = self._read(shard)
                windows, order = self._shuffled(histories, epoch, number)
                rows = order[(step - index) * self.global_batch_size :][: self.global_batch_size]
                return [str(user) for user in histories.users.ids[np.unique(windows.row[rows])]]
            index += num_steps
        raise IndexError(f"epoch {epoch} has {index} steps; asked for step {step}")

    def _shuffled(self, histories: Histories, epoch: int, number: int) -> tuple[Windows, np.ndarray]:
        """Windows of the epoch's shard `number`, and the order in which they are taken."""
        windows = make_windows(*self._spans(histories), self.batcher.history)
        rng = np.random.default_rng([self.seed, epoch, number])
        if self.new is None:
            return windows, rng.permutation(len(windows))
        is_new = self._is_new(windows, histories.events.times)
        wanted = sum(self.bucket_windows[b] for b in self._shards(epoch)[number]) - int(is_new.sum())
        replayed = rng.choice(np.flatnonzero(~is_new), wanted, replace=False)
        return windows, rng.permutation(np.concatenate([np.flatnonzero(is_new), replayed]))

    def _is_new(self, windows: Windows, times: np.ndarray) -> np.ndarray:
        """Which windows hold a new event, of which the last one is the newest: bool [windows]."""
        assert self.new is not None
        return np.asarray(times[windows.stop - 1] > self.new.since_us)

    def _count_new(self, bucket: int) -> tuple[int, int]:
        """Windows of a bucket that hold a new event, and all of them."""
        events = BucketEvents.of(self.data.read_bucket(bucket, BUCKET_EVENTS))
        inside = np.concatenate([[0], np.cumsum(events.split <= self.last_split)])
        stops = events.offsets[:-1] + np.diff(inside[events.offsets])
        windows = make_windows(events.offsets[:-1], stops, self.batcher.history)
        return int(self._is_new(windows, events.times).sum()), len(windows)

    def _replayed(self, new: int, all_windows: int) -> int:
        assert self.new is not None
        return min(round(self.new.replay * new), all_windows - new)

    def _step(self, histories: Histories, windows: Windows, rows: np.ndarray, epoch: int, index: int) -> Step:
        batches, distinct, num_slots, asked = [], [], 0, []
        for micro in range(self.accumulation):
            # Every worker has every micro-batch, so a short batch repeats rows with weight 0.
            part = rows[micro * self.rows_at_once : (micro + 1) * self.rows_at_once]
            mine = part[self.rank :: self.world]
            wanted = max(-(-len(part) // self.world), 1)
            padding = wanted - len(mine)
            batch = self.batcher.training(histories, windows.take(np.concatenate([mine, np.repeat(rows[:1], padding)])))
            if padding:
                batch.weights_BS[len(mine) :] = 0
            batches.append(batch)
            if self.world > 1:
                asked.append(self.batcher.asked(histories, windows.take(part)))
            spans = [slice(int(windows.start[w]), int(windows.stop[w])) for w in (part if len(part) else rows[:1])]
            num_slots += sum(s.stop - s.start for s in spans)
            distinct.append(np.unique(np.concatenate([histories.events.items[s] for s in spans])))
        return Step(epoch, index, micro_batches=batches, distinct_items=distinct, num_slots=num_slots, asked=asked)

    def _shards(self, epoch: int) -> list[list[int]]:
        """Buckets of each shard. The buckets are grouped in their own order; each epoch shuffles the groups."""
        groups: list[list[int]] = [[]]
        size = 0
        for bucket, events in enumerate(self.bucket_events):
            if groups[-1] and size + events > SHARD_EVENTS:
                groups.append([])
                size = 0
            groups[-1].append(bucket)
            size += events
        order = np.random.default_rng([self.seed, epoch]).permutation(len(groups))
        return [groups[g] for g in order]

    def _read(self, shard: list[int]) -> Histories:
        key = tuple(shard)
        if self._cached is None or self._cached[0] != key:
            self._cached = None  # free the old shard before the new one is read
            table = pa.concat_tables([self.data.read_bucket(b) for b in shard])
            self._cached = key, histories_from_table(table, self.data.features, self.data.kinds)
        return self._cached[1]

    def _spans(self, histories: Histories) -> tuple[np.ndarray, np.ndarray]:
        """Start and stop of each row's training events (the first ones, as splits follow time)."""
        offsets = histories.events.offsets
        inside = np.concatenate([[0], np.cumsum(histories.split <= self.last_split)])
        return offsets[:-1], offsets[:-1] + np.diff(inside[offsets])
