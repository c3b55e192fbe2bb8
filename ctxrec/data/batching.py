"""Turn ragged events into padded tensors: training windows and requests alike.

Legend: B rows, L event slots, S = L + 1 query slots, F numeric features, W words, A actions.
Slot 0 is the prefix (who asks); slot j is the j-th event. The query at slot j asks, in the context of
event j + 1, what comes after event j; the last one of a request asks in the request's own context.
Rows are padded at the end, so a causal mask alone keeps padding out of every real query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ctxrec.data.events import US, Context, Events, Histories, Users, ranges
from ctxrec.data.features import gap_buckets, scale_numbers, word_rows
from ctxrec.data.feedback import EventKinds
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests


@dataclass
class Batch:
    """Input of the user tower and its training targets; a request has no targets."""

    items_BL: torch.Tensor  # int64, 0 where padded
    actions_BL: torch.Tensor  # int64, 0 = none
    lengths_B: torch.Tensor  # int64 events a row
    query_gaps_BS: torch.Tensor  # int64 buckets
    times_BS: torch.Tensor  # int64 epoch seconds at which a slot is asked
    cat_BS: dict[str, torch.Tensor]  # int64 codes
    num_BSF: torch.Tensor  # float32
    num_present_BSF: torch.Tensor  # float32
    words_BSW: dict[str, torch.Tensor]  # int64
    user_cat_B: dict[str, torch.Tensor]  # int64, [B] or, of attributes with several values, [B, M]
    user_num_BF: torch.Tensor  # float32
    user_num_present_BF: torch.Tensor  # float32
    user_text_BH: (
        torch.Tensor
    )  # float32 vectors of the users' texts, 0 where a user has none; H = 0 where none are read
    targets_BS: torch.Tensor  # int64, 0 where there is none
    weights_BS: torch.Tensor  # float32, 0 where there is no target
    asked_BS: torch.Tensor  # int64 code of the action that a slot asks for, its target's; 0 = none
    asked_mix_BA: torch.Tensor  # float32, shares of the actions that a request asks for; 0 in training

    def to(self, device: torch.device) -> Batch:
        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: v.to(device, non_blocking=True) for k, v in value.items()}
            return value.to(device, non_blocking=True)

        return Batch(**{name: move(value) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Windows:
    """Training examples of a bucket: W windows; window w predicts events [first[w], stop[w]) of its
    row from those in [start[w], stop[w] - 1); positions are absolute in the bucket's events."""

    row: np.ndarray
    start: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: np.ndarray) -> Windows:
        return Windows(row=self.row[index], start=self.start[index], first=self.first[index], stop=self.stop[index])


@dataclass(frozen=True)
class Asked:
    """The positions with a target of some windows, window after window. Legend: P positions."""

    rows_P: np.ndarray  # int64, the number of a position's window
    targets_P: np.ndarray  # int64, items
    weights_P: np.ndarray  # float32, none of them 0


def make_windows(offsets: np.ndarray, stops: np.ndarray, history: int) -> Windows:
    """Cut each row's events [offsets[n], stops[n]) into windows that predict every event exactly once.

    A row of up to `history` + 1 events is one window. Longer rows get windows of history // 2 targets,
    so that each target has at least half of a full history before it.
    """
    lengths = stops - offsets
    step = max(history // 2, 1)
    short = lengths <= history + 1
    counts = np.where(short, np.minimum(lengths, 1), 1 + np.maximum(-(-(lengths - history - 1) // step), 0))
    row = np.repeat(np.arange(len(lengths)), counts)
    order = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    base, stop_row = offsets[row], stops[row]
    first = base + np.where(order == 0, 0, history + 1 + (order - 1) * step)
    stop = np.minimum(base + history + 1 + order * step, stop_row)
    start = np.maximum(base, stop - 1 - history)
    return Windows(row=row, start=start, first=first, stop=stop)


@dataclass(frozen=True)
class UserTexts:
    """Gives the free texts of users their vectors: `read` maps n texts, none of them empty, to float32 [n, width]."""

    width: int
    read: Callable[[Sequence[str]], np.ndarray]


def texts_of_users(users: Users) -> list[str]:
    """The free text of each user, "" without any; texts of several columns are joined."""
    if not users.text:
        return [""] * len(users.ids)
    rows = zip(*(values.tolist() for values in users.text.values()), strict=True)
    return ["; ".join(text.strip() for text in row if text and text.strip()) for row in rows]


class Batcher:
    """Makes batches for one data set, whose features and number of events to read it knows.

    Args:
        features: of the data set.
        history: events that are read of a history.
        kinds: what actions and values of events say.
        user_texts: reads the free texts of users; None: they are not read.
    """

    def __init__(
        self,
        features: FeatureMeta,
        *,
        history: int,
        kinds: EventKinds,
        user_texts: UserTexts | None = None,
    ) -> None:
        self.features, self._user_texts = features, user_texts
        self.history = history
        self.kinds = kinds
        liked = np.maximum(kinds.weights_A[1:], 0)
        self.action_mix = liked / max(liked.sum(), 1e-9)

    def training(self, histories: Histories, windows: Windows) -> Batch:
        """A batch of training windows."""
        events = histories.events
        asked = events.cut(windows.start, windows.stop)  # every event of a window is asked for once ...
        length = asked.lengths - 1  # ... and all but the last are read
        read = asked.cut(asked.offsets[:-1], asked.offsets[1:] - 1)
        position = np.arange(len(asked.items)) - np.repeat(asked.offsets[:-1], asked.lengths)
        counts = position >= np.repeat(windows.first - windows.start, asked.lengths)
        if histories.weights is None:
            weights = self.kinds.weights_A[asked.actions] * counts
        else:
            weights = histories.weights[ranges(windows.start, windows.stop)[0]] * counts
        batch = self._build(
            users=histories.users.take(windows.row),
            read=read,
            asked_lengths=length + 1,
            context=asked.context,
            times=asked.times,
            first_gap=_gap_before(events.times, windows.start, events.offsets[windows.row]),
        )
        batch.targets_BS = _pad(asked.items.astype(np.int64), length + 1)
        batch.weights_BS = _pad(weights.astype(np.float32), length + 1)
        batch.asked_BS = _pad(asked.actions.astype(np.int64), length + 1)
        return batch

    def asked(self, histories: Histories, windows: Windows) -> Asked:
        """The positions of `training` that have a weight, without making the batch."""
        where, offsets = ranges(windows.first, windows.stop)
        weights = (
            self.kinds.weights_A[histories.events.actions[where]]
            if histories.weights is None
            else histories.weights[where]
        )
        counts = weights != 0
        rows = np.repeat(np.arange(len(windows)), np.diff(offsets))
        targets = histories.events.items[where].astype(np.int64)
        return Asked(rows[counts], targets[counts], weights[counts].astype(np.float32))

    def requests(self, requests: Requests) -> Batch:
        """A batch of requests; only the last query slot of each row is asked in the request's context.

        A request asks for all actions, each as much as its weight as a target; negative ones not at all.
        """
        starts = np.maximum(requests.history.offsets[:-1], requests.history.offsets[1:] - self.history)
        read = requests.history.cut(starts, requests.history.offsets[1:])
        batch = self._build(
            users=requests.users,
            read=read,
            asked_lengths=read.lengths + 1,
            context=_append(read, read.context, requests.context),
            times=np.insert(read.times, read.offsets[1:], requests.times),
            first_gap=_gap_before(requests.history.times, starts, requests.history.offsets[:-1]),
        )
        batch.asked_mix_BA = torch.from_numpy(np.tile(self.action_mix, (len(requests), 1)))
        return batch

    def asking(self, requests: Requests) -> Batch:
        """A batch of the requests' moments without their events, for histories whose state is known already."""
        history, num = requests.history, len(requests)
        gaps = np.full(num, np.nan)
        known = history.lengths > 0
        gaps[known] = (requests.times[known] - history.times[history.offsets[1:][known] - 1]) / US
        none = np.zeros(num, np.int64)
        batch = self._build(
            users=requests.users,
            read=history.cut(none, none),
            asked_lengths=none + 1,
            context=requests.context,
            times=requests.times,
            first_gap=gaps,
        )
        batch.asked_mix_BA = torch.from_numpy(np.tile(self.action_mix, (num, 1)))
        return batch

    def _build(
        self,
        *,
        users: Users,
        read: Events,
        asked_lengths: np.ndarray,
        context: Context,
        times: np.ndarray,
        first_gap: np.ndarray,
    ) -> Batch:
        lengths = read.lengths
        gaps = np.diff(times, prepend=times[:1]) / US
        starts = np.cumsum(asked_lengths) - asked_lengths
        gaps[starts] = first_gap
        buckets = gap_buckets(gaps)
        zeros = np.zeros((len(lengths), 0), np.float32)
        num = [scale_numbers(context.num[n], s) for n, s in self.features.context_numbers.items()]
        user_num = [scale_numbers(users.num[n], s) for n, s in self.features.user_numbers.items()]
        total, width = len(times), int(asked_lengths.max(initial=1))
        flat_num = np.stack([v for v, _ in num], 1) if num else np.zeros((total, 0), np.float32)
        flat_present = np.stack([p for _, p in num], 1) if num else np.zeros((total, 0), np.float32)
        return Batch(
            items_BL=_pad(read.items.astype(np.int64), lengths, width - 1),
            actions_BL=_pad(read.actions.astype(np.int64), lengths, width - 1),
            lengths_B=torch.from_numpy(lengths.astype(np.int64)),
            query_gaps_BS=_pad(buckets, asked_lengths),
            times_BS=_pad(times // US, asked_lengths),
            cat_BS={n: _pad(v.astype(np.int64), asked_lengths) for n, v in context.cat.items()},
            num_BSF=_pad(flat_num, asked_lengths),
            num_present_BSF=_pad(flat_present, asked_lengths),
            words_BSW={n: _pad(word_rows(context.text[n]), asked_lengths) for n in self.features.context_texts},
            user_cat_B={
                n: torch.from_numpy((users.lists if n in users.lists else users.cat)[n].astype(np.int64))
                for n in self.features.user_categories
            },
            user_num_BF=torch.from_numpy(np.stack([v for v, _ in user_num], 1) if user_num else zeros),
            user_num_present_BF=torch.from_numpy(np.stack([p for _, p in user_num], 1) if user_num else zeros),
            user_text_BH=torch.from_numpy(self._texts(users)),
            targets_BS=torch.zeros((len(lengths), width), dtype=torch.int64),
            weights_BS=torch.zeros((len(lengths), width)),
            asked_BS=torch.zeros((len(lengths), width), dtype=torch.int64),
            asked_mix_BA=torch.zeros((len(lengths), len(self.action_mix))),
        )

    def _texts(self, users: Users) -> np.ndarray:
        """Vectors of the users' texts: float32 [B, H], 0 without a text."""
        reader, texts = self._user_texts, texts_of_users(users)
        made = np.zeros((len(texts), 0 if reader is None else reader.width), np.float32)
        rows = np.array([n for n, text in enumerate(texts) if text], np.int64)
        if reader is not None and len(rows):
            distinct = list(dict.fromkeys(texts[n] for n in rows))
            place = {text: n for n, text in enumerate(distinct)}
            made[rows] = reader.read(distinct)[[place[texts[n]] for n in rows]]
        return made


def _pad(values: np.ndarray, lengths: np.ndarray, width: int | None = None) -> torch.Tensor:
    """Flat rows end to end as a tensor [B, width, ...], zeros behind each row's end."""
    width = int(lengths.max(initial=0)) if width is None else width
    padded = np.zeros((len(lengths), width, *values.shape[1:]), values.dtype)
    padded[np.arange(width) < lengths[:, None]] = values
    return torch.from_numpy(padded)


def _gap_before(times: np.ndarray, starts: np.ndarray, row_starts: np.ndarray) -> np.ndarray:
    """Seconds between the event at `starts` and the one before it in its row; NaN where it is the first."""
    gaps = np.full(len(starts), np.nan)
    cut = starts > row_starts
    gaps[cut] = (times[starts[cut]] - times[starts[cut] - 1]) / US
    return gaps


def _append(read: Events, context: Context, extra: Context) -> Context:
    """Flat rows of context with one more value behind each row's end."""
    stops = read.offsets[1:]

    def each(values: dict[str, np.ndarray], more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.insert(values[name], stops, more[name]) for name in values}

    return Context(
        cat=each(context.cat, extra.cat), num=each(context.num, extra.num), text=each(context.text, extra.text)
    )
