"""Credit of events in an A/B test: each event belongs to the last list that its user saw before it.

Legend: U users, L lists that were answered, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.core.errors import UserError
from ctxrec.core.storage import list_files
from ctxrec.data.events import US
from ctxrec.data.parsing import one_array, to_text
from ctxrec.data.time_columns import TIME_OK, detect_times, to_times
from ctxrec.ingest.readers import DELIMITERS, format_of, inspect, make_pieces, read_piece, sample_column

NO_ACTION = "(event)"  # of events without an action
_ROWS = 1 << 20


@dataclass(frozen=True)
class Log:
    """Events of a log, in any order."""

    users: np.ndarray  # object [E]
    items: np.ndarray  # object [E]
    actions: np.ndarray  # object [E]
    times_us: np.ndarray  # int64 [E]


@dataclass(frozen=True)
class Observed:
    """What the users of a test saw and did. Users with lists of several arms are left out.

    Attributes:
        arms: names of the arms with the control.
        shares: float, the share of each arm; NaN if it changed during the test.
        arm_U: the arm of each user, as a position in `arms`.
        lists_U: number of lists that each user saw.
        actions: names of the actions.
        events_AU: number of events of each action and user.
        versions: {arm: {version: {action: number of events}}}; the action "" counts the lists.
        num_left_out: number of users with lists of several arms.
        num_nameless: number of lists without a user id, which no event can be matched with.
    """

    arms: list[str]
    shares: np.ndarray
    arm_U: np.ndarray
    lists_U: np.ndarray
    actions: list[str]
    events_AU: np.ndarray
    versions: dict[str, dict[str, dict[str, int]]]
    num_left_out: int
    num_nameless: int

    def users(self, arm: str) -> np.ndarray:
        """Rows of an arm's users: int64 [users of the arm]."""
        return np.flatnonzero(self.arm_U == self.arms.index(arm))


def read_log(path: str, spec: EventsSpec) -> Log:
    """Events of a file, folder, glob or URI with the columns that `spec` names.

    Rows without a user or a time are dropped.

    Raises:
        UserError: there is no file, or a column is missing.
    """
    names = [spec.user, spec.item, spec.time, *([spec.action] if spec.action else [])]
    kinds = {format_of(file) for file in list_files(path)}  # posted events are Parquet, beside a log of texts
    found = inspect(
        path,
        names,
        section="events",
        delimiter=spec.delimiter if kinds <= set(DELIMITERS) else None,
        encoding=None if "parquet" in kinds else spec.encoding,
    )
    form = detect_times(sample_column(found, spec.time), spec.time_format)
    parts: list[list[np.ndarray]] = []
    for piece in make_pieces(found, rows=_ROWS):
        for batch in read_piece(piece, names):
            times, status = to_times(
                batch.table.column(spec.time),
                form.unit,
                small=form.small,
                zone=spec.timezone,
                time_format=spec.time_format,
            )
            texts = [_texts(batch.table.column(name)) for name in names if name != spec.time]
            if not spec.action:
                texts.append(np.full(len(times), None, object))
            usable = (status == TIME_OK) & np.array([text is not None for text in texts[0]], bool)
            parts.append([*(text[usable] for text in texts), times[usable]])
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0, object)] * 4
    users, items, actions, times = columns
    actions = np.array([action or NO_ACTION for action in actions], object)
    return Log(users, items, actions, times.astype(np.int64))


def _texts(column: pa.ChunkedArray) -> np.ndarray:
    return to_text(column).to_numpy(zero_copy_only=False)


def choose_experiment(exposures: pa.Table, name: str | None) -> tuple[str, pa.Table]:
    """Name and lists of one test: of the named one, or of the only one.

    Raises:
        UserError: there are several tests and no name, or no test of this name.
    """
    names = sorted(exposures.column("experiment").unique().to_pylist())
    if (name is None and len(names) != 1) or (name is not None and name not in names):
        found = f"--experiment is {name!r}" if name is not None else "--experiment is missing"
        raise UserError(f"{found}; the exposures have the tests {', '.join(names) or 'none'}")
    chosen = name if name is not None else names[0]
    return chosen, exposures.filter(pc.equal(exposures.column("experiment"), chosen))


def attribute(exposures: pa.Table, log: Log, *, window_s: float, shown_only: bool = False) -> Observed:
    """Give every event to the arm and version of the last list that its user saw before it.

    Args:
        exposures: the lists of one test (`choose_experiment`).
        log: events. Events of other users, and events before a user's first list, do not count.
        window_s: seconds after the list within which an event counts.
        shown_only: count only events on items of that list.
    """
    named = exposures.filter(pc.is_valid(exposures.column("user_id")))
    nameless = len(exposures) - len(named)
    arms = sorted(exposures.column("arm").unique().to_pylist())
    users, user_L = np.unique(_texts(named.column("user_id")).astype(str), return_inverse=True)
    arm_L = _codes(named.column("arm"), arms)
    first = np.full(len(users), len(arms))
    np.minimum.at(first, user_L, arm_L)
    last = np.full(len(users), -1)
    np.maximum.at(last, user_L, arm_L)
    single = first == last
    versions = sorted(named.column("model_version").unique().to_pylist())
    version_L = _codes(named.column("model_version"), versions)
    time_L = one_array(named.column("time")).cast(pa.int64()).to_numpy()
    event_list, rows = _last_lists(users, user_L, time_L, log, window_s=window_s)
    inside = single[user_L[event_list]]
    event_list, rows = event_list[inside], rows[inside]
    if shown_only:
        shown = named.column("item_ids").take(pa.array(event_list)).to_pylist()
        hit = np.array([item in items for item, items in zip(log.items[rows], shown, strict=True)], bool)
        event_list, rows = event_list[hit], rows[hit]
    actions, action_E = np.unique(log.actions[rows].astype(str), return_inverse=True)
    events_AU = np.zeros((len(actions), len(users)), np.int64)
    np.add.at(events_AU, (action_E, user_L[event_list]), 1)
    counts = np.zeros((len(arms), len(versions), 1 + len(actions)), np.int64)  # lists first, then events by action
    kept = single[user_L]
    np.add.at(counts, (arm_L[kept], version_L[kept], 0), 1)
    np.add.at(counts, (arm_L[event_list], version_L[event_list], 1 + action_E), 1)
    return Observed(
        arms=arms,
        shares=np.array([_only(exposures, arm) for arm in arms]),
        arm_U=first[single],
        lists_U=np.bincount(user_L, minlength=len(users))[single],
        actions=actions.tolist(),
        events_AU=events_AU[:, single],
        versions={
            arm: {
                version: {name: n for name, n in zip(["", *actions.tolist()], of_version, strict=True) if n}
                for version, of_version in zip(versions, of_arm, strict=True)
                if of_version[0]
            }
            for arm, of_arm in zip(arms, counts.tolist(), strict=True)
        },
        num_left_out=int((~single).sum()),
        num_nameless=nameless,
    )


def _codes(column: pa.ChunkedArray, names: list[str]) -> np.ndarray:
    return pc.index_in(one_array(column), pa.array(names, pa.string())).to_numpy().astype(np.int64)


def _last_lists(
    users: np.ndarray, user_L: np.ndarray, time_L: np.ndarray, log: Log, *, window_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each event with an earlier list of its user: the position of the last such list, and the row of the event."""
    place = np.searchsorted(users, log.users.astype(str))
    known = np.zeros(len(place), bool)
    inside = place < len(users)
    known[inside] = users[place[inside]] == log.users[inside].astype(str)
    rows = np.flatnonzero(known)
    moments, rank = np.unique(np.concatenate([time_L, log.times_us[rows]]), return_inverse=True)
    key_L = user_L * len(moments) + rank[: len(time_L)]
    key_E = place[rows] * len(moments) + rank[len(time_L) :]
    order = np.argsort(key_L, kind="stable")
    before = np.searchsorted(key_L[order], key_E, side="right") - 1
    found = before >= 0
    lists, rows = order[before[found]], rows[found]
    age = log.times_us[rows] - time_L[lists]
    fits = (user_L[lists] == place[rows]) & (age <= window_s * US)
    return lists[fits], rows[fits]


def _only(exposures: pa.Table, arm: str) -> float:
    """The share of an arm; NaN if it changed during the test."""
    shares = exposures.filter(pc.equal(exposures.column("arm"), arm)).column("share").unique().to_pylist()
    return shares[0] if len(shares) == 1 else float("nan")
