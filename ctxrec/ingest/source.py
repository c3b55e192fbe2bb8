"""The files of a data set: listed, checked for the columns that the spec names, and fingerprinted."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ctxrec.core import schema, storage
from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import DatasetSpec, FileSpec, ItemsSpec
from ctxrec.core.errors import UserError
from ctxrec.core.time_zones import UTC
from ctxrec.core.version import VERSION
from ctxrec.data import parsing
from ctxrec.ingest import readers, vocabularies
from ctxrec.ingest.id_match import WARNING
from ctxrec.ingest.shards import MAX_ID_BYTES, check_single, event_columns

_NAMED = 5  # files that a note names, at most
HASHED_BYTES = 64 << 20  # larger input files are told apart by size and time of change, not by content


@dataclass(frozen=True)
class Source:
    """The files of a data set, checked to have the columns that the spec names."""

    spec: DatasetSpec
    events: list[readers.FileInfo]
    items: list[readers.FileInfo]
    users: list[readers.FileInfo]
    graph: list[readers.FileInfo]

    @property
    def notes(self) -> list[str]:
        """Files that are left out, which a user may not expect: those without a row, and those whose name begins with . or _."""
        notes = []
        for section in ("events", "items", "users", "graph"):
            part, read = getattr(self.spec, section), {info.path for info in getattr(self, section)}
            empty = [path for path in storage.list_files(part.path) if path not in read] if part is not None else []
            if empty:
                more = f", and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
                notes.append(
                    f"{WARNING}[{section}]: files without any row are left out: {', '.join(empty[:_NAMED])}{more}"
                )
            left = storage.list_files(part.path, hidden=True) if part is not None else []
            left = [path for path in left if readers.is_table(path)]
            if left:
                notes.append(
                    f"[{section}]: {len(left)} files are left out, as a name begins with . or _, such as {left[0]}"
                )
        return notes

    @property
    def num_rows(self) -> int:
        """Rows of the log. The number is an estimate for text formats."""
        return sum(info.num_rows for info in self.events)


def inspect_source(spec: DatasetSpec, live: str = "") -> Source:
    """List the files of a data set and check their columns before anything is read.

    Args:
        spec: the data set.
        live: folder of a service's store, path or URI, whose `events/` come after the log, and whose `items/` and `users/`
            stand before the tables of the spec, since the first row of an id counts; "": none.

    Raises:
        UserError: names the column, the file and the columns found.
    """
    items, users, graph = spec.items, spec.users, spec.graph
    _check_named(spec)

    def files(section: str, part: FileSpec, columns: Sequence[str]) -> list[readers.FileInfo]:
        form = {"delimiter": part.delimiter, "encoding": part.encoding}
        found = readers.inspect(part.path, columns, section=section, **form)
        posted = storage.join(live, section)
        if live and section in ("events", "items", "users") and _has_tables(posted):
            known = {info.path for info in found}
            more = [info for info in readers.inspect(posted, columns, section=section) if info.path not in known]
            found = [*found, *more] if section == "events" else [*more, *found]
        return found

    source = Source(
        spec=spec,
        events=files("events", spec.events, event_columns(spec.events)),
        items=files("items", items, _item_columns(items)) if items else [],
        users=files("users", users, [users.id, *users.columns]) if users else [],
        graph=files("graph", graph, [graph.head, graph.relation, graph.tail]) if graph else [],
    )
    for info in source.events:
        for name in event_columns(spec.events):
            if name in info.types:
                check_single(name, info.types[name], info.path)
    return source


def _has_tables(folder: str) -> bool:
    try:
        return any(readers.is_table(path) for path in storage.list_files(folder))
    except UserError:  # nothing is there
        return False


_REQUIRED = {
    "events": {"user": "the user", "item": "the item", "time": "the time"},
    "items": {"id": "the id of the item"},
    "users": {"id": "the id of the user"},
    "graph": {"head": "the head", "relation": "the relation", "tail": "the tail"},
}


def _check_named(spec: DatasetSpec) -> None:
    """Refuse a spec that leaves a column open, as `ctxrec init` does where it finds none."""
    for section, keys in _REQUIRED.items():
        for key, holds in keys.items():
            if getattr(getattr(spec, section), key, None) == "":
                raise UserError(f"[{section}] {key} is empty; name the column that holds {holds}")


def _item_columns(items: ItemsSpec) -> list[str]:
    return [items.id, *items.text, *items.categorical, *items.numeric, *items.media.values()]


def fingerprint(source: Source, config: Config) -> str:
    """A hash of the rows, the spec and the options of `prepare`; it does not depend on where the files lie."""
    spec = source.spec.to_dict()
    for section in ("events", "items", "users", "graph"):
        if spec[section] is not None:
            spec[section]["path"] = _signatures([info.path for info in getattr(source, section)])
            if not spec[section].get("separators", True):
                del spec[section]["separators"]  # no separator is what specs had before there were any
            if spec[section]["decimal"] is None:
                del spec[section]["decimal"]
    # Specs of earlier versions had none of these keys, and meant what they mean without them.
    if spec["users"] is not None:
        if not spec["users"]["text"]:
            del spec["users"]["text"]  # as above
        if names := _list_columns(source):
            spec["users"]["lists"] = names  # of which earlier versions kept the first value alone
    if spec["events"]["timezone"] == UTC:
        del spec["events"]["timezone"]
    if spec["events"]["time_format"] is None:
        del spec["events"]["time_format"]
    # The constants were options once; they stay part of the fingerprint, so that folders of then are still reused.
    options = dataclasses.asdict(config.prepare)
    options |= {"max_id_bytes": MAX_ID_BYTES, "max_category_values": vocabularies.MAX_CATEGORY_VALUES}
    return storage.sha256_json({"format": schema.FORMAT_VERSION, "version": VERSION, "spec": spec, "prepare": options})


def _list_columns(source: Source) -> list[str]:
    """Categories of users with several values, as far as the files' types and the spec tell."""
    section = source.spec.users
    if section is None:
        return []
    types = [(name, info.types[name]) for info in source.users for name in section.categorical if name in info.types]
    several = {name for name, kind in types if parsing.as_lists(pa.array([], kind)) is not None}
    return sorted({*several, *section.separators})


def _signatures(paths: Sequence[str]) -> list[list[Any]]:
    """Relative name, size and content hash of each file; a large file has its time of change in place of the hash."""
    folders = [path.split("/")[:-1] for path in paths]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    root = "/".join(names[0] for names in shared)
    signatures = []
    for path in paths:
        fs, inner = storage.filesystem(path)
        info = fs.get_file_info(inner)
        small = info.size <= HASHED_BYTES
        mark = hashlib.sha256(storage.read_bytes(path)).hexdigest() if small else info.mtime_ns
        signatures.append([path.removeprefix(root).lstrip("/"), info.size, mark])
    return signatures
