"""What the times of a log are, and what to tell a user whose times cannot be read."""

from __future__ import annotations

import pyarrow as pa

from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.core.errors import UserError
from ctxrec.core.time_formats import EXAMPLE
from ctxrec.core.toml import toml_value
from ctxrec.data.parsing import to_text
from ctxrec.data.time_columns import TimeForm, detect_times, takes_format
from ctxrec.ingest import readers
from ctxrec.ingest.guess.format_guess import guess_format
from ctxrec.ingest.id_match import WARNING
from ctxrec.ingest.log_facts import LogFacts
from ctxrec.ingest.shards import UNPARSABLE
from ctxrec.ingest.source import Source

_WORTH_A_NOTE, _WORTH_A_WARNING = 0.01, 0.1  # shares of the rows whose times cannot be read


def time_form(source: Source) -> TimeForm:
    """The form of the times of a log, from a sample of each file.

    Raises:
        UserError: the spec names a format, and no file has texts that it could read.
    """
    events = source.spec.events
    samples = readers.sample_column(source.events, events.time)
    if events.time_format is not None and not any(
        takes_format(sample.type, events.time_format) or pa.types.is_null(sample.type) for sample in samples
    ):
        raise UserError(
            f"events.time_format is {events.time_format!r}, but column {events.time!r} of {source.events[0].path} is "
            f"{samples[0].type}, and a format is for texts; leave time_format out"
        )
    return detect_times(samples, events.time_format)


def notes_on_times(source: Source, log: LogFacts) -> list[str]:
    """A note where so many times cannot be read that the form of others may be another one."""
    bad = log.rejects.get(UNPARSABLE, 0)
    if bad < _WORTH_A_NOTE * log.rows_read:
        return []
    told = f"{bad:,} times of {log.rows_read:,} cannot be read, and their rows are rejected. {how_to_read(source)}"
    return [f"{WARNING if bad >= _WORTH_A_WARNING * log.rows_read else ''}{told}"]


def how_to_read(source: Source) -> str:
    """What to write into a spec whose times cannot be read."""
    events: EventsSpec = source.spec.events
    columns = [sample for sample in readers.sample_column(source.events, events.time) if len(sample)]
    found = guess_format(pa.chunked_array([to_text(sample) for sample in columns])) if columns else None
    if events.time_format is None and found is not None:
        sure = "" if found.other is None else f" (or {toml_value(found.other)}, which fits as well)"
        return f"To read such as {found.example!r}, write time_format = {toml_value(found.format)}{sure} under [events]"
    if events.time_format is not None:
        seen = "" if found is None else f", such as {toml_value(found.format)} for {found.example!r}"
        return f"Correct time_format under [events], which is {toml_value(events.time_format)}{seen}"
    return f"Where all times have one form, name it as time_format under [events], such as time_format = {EXAMPLE}; else write ISO-8601"
