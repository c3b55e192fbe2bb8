"""Ragged arrays of events in NumPy: the events of all rows lie end to end, without a copy for each user.

Legend: N rows (users or requests), E events of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.data.feedback import EventKinds
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.user_ids import UserIds

US = 1_000_000  # microseconds a second
ACTION_BITS = 63
MAX_NUMBER = 3.4e38  # the largest size of a number that features, which are float32, can hold
EARLIEST_S, LATEST_S = -62_135_596_800, 253_402_300_799  # epoch seconds of the years 1 to 9999


@dataclass(frozen=True)
class Context:
    """Context features of events or of requests, each array of the same length.

    cat: int32 codes; the time context (hour, weekday, month) lies here too, as int8 or int32, shifted by FIRST_CODE.
    num: float32, NaN = missing. text: object arrays of str or None.
    """

    cat: dict[str, np.ndarray] = field(default_factory=dict)
    num: dict[str, np.ndarray] = field(default_factory=dict)
    text: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self, index: np.ndarray | slice) -> Context:
        def pick(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[index] for name, values in arrays.items()}

        return Context(cat=pick(self.cat), num=pick(self.num), text=pick(self.text))


@dataclass(frozen=True)
class Events:
    """Events of N rows end to end: row n owns [offsets[n], offsets[n + 1]), oldest first."""

    offsets: np.ndarray  # int64 [N + 1]
    items: np.ndarray  # int32 [E]
    times: np.ndarray  # int64 [E] microseconds
    actions: np.ndarray  # int16 [E]
    context: Context  # [E]

    @property
    def lengths(self) -> np.ndarray:
        """Number of events of each row: int64 [N]."""
        return np.diff(self.offsets)

    def row(self, n: int) -> slice:
        return slice(int(self.offsets[n]), int(self.offsets[n + 1]))

    def cut(self, starts: np.ndarray, stops: np.ndarray) -> Events:
        """Events [starts[n], stops[n]) (absolute positions) of each row n."""
        index, offsets = ranges(starts, stops)
        return Events(
            offsets=offsets,
            items=self.items[index],
            times=self.times[index],
            actions=self.actions[index],
            context=self.context.take(index),
        )

    def keep(self, kept: np.ndarray) -> Events:
        """The same rows with only those of their events for which `kept`, bool [E], is true."""
        index = np.flatnonzero(kept)
        return Events(
            offsets=np.concatenate([[0], np.cumsum(kept)])[self.offsets].astype(np.int64),
            items=self.items[index],
            times=self.times[index],
            actions=self.actions[index],
            context=self.context.take(index),
        )


@dataclass(frozen=True)
class Users:
    """User ids and attributes of N rows.

    cat: int32 codes [N]. num: float32 [N], NaN = missing. lists: int32 codes [N, M] of attributes with several values,
    padded with MISSING. text: object arrays [N] of str or None.
    """

    ids: Any  # object array [N], or `UserIds` of a mapped file, which is indexed in the same way
    cat: dict[str, np.ndarray] = field(default_factory=dict)
    num: dict[str, np.ndarray] = field(default_factory=dict)
    lists: dict[str, np.ndarray] = field(default_factory=dict)
    text: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def attributes(self) -> dict[str, np.ndarray]:
        """All attributes by name: [N] or, of lists, [N, M] each."""
        return {**self.cat, **self.num, **self.lists, **self.text}

    def take(self, index: np.ndarray) -> Users:
        def pick(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[index] for name, values in arrays.items()}

        return Users(
            self.ids[index], cat=pick(self.cat), num=pick(self.num), lists=pick(self.lists), text=pick(self.text)
        )


@dataclass(frozen=True)
class Histories:
    """A bucket of user histories with the split of each event."""

    users: Users
    events: Events
    split: np.ndarray  # int8 [E]
    weights: np.ndarray | None = (
        None  # float32 [E], of each event as a target (`ctxrec.data.feedback`); None: not asked for
    )

    def __len__(self) -> int:
        return len(self.users.ids)


def action_sets(codes: np.ndarray) -> np.ndarray:
    """Action codes as sets of one action each, int64: bit c stands for code c, and the last bit for all higher codes.

    >>> action_sets(np.array([0, 2])).tolist()
    [1, 4]
    """
    return np.int64(1) << np.minimum(codes.astype(np.int64), ACTION_BITS - 1)


def ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions start..stop of all rows end to end, and the offsets of each row in them.

    >>> ranges(np.array([0, 5]), np.array([2, 8]))[0].tolist()
    [0, 1, 5, 6, 7]
    """
    lengths = np.maximum(stops - starts, 0)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return index, offsets


def histories_from_table(
    table: pa.Table, features: FeatureMeta, kinds: EventKinds | None = None, *, ids: UserIds | None = None
) -> Histories:
    """The table of a bucket (`PreparedData.read_bucket`) as arrays; with `kinds` also the weights of events as targets.

    With `ids` these are the ids of the users; else they are made objects of Python.
    """
    table = table.combine_chunks()

    def flat(name: str) -> np.ndarray:
        return one_piece(table.column(name)).flatten().to_numpy(zero_copy_only=False)

    items = one_piece(table.column(schema.EVENT_ITEMS))
    lengths = items.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    cat = {name: flat(name) + np.int8(schema.FIRST_CODE) for name in schema.TIME_CONTEXT}  # a byte an event
    cat |= {name: flat(schema.context_column(name)) for name in features.context_categories}
    num = {name: flat(schema.context_column(name)) for name in features.context_numbers}
    text = {name: flat(schema.context_column(name)) for name in features.context_texts}
    single = [name for name in features.user_categories if name not in features.user_lists]

    def of_user(name: str) -> np.ndarray:
        return table.column(schema.user_column(name)).to_numpy(zero_copy_only=False)

    users = Users(
        ids=table.column(schema.USER_ID).to_numpy(zero_copy_only=False) if ids is None else ids,
        cat={n: table.column(schema.user_column(n)).to_numpy() for n in single},
        num={n: of_user(n).astype(np.float32) for n in features.user_numbers},
        lists={
            n: _code_lists(table.column(schema.user_column(n)).combine_chunks(), width)
            for n, width in features.user_lists.items()
        },
        text={n: of_user(n) for n in features.user_texts},
    )
    events = Events(
        offsets=offsets,
        items=flat(schema.EVENT_ITEMS),
        times=flat(schema.EVENT_TIMES),
        actions=flat(schema.EVENT_ACTIONS),
        context=Context(cat=cat, num=num, text=text),
    )
    weights = None
    if kinds is not None:
        weights = kinds.weights(events.actions, flat(schema.EVENT_VALUES) if kinds.weighs_values else None)
    return Histories(users=users, events=events, split=flat(schema.EVENT_SPLIT), weights=weights)


def one_piece(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece; without a copy where it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _code_lists(column: pa.ListArray, width: int) -> np.ndarray:
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return padded_codes(column.flatten().to_numpy(), lengths, width)


def padded_codes(codes: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """Lists of codes end to end as rows of a matrix, padded with MISSING: int32 [N, width]; what does not fit is left out.

    >>> padded_codes(np.array([5, 6, 7]), np.array([2, 0, 1]), 2).tolist()
    [[5, 6], [0, 0], [7, 0]]
    """
    padded = np.full((len(lengths), width), schema.MISSING, np.int32)
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = place < width
    padded[row[kept], place[kept]] = codes[kept]
    return padded


def widened(codes: np.ndarray, width: int) -> np.ndarray:
    """Lists of codes [N, M] with room for more values: int32 [N, max(M, width)]."""
    return np.pad(codes, ((0, 0), (0, max(width - codes.shape[1], 0))), constant_values=schema.MISSING)


def concat_users(parts: list[Users]) -> Users:
    """The rows of several `Users` as those of one."""
    assert parts
    width = {name: max(part.lists[name].shape[1] for part in parts) for name in parts[0].lists}
    return Users(
        ids=np.concatenate([p.ids for p in parts]),
        cat=concat_arrays([p.cat for p in parts]),
        num=concat_arrays([p.num for p in parts]),
        lists=concat_arrays([{n: widened(codes, width[n]) for n, codes in p.lists.items()} for p in parts]),
        text=concat_arrays([p.text for p in parts]),
    )


def concat_events(parts: list[Events]) -> Events:
    """The rows of several `Events` as those of one."""
    assert parts
    return Events(
        offsets=concat_offsets([p.offsets for p in parts]),
        items=np.concatenate([p.items for p in parts]),
        times=np.concatenate([p.times for p in parts]),
        actions=np.concatenate([p.actions for p in parts]),
        context=concat_contexts([p.context for p in parts]),
    )


def concat_offsets(parts: list[np.ndarray]) -> np.ndarray:
    """Offsets of the rows of several parts as those of one: int64 [N + 1]."""
    return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(offsets) for offsets in parts]))]).astype(np.int64)


def concat_arrays(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of one name joined end to end, [N] each."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def concat_contexts(parts: list[Context]) -> Context:
    """Contexts of several parts as one."""
    return Context(
        cat=concat_arrays([c.cat for c in parts]),
        num=concat_arrays([c.num for c in parts]),
        text=concat_arrays([c.text for c in parts]),
    )


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip


HOURS = ("00-05 h", "06-11 h", "12-17 h", "18-23 h")
