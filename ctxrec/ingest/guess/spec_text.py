"""A guess as the text of a dataset.toml: every line says what was seen, and doubts stand where they belong."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator

from ctxrec.core import storage
from ctxrec.core.time_zones import UTC
from ctxrec.core.toml import toml_value
from ctxrec.ingest.guess import names
from ctxrec.ingest.guess.feedback_proposal import propose
from ctxrec.ingest.guess.guessing import Guess
from ctxrec.ingest.guess.looked_table import LookedTable

_WIDTH = 110
_COMMENT_AT = 34


def spec_text(guess: Guess, *, folder: str) -> str:
    """The guess as TOML.

    Args:
        guess: whose spec names paths as the user gave them.
        folder: of the file that will hold the text; local paths become relative to it.
    """
    spec = guess.spec
    lines = [
        "# Written by `ctxrec init`, which looked at a sample of the files. Lines with #? are not sure: check them.",
        f"name = {toml_value(name_of(guess))}",
        "",
        *_events(guess, folder),
    ]
    if spec.items is not None:
        items, table = spec.items, guess.tables["items"]
        lines += ["", "[items]", *_file(table, folder), _line("id", items.id, _seen(table, items.id))]
        lines += _lists(table, {"text": items.text, "categorical": items.categorical, "numeric": items.numeric})
        lines += [_line(kind, column, _seen(table, column)) for kind, column in items.media.items()]
        lines += _separators("items", items.separators) + list(_doubts(guess, "items"))
    if spec.users is not None:
        users, table = spec.users, guess.tables["users"]
        lines += ["", "[users]", *_file(table, folder), _line("id", users.id, _seen(table, users.id))]
        lines += _lists(table, {"text": users.text, "categorical": users.categorical, "numeric": users.numeric})
        lines += _separators("users", users.separators) + list(_doubts(guess, "users"))
    if spec.graph is not None:
        graph, table = spec.graph, guess.tables["graph"]
        lines += ["", "[graph]", *_file(table, folder, "graph")]
        lines += [
            _line(key, getattr(graph, key), _seen(table, getattr(graph, key))) for key in ("head", "relation", "tail")
        ]
        lines += _doubts(guess, "graph")
    lines += [
        "",
        "[split]",
        _line("strategy", spec.split.strategy, '"temporal" cuts by time; "last" tests on each user\'s last event'),
    ]
    lines.append(_line("repeats", spec.split.repeats, "true recommends items again that the user already had"))
    lines += [*_doubts(guess, "split"), *_doubts(guess, "files")]
    return "\n".join(_printable(line) for line in lines) + "\n"


def _printable(line: str) -> str:
    """A line without the control characters that TOML forbids; names and values have none, as they are escaped."""
    return "".join(c if (c >= " " and c != "\x7f") or c == "\t" else repr(c)[1:-1] for c in line)


def name_of(guess: Guess) -> str:
    """A name for the data set: of the log's file, or of its folder where the file is called events or the like."""
    log = guess.tables["events"]
    path = log.name.split("*")[0].rstrip("/")
    folder = storage.parent(path).rstrip("/").rsplit("/", 1)[-1]
    generic = names.says(log.stem, names.EVENTS_FILE) or not log.stem.strip("*")
    return (folder if generic and folder else log.stem) or guess.spec.name


def _events(guess: Guess, folder: str) -> list[str]:
    events, table = guess.spec.events, guess.tables["events"]
    lines = ["[events]", *_file(table, folder)]
    for key in ("user", "item", "time", "action", "value"):
        if (column := getattr(events, key)) is not None:
            lines.append(_line(key, column, _times(table, column) if key == "time" else _seen(table, column)))
            if key == "time":
                lines += _format(table, column) + _zone(table, column)
    lines += _doubts(guess, "events", without=("context", "split.repeats", "feedback"))
    context = {kind: getattr(events.context, kind) for kind in ("categorical", "numeric", "text")}
    doubts = list(_doubts(guess, "events", only=("context",)))
    if any(context.values()) or doubts:
        lines += ["", "[events.context]              # known when a recommendation is asked for"]
        lines += _lists(table, context) + doubts
    if guess.actions:
        lines += [
            "",
            "# [events.actions]            # weight of each action as a target; negative is negative feedback",
        ]
        for action, count in list(guess.actions.items())[:20]:
            weight = names.action_weight(action)
            lines.append(
                "# " + _line(_key(action), 1.0 if weight is None else weight, f"{count:,} events of the sample")
            )
    return lines + _feedback(guess)


def _feedback(guess: Guess) -> list[str]:
    """The section on what values mean, as a comment; none where the values do not look like ratings."""
    proposal = propose(guess.tables["events"], guess.spec.events)
    if proposal is None:
        return []
    seen = f"{_seen(guess.tables['events'], proposal.column)}"
    return [
        "",
        f"# [events.feedback]           # what {proposal.column} means: {seen}",
        "# " + _line("kind", "rating", ""),
        "# "
        + _line(
            "positive", proposal.positive, f"from here on a success: {proposal.liked:.0%} of the events of the sample"
        ),
        "# " + _line("negative", proposal.negative, f"up to here negative feedback: {proposal.disliked:.0%}"),
        *_doubts(guess, "events", only=("feedback",)),
    ]


def _file(table: LookedTable, folder: str, section: str = "") -> Iterator[str]:
    """The lines of a section that say where its files lie and how they are written."""
    sample, form = table.sample, table.form
    files = f"{sample.num_files} files, " if sample.num_files > 1 else ""
    about = "" if sample.whole else "about "
    yield _line("path", relative(sample.name, folder), f"{sample.format}, {files}{about}{sample.num_rows:,} rows")
    if form["delimiter"] is not None:
        yield _line("delimiter", form["delimiter"], "divides the columns")
    if form["encoding"] is not None:
        yield _line("encoding", form["encoding"], "of the text")
    if form["decimal"] is not None and section != "graph":
        other = "." if form["decimal"] == "," else ","
        yield _line("decimal", form["decimal"], f"decimal sign of numbers; {other!r} may group thousands")


def relative(path: str, folder: str) -> str:
    """A path as it stands in a spec in `folder`: relative for a local file below or beside it, else as it is."""
    if storage.is_uri(path) or storage.is_uri(folder):
        return path if storage.is_uri(path) else os.path.abspath(path)
    below = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    return os.path.abspath(path) if below.startswith(os.path.join("..", "..")) else below


def _line(key: str, value: object, comment: str) -> str:
    line = f"{key} = {toml_value(value)}"
    return f"{line.ljust(_COMMENT_AT - 2)}  # {comment}" if comment else line


def _lists(table: LookedTable, columns: dict[str, tuple[str, ...]]) -> list[str]:
    """The lines of lists of columns, one column a line where a comment helps."""
    lines = []
    for kind, found in columns.items():
        if found:
            lines.append(f"{kind} = [")
            lines += [f"  {toml_value(name)},".ljust(_COMMENT_AT - 2) + f"  # {_seen(table, name)}" for name in found]
            lines.append("]")
    return lines


def _separators(section: str, separators: dict[str, str]) -> list[str]:
    if not separators:
        return []
    lines = ["", f"[{section}.separators]         # what divides several values in one text"]
    return lines + [f"{_key(column)} = {toml_value(mark)}" for column, mark in separators.items()]


def _key(name: str) -> str:
    """A name as a key of TOML, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def _seen(table: LookedTable, column: str) -> str:
    """What was seen of a column, in a few words."""
    look = table.looks.get(column)
    if look is None:
        return "no such column was found"
    values = (
        f"{look.low:.7g} to {look.high:.7g}" if look.kind == "number" and not look.whole else ", ".join(look.examples)
    )
    parts = [f"{look.distinct:,} values"] if look.distinct else []
    parts += [f"{look.missing:.1%} missing"] if look.missing >= 0.001 else []
    return "; ".join([*parts, " ".join(values.split())])


def _times(table: LookedTable, column: str) -> str:
    look = table.looks.get(column)
    if look is None:
        return "no column of times was found"
    example = look.examples[0] if look.examples else ""
    return f"{time_form(table, column)}, such as {example}"


def _format(table: LookedTable, column: str) -> list[str]:
    """The line of the format of times that are texts of no standard form."""
    found = table.looks[column].format if column in table.looks else None
    if found is None:
        return []
    why = f"of such texts as {found.example}"
    if found.other is not None:
        why = f"not sure: {found.other} fits as well"
    elif found.decided_by is not None:
        why = f"{found.decided_by} decides the order"
    return [_line("time_format", found.format, why)]


def _zone(table: LookedTable, column: str) -> list[str]:
    """The line of the time zone, as a comment; none where the times are no times."""
    look = table.looks.get(column)
    if look is None or look.time is None:
        return []
    naive = look.time.unit not in ("s", "ms", "us", "ns") and not look.has_zone
    of = "of these times, and of hour, weekday and month" if naive else "of hour, weekday and month"
    return ["# " + _line("timezone", UTC, f'{of}, such as "Asia/Shanghai"')]


def time_form(table: LookedTable, column: str) -> str:
    """The unit and the zone of a column of times in words."""
    look = table.looks[column]
    if look.time is None:
        return "positions, no clock" if look.kind == "number" else "times that cannot be read"
    unit = look.time.unit
    if unit in ("s", "ms", "us", "ns"):
        words = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
        return f"epoch {words[unit]} (UTC)"
    what = {"yyyymmdd": "dates as whole numbers", "iso8601": "ISO-8601 texts", "timestamp": "timestamps"}.get(unit)
    what = what or f"texts of the form {look.format.format if look.format else unit}"
    return f"{what} {'with a zone' if look.has_zone else 'without a zone, read as UTC'}"


def _doubts(guess: Guess, section: str, *, only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> Iterator[str]:
    """The doubts about a section as comments."""
    for doubt in guess.unsure:
        head, _, key = doubt.key.partition(".")
        if key == "split.repeats":
            head, key = "split", "repeats"
        if head != section or (only and key not in only) or key in without:
            continue
        yield from textwrap.wrap(
            f"{key}: {doubt.text}" if key else doubt.text, _WIDTH, initial_indent="#? ", subsequent_indent="#?   "
        )
