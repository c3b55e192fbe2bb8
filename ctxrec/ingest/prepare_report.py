"""What `prepare` found, for a person: `report.json` of a prepared folder, and the summary that the command prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctxrec.core import schema, storage
from ctxrec.data.column_facts import ColumnFacts, FirstReject
from ctxrec.data.prepared import PreparedData
from ctxrec.data.zone_offsets import offsets
from ctxrec.ingest.id_match import WARNING

_MOST = {"actions": 10, "columns": 12, "files": 5}  # lines of each kind; report.json has all
_WIDTH = 120  # characters of a line


def make_report(
    meta: Mapping[str, Any],
    columns: Mapping[str, Sequence[ColumnFacts]],
    files: Mapping[str, Mapping[str, int]],
    actions: Mapping[str, int],
    first_rejects: Mapping[str, FirstReject],
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        meta: the content of meta.json.
        columns: facts of the columns by section of the spec.
        files: rows of each file by section of the spec.
        actions: events of each action, the most frequent first.
        first_rejects: the first rejected row by reason.
    """
    rejects = {
        reason: {"rows": rows} | (dataclasses.asdict(first) if (first := first_rejects.get(reason)) else {})
        for reason, rows in meta["counts"]["rejects"].items()
    }
    return {
        "name": meta["name"],
        "times": meta["times"],
        "actions": dict(actions),
        "columns": {name: [dataclasses.asdict(facts) for facts in found] for name, found in columns.items()},
        "files": {section: dict(rows) for section, rows in files.items()},
        "rejects": rejects,
        "notes": meta["notes"],
    }


def summary(data: PreparedData) -> str:
    """A page for a person about a prepared folder, to be checked at a glance.

    A folder of an earlier version has no report.json; its summary has no columns and files.
    """
    counts, meta = data.meta["counts"], data.meta
    where = storage.join(data.path, schema.REPORT)
    report = storage.read_json(where) if storage.exists(where) else {}
    lines = [
        f"{meta['name']}: {counts['events_read']:,} rows read, {counts['events']:,} events kept",
        f"  users {counts['users']:,}, items {counts['items']:,} ({counts['items_only_in_log']:,} only in the log)",
        f"  split {meta['split']['strategy']}: train {counts['train']:,}, valid {counts['valid']:,}, "
        f"test {counts['test']:,}",
        f"  times are {_unit(data)}" + _from_to(meta.get("times"), data.spec.events.timezone),
    ]
    if "held_out_items" in counts:
        lines.append(
            f"  cold items: {counts['held_out_items']:,} are held out; {counts['held_out_events']:,} of their events "
            "before the test split are dropped"
        )
    lines += _actions(report.get("actions") or meta.get("actions") or {})
    lines += _columns(report.get("columns", {}))
    lines += _files(report.get("files", {}))
    lines += _rejects(counts["rejects"], report.get("rejects", {}))
    if counts["rejects"]:
        lines.append(f"  rejected rows are kept in {storage.join(data.path, schema.REJECTS)}")
    notes = sorted(meta["notes"], key=lambda note: note.startswith(WARNING))  # warnings are what the eye meets last
    lines += [f"  {note}" if note.startswith(WARNING) else f"  note: {note}" for note in notes]
    return "\n".join(lines + ([f"  all of this: {where}"] if report else []))


def losses(data: PreparedData) -> list[str]:
    """What nobody must overlook in a prepared folder: rows that are rejected, and warnings; a sentence each."""
    where = storage.join(data.path, schema.REPORT)
    report = storage.read_json(where) if storage.exists(where) else {}
    found = _rejects(data.meta["counts"]["rejects"], report.get("rejects", {}))
    told = [f"rows are left out: {line.strip()}" for line in found]
    return told + [note.removeprefix(WARNING) for note in data.meta["notes"] if note.startswith(WARNING)]


def _unit(data: PreparedData) -> str:
    unit = data.meta["time_unit"]
    return f"texts of the form {data.spec.events.time_format}" if unit == "format" else str(unit)


def _from_to(times: Mapping[str, int] | None, zone: str) -> str:
    """The first and the last time of the log, on the clock of its zone."""
    if times is None:
        return ""
    seconds = np.array([times[name] // 1_000_000 for name in ("first_us", "last_us")], np.int64)
    first, last = (seconds + offsets(seconds, zone)).astype("datetime64[s]")
    return f", from {first} to {last} ({zone})"


def _actions(actions: Mapping[str, int]) -> list[str]:
    total = sum(actions.values())
    rows = [(name, f"{n:,}", _percent(n / total)) for name, n in actions.items()]
    return _table(("action", "events", "share"), rows, "actions", right=(1, 2))


def _columns(sections: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    lines = []
    for section, found in sections.items():
        # Columns that are empty come first: the eye should not have to look for them.
        ordered = sorted(found, key=lambda facts: facts["missing"] < 1)
        rows = [
            (
                facts["column"],
                facts["use"],
                _percent(facts["missing"]),
                "" if facts["distinct"] is None else f"{facts['distinct']:,}",
                _shown(facts["use"], facts["examples"]),
            )
            for facts in ordered
        ]
        lines += _table((section, "use", "missing", "distinct", "examples"), rows, "columns", right=(2, 3))
    return lines


def _shown(use: str, examples: Sequence[str]) -> str:
    if not examples:
        return "no value"
    return " to ".join(examples) if use in ("numeric", "value") else ", ".join(examples)


def _files(sections: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = []
    for section, files in sections.items():
        # Where not all are shown, those of the fewest rows are.
        some = len(files) > _MOST["files"]
        ordered = sorted(files.items(), key=lambda pair: pair[1]) if some else files.items()
        names = f"{len(files):,} files of [{section}]" if some else f"files of [{section}]"
        lines += _table((names, "rows"), [(name, f"{rows:,}") for name, rows in ordered], "files", right=(1,))
    return lines


def _rejects(counts: Mapping[str, int], firsts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for reason, rows in counts.items():
        first = firsts.get(reason, {})
        lines.append(f"  rejected {rows:,}: {reason}")
        if "file" in first:
            lines[-1] += f"; the first is row {first['row']:,} of {first['file']}: {first['values']}"
    return lines


def _percent(share: float) -> str:
    """A share as a percentage that is 0 or 100 only where nothing or all is meant."""
    if share in (0, 1):
        return f"{share:.0%}"
    return "<0.1%" if share < 0.001 else ">99.9%" if share > 0.999 else f"{share:.1%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str, *, right: Sequence[int]) -> list[str]:
    """Aligned lines of a table under its head; the last line says how many rows are not shown."""
    if not rows:
        return []
    shown = [head, *rows[: _MOST[kind]]]
    widths = [max(len(row[n]) for row in shown) for n in range(len(head))]
    widths[0] = min(widths[0], 60)
    lines = []
    for row in shown:
        first = row[0] if len(row[0]) <= 60 else "..." + row[0][-57:]  # of a path the end tells more
        cells = [first, *row[1:]]
        line = "  ".join(
            c.rjust(w) if n in right else c.ljust(w) for n, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        line = f"    {line}".rstrip()
        lines.append(line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "...")
    left = len(rows) - len(shown) + 1
    return lines + ([f"    and {left:,} more"] if left else [])
