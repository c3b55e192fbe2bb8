"""The context and the time of requests and events, as users write them, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.core.time_zones import TIMEZONE, check_zone
from ctxrec.data.clock import Clock
from ctxrec.data.events import EARLIEST_S, LATEST_S, US, Context
from ctxrec.data.prepared import FeatureMeta
from ctxrec.retrieval.feature_values import category_code, codes_of, number_value

MAX_QUERY = 1_000  # characters of a free text that a request asks with
MAX_DISLIKE = 100  # items of a request the like of which is not wanted
CONTEXT = "context"  # how messages name where a feature stands


class ContextReader:
    """Reads contexts by the features of a data set, and hour, weekday and month by its clock."""

    def __init__(self, features: FeatureMeta, clock: Clock) -> None:
        self._features, self._clock = features, clock
        self._valid = [*features.context_categories, *features.context_numbers, *features.context_texts]
        self._category_codes = {name: codes_of(values) for name, values in features.context_categories.items()}

    def read(
        self,
        contexts: Sequence[dict[str, Any]],
        times_us: np.ndarray,
        zones: Sequence[str | None] | None = None,
        *,
        valid: Sequence[str] = (),
    ) -> Context:
        """Context dictionaries as arrays; the time context comes from the times.

        Args:
            contexts: N contexts, with features of the data set alone.
            times_us: int64 [N] microseconds.
            zones: the zones in which hour, weekday and month are told, None for that of the log.
            valid: keys besides the features, for the message.

        Raises:
            UserError: a key is unknown, or a value has the wrong type; names the key.
        """
        meta = self._features
        for context in contexts:
            for key in context:
                if key not in self._valid:
                    known = (
                        ", ".join([*valid, *self._valid]) or "none, because the log of the model has no context columns"
                    )
                    raise UserError(f"unknown context key {key!r}; valid keys are {known}").at(key)
        cat = self._clock.codes(times_us, zones)
        for name, codes in self._category_codes.items():
            cat[name] = np.array([category_code(CONTEXT, name, c.get(name), codes) for c in contexts], np.int32)
        num = {
            n: np.array([number_value(CONTEXT, n, c.get(n)) for c in contexts], np.float32)
            for n in meta.context_numbers
        }
        text = {}
        for name in meta.context_texts:
            text[name] = np.empty(len(contexts), object)
            text[name][:] = [_text(name, c.get(name)) for c in contexts]
        return Context(cat=cat, num=num, text=text)

    def read_requests(self, contexts: Sequence[dict[str, Any]], times_us: np.ndarray) -> Context:
        """`read` of contexts of requests, which may name a zone of their own under "timezone" and have their time under
        "timestamp".

        A feature of the data set that is called timezone keeps its name; a request then has the zone of the log.

        Raises:
            UserError: as `read`, or a zone is unknown.
        """
        keys = ("timestamp",) if TIMEZONE in self._valid else ("timestamp", TIMEZONE)
        zones = [_zone(context.get(TIMEZONE)) if TIMEZONE in keys else None for context in contexts]
        features = [{name: value for name, value in context.items() if name not in keys} for context in contexts]
        return self.read(features, times_us, zones, valid=keys)

    def check(self, contexts: Sequence[dict[str, Any]]) -> None:
        """Raise the `UserError` of `read`, if there is one."""
        self.read(contexts, np.zeros(len(contexts), np.int64))

    def check_requests(self, contexts: Sequence[dict[str, Any]]) -> None:
        """Raise the `UserError` of `read_requests`, if there is one."""
        self.read_requests(contexts, np.zeros(len(contexts), np.int64))

    def unknown_values(self, context: Mapping[str, Any]) -> list[str]:
        """Names of the categorical features whose value is none that the model knows; the context can be read."""
        codes = self._category_codes
        return [n for n, v in context.items() if n in codes and category_code(CONTEXT, n, v, codes[n]) == schema.OTHER]

    def codes_asked(self, context: Mapping[str, Any]) -> dict[int, int]:
        """The codes of some categorical features by their place in `FeatureMeta.context_categories`; None is left out.

        Raises:
            UserError: a key is no categorical feature, or a value has the wrong type; names the key.
        """
        places = {name: place for place, name in enumerate(self._category_codes)}
        for name in context:
            if name not in places:
                known = f"expected one of {', '.join(places)}" if places else "the log of the model has none"
                raise UserError(f"context key {name!r} is no categorical feature of a context; {known}").at(name)
        given = ((name, value) for name, value in context.items() if value is not None)
        return {places[n]: category_code(CONTEXT, n, value, self._category_codes[n]) for n, value in given}

    def codes_of_event(self, context: Mapping[str, Any]) -> tuple[int, ...]:
        """The codes of all categorical features, in their order; of a value that only another version of the model could
        read, the code of a missing one."""
        return tuple(self._code_if_any(name, context.get(name)) for name in self._category_codes)

    def _code_if_any(self, name: str, value: Any) -> int:
        try:
            return category_code(CONTEXT, name, value, self._category_codes[name])
        except UserError:
            return schema.MISSING

    def usable(self, context: dict[str, Any]) -> dict[str, Any]:
        """What can be read of a context that another version of the model has accepted."""
        if self._is_usable(context):  # all of it at once: nearly always so
            return context
        return {key: value for key, value in context.items() if self._is_usable({key: value})}

    def all_usable(self, contexts: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """`usable` of each, which costs one check where all of them are: nearly always so."""
        known = [context for context in contexts if context]
        try:
            self.check(known)
        except UserError:
            return [self.usable(context) for context in contexts]
        return contexts

    def _is_usable(self, context: dict[str, Any]) -> bool:
        try:
            self.check([context])
        except UserError:
            return False
        return True


def _zone(name: Any) -> str | None:
    try:
        return None if name is None else check_zone(name, f"context {TIMEZONE}")
    except UserError as error:
        raise error.at(TIMEZONE) from None


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UserError(f"context {name} is {value!r}; expected a text").at(name)
    return value


def queries_of(texts: Sequence[Any]) -> np.ndarray | None:
    """The free texts that requests ask with as an object array [N], None for a blank one; None where all are blank.

    Raises:
        UserError: one is no text, or too long.
    """
    made = np.full(len(texts), None, object)
    for n, text in enumerate(texts):
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f"query is {text!r}; expected a text")
        if len(text) > MAX_QUERY:
            raise UserError(f"query has {len(text):,} characters; expected at most {MAX_QUERY:,}")
        made[n] = text if text.strip() else None
    return made if any(text is not None for text in made) else None


def microseconds(seconds: Any, default: int) -> int:
    """The time of a request (epoch seconds, UTC) as microseconds; None gives `default`.

    Raises:
        UserError: it is no time.
    """
    if seconds is None:
        return default
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float, np.number)):
        raise UserError(f"timestamp is {seconds!r}; expected epoch seconds, UTC")
    if not EARLIEST_S <= seconds <= LATEST_S:
        raise UserError(f"timestamp is {seconds!r}; expected epoch seconds, UTC, within the years 1 to 9999")
    return round(float(seconds) * US)
