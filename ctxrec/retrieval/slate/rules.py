"""A file of rules about what lists hold: items that are blocked, lifted, or pinned to a place.

    [[block]]                     # these are never recommended
    items = ["50", "172"]
    [[block]]
    column = "category"           # items by the value of a categorical column ...
    any = ["Horror"]
    since = 2026-12-01            # optional: within this time of the request, UTC
    until = 2026-12-27T12:00:00Z
    [[boost]]
    column = "price"              # ... or by a numeric one
    max = 20
    by = 0.1                      # share of the span of the candidates' scores; below 0 lowers
    [[pin]]
    items = ["new-1", "new-2"]
    place = 1                     # the best of these that is eligible comes here

Legend: I items, N requests.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ctxrec.core import storage
from ctxrec.core.config import DiversityConfig
from ctxrec.core.errors import UserError
from ctxrec.core.toml import build_dataclass, read_toml
from ctxrec.data.events import US
from ctxrec.retrieval.filters import ColumnRule

_KEPT = 64  # sets of rules in force at the same time whose masks are kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """The items that a rule names, and the time in which it holds. The items are named by id in `items`, or by
    `column`: those with any of these values, with none of them, or with a number in a range. The rule holds where
    the time of the request lies from `since` (included) to `until` (not included)."""

    items: tuple[str, ...] = ()
    column: str | None = None
    any: tuple[str, ...] | None = None
    none: tuple[str, ...] | None = None
    min: float | None = None
    max: float | None = None
    since: datetime.date | None = None
    until: datetime.date | None = None

    def __post_init__(self) -> None:
        asked = [name for name in ("any", "none", "min", "max") if getattr(self, name) is not None]
        if bool(self.items) == (self.column is not None):
            raise UserError("a rule names its items by either items or column; found both or neither")
        if bool(asked) != (self.column is not None):
            found = f"column {self.column!r} alone" if self.column is not None else f"{', '.join(asked)} without column"
            raise UserError(f"a rule by column has any, none, min or max; found {found}")
        begin, end = self.window_us
        if begin >= end:
            raise UserError(f"since is {self.since} and until is {self.until}; expected until to be later")

    @property
    def window_us(self) -> tuple[float, float]:
        """Start and end of the rule's time in microseconds since 1970. The start is included, the end is not."""
        return (
            -np.inf if self.since is None else _microseconds(self.since),
            np.inf if self.until is None else _microseconds(self.until),
        )

    def on_column(self) -> dict[str, ColumnRule]:
        """The rule's condition on its column, as a filter."""
        assert self.column is not None
        return {self.column: ColumnRule(any=self.any, none=self.none, min=self.min, max=self.max)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Block(Rule):
    """Items that are not recommended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Boost(Rule):
    """Items that are lifted by a share of the span of the candidates' scores, or lowered where it is below 0."""

    by: float

    def __post_init__(self) -> None:
        Rule.__post_init__(self)
        if not -10 <= self.by <= 10 or self.by == 0:
            raise UserError(f"boost.by is {self.by}; expected a share of the scores' span from -10 to 10, not 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin(Rule):
    """The best eligible one of the items comes at this place, 1 being the first."""

    place: int = 1

    def __post_init__(self) -> None:
        Rule.__post_init__(self)
        if self.place < 1:
            raise UserError(f"pin.place is {self.place}; expected 1 (the first) or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The content of a rule file."""

    block: tuple[Block, ...] = ()
    boost: tuple[Boost, ...] = ()
    pin: tuple[Pin, ...] = ()

    def __iter__(self) -> Iterator[Rule]:
        yield from (*self.block, *self.boost, *self.pin)


def load_rules(path: str) -> Rules:
    """Read a rule file, path or URI.

    Raises:
        UserError: it is missing, no TOML, or has an unknown key or a value that does not fit; says what is valid.
    """
    if not storage.exists(path):
        raise UserError(f"found no rule file at {path}; expected a TOML file with block, boost and pin rules")
    raw = read_toml(path)
    try:
        return build_dataclass(Rules, raw, source=path)
    except UserError as error:
        raise error if path in str(error) else UserError(f"{path}: {error}") from None


def rules_of(config: DiversityConfig) -> Rules:
    """The rules of the file that the options name; none where they name none."""
    return load_rules(config.rules) if config.rules else Rules()


@dataclass(frozen=True)
class InForce:
    """Rules that hold at one time, on one catalogue.

    open_I: items that are not blocked; None: no block.
    gain_I: float32, what boosts add; None: no boost.
    pins: places from 0 on, in order, and bool [I] which items are meant.
    """

    open_I: np.ndarray | None
    gain_I: np.ndarray | None
    pins: tuple[tuple[int, np.ndarray], ...]


class RuleBook:
    """Rules on a catalogue that may change.

    Args:
        rules: of a file.
        match: the items that a rule names, bool [I]; raises `UserError` for a column that is not there.
    """

    def __init__(self, rules: Rules, match: Callable[[Rule], np.ndarray]):
        self._rules, self._match = rules, match
        self._windows = np.array([rule.window_us for rule in rules]).reshape(-1, 2)
        self._made: dict[bytes, InForce] = {}
        self.num_pins = len(rules.pin)

    def __bool__(self) -> bool:
        return len(self._windows) > 0

    def forget(self) -> None:
        """Drop the masks that were made for the catalogue before it changed."""
        self._made.clear()

    def groups(self, times_us: np.ndarray) -> list[tuple[np.ndarray, InForce]]:
        """Requests by the rules that are in force at their times: rows, int64 [requests of the group], and those
        rules."""
        active = (self._windows[:, 0] <= times_us[:, None]) & (times_us[:, None] < self._windows[:, 1])
        kinds, kind_of = np.unique(active, axis=0, return_inverse=True)
        kind_of = kind_of.reshape(-1)
        return [(np.flatnonzero(kind_of == n), self._in_force(kind)) for n, kind in enumerate(kinds)]

    def _in_force(self, active: np.ndarray) -> InForce:
        key = active.tobytes()
        if key not in self._made:
            if len(self._made) >= _KEPT:
                self._made.clear()
            self._made[key] = self._make([rule for rule, on in zip(self._rules, active, strict=True) if on])
        return self._made[key]

    def _make(self, rules: list[Rule]) -> InForce:
        masks = [(rule, self._match(rule)) for rule in rules]
        blocked = [mask for rule, mask in masks if isinstance(rule, Block)]
        boosts = [rule.by * mask.astype(np.float32) for rule, mask in masks if isinstance(rule, Boost)]
        pins = [(rule.place - 1, mask) for rule, mask in masks if isinstance(rule, Pin)]
        return InForce(
            open_I=~np.logical_or.reduce(blocked) if blocked else None,
            gain_I=np.asarray(np.sum(boosts, axis=0, dtype=np.float32)) if boosts else None,
            pins=tuple(sorted(pins, key=lambda pin: pin[0])),
        )


def _microseconds(moment: datetime.date) -> int:
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime.combine(moment, datetime.time())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return round(moment.timestamp() * US)
