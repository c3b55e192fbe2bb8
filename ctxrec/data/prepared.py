"""Read a prepared data folder (see `ctxrec.core.schema` for its layout)."""

from __future__ import annotations

import errno
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ctxrec.core import schema, storage
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError, require
from ctxrec.core.toml import build_dataclass
from ctxrec.data import parsing
from ctxrec.data.feedback import GRADES, EventKinds

MAX_VALUES = 16  # values of one categorical feature that an item or a user keeps
_COUNTS = ("items", "items_only_in_log", "train", "valid", "test")
_AGAIN = f"Remove {schema.META} beside it and run ctxrec prepare again"


@dataclass(frozen=True)
class FeatureMeta:
    """Vocabularies and scales, as in `meta.json` under `features`.

    Each of items, users and context maps a categorical feature's name to its values (the value at
    position p has code p + FIRST_CODE) and a numeric one's to {"mean", "std"} of sign(x)·log(1+|x|)
    over its training rows. `actions` are the values of the action column and, with `[events.feedback]`, the kinds of event
    that values make of them; `graded` has these by action (`ctxrec.data.feedback.graded_actions`). `clock` is whether the
    times of the log are those of a clock, and no positions (`ctxrec.data.clock`). `user_lists` are the categorical attributes
    of users that hold several values, with the most that a user has (`MAX_VALUES` at most); `user_texts` are the free texts
    of users.
    """

    item_categories: dict[str, list[str]]
    item_numbers: dict[str, dict[str, float]]
    user_categories: dict[str, list[str]]
    user_numbers: dict[str, dict[str, float]]
    context_categories: dict[str, list[str]]
    context_numbers: dict[str, dict[str, float]]
    context_texts: list[str]
    actions: list[str]
    clock: bool = True
    user_lists: dict[str, int] = field(default_factory=dict)
    user_texts: list[str] = field(default_factory=list)
    graded: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for numbers in (self.item_numbers, self.user_numbers, self.context_numbers):
            for name, scale in numbers.items():
                require(set(scale) == {"mean", "std"}, f"the scale of feature {name!r}", scale, "mean and std")
                sound = math.isfinite(scale["mean"]) and math.isfinite(scale["std"]) and scale["std"] > 0
                require(sound, f"the scale of feature {name!r}", scale, "a finite mean and a std above 0")
        known = (self.item_categories, self.user_categories, self.context_categories, {"actions": self.actions})
        for name, values in ((name, values) for part in known for name, values in part.items()):
            if len(set(values)) != len(values):
                (twice, _), *_ = Counter(values).most_common(1)
                raise UserError(f"the values of feature {name!r} have {twice!r} more than once; expected each once")
        for action, kinds in self.graded.items():
            known_kinds = len(kinds) == len(GRADES) and {*kinds, *([action] if action else [])} <= set(self.actions)
            require(
                known_kinds, f"graded[{action!r}] of features", kinds, f"{len(GRADES)} of the actions, and an action"
            )


@dataclass(frozen=True)
class PreparedData:
    """A prepared data folder: its facts, its item table, and its buckets of user histories."""

    path: str
    meta: dict[str, Any]

    def __repr__(self) -> str:
        counts = self.meta["counts"]
        return f"<PreparedData {self.path!r}: {counts['events']:,} events, {counts['users']:,} users, {counts['items']:,} items>"

    @staticmethod
    def open(path: str) -> PreparedData:
        """Open a folder that `ctxrec.prepare` wrote. A local path becomes absolute, as workers have another folder.

        Raises:
            UserError: it is missing, incomplete or of another format version.
        """
        meta_path = storage.join(path, schema.META)
        if not storage.exists(meta_path):
            raise UserError(f"no prepared data at {path} ({schema.META} is missing); run ctxrec prepare first")
        meta = storage.read_json_object(meta_path)
        if meta.get("format_version") != schema.FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {meta.get('format_version')}; expected {schema.FORMAT_VERSION}. "
                "Run ctxrec prepare again"
            )
        counts = meta.get("counts")
        numbers = isinstance(counts, dict) and all(isinstance(counts.get(name, 0), int) for name in _COUNTS)
        if not numbers or "items" not in meta["counts"] or not {"spec", "features"} <= set(meta):
            raise UserError(f"{meta_path} is damaged; remove it and run ctxrec prepare again")
        return PreparedData(path=storage.absolute(path), meta=meta)

    @cached_property
    def spec(self) -> DatasetSpec:
        return DatasetSpec.from_dict(self.meta["spec"], source=storage.join(self.path, schema.META))

    @cached_property
    def features(self) -> FeatureMeta:
        source = storage.join(self.path, schema.META)
        try:
            made: FeatureMeta = build_dataclass(FeatureMeta, self.meta["features"], source=source, prefix="features.")
        except UserError as error:
            raise UserError(f"{source} is damaged: {error}. {_AGAIN}") from error
        return made

    @cached_property
    def items(self) -> pa.Table:
        table = schema.widen_item_numbers(self._read(storage.join(self.path, schema.ITEMS)).combine_chunks())
        if len(table) != self.num_items:
            raise UserError(
                f"{self.path} is damaged: {schema.ITEMS} has {len(table)} rows; expected {self.num_items}. {_AGAIN}"
            )
        schema.check_schema(table, schema.items_schema(self.spec), source=schema.ITEMS)
        return table

    @property
    def item_texts(self) -> list[str]:
        """The text of each item, "" without one."""
        return [text or "" for text in self.items.column(schema.ITEM_TEXT).to_pylist()]

    @property
    def media_kinds(self) -> list[str]:
        """Which of "image" and "audio" the catalogue has a column for."""
        return [] if self.spec.items is None else list(self.spec.items.media)

    @cached_property
    def kinds(self) -> EventKinds:
        """What the events of the log say."""
        return EventKinds.of(self.spec.events, self.features.actions, self.features.graded)

    @property
    def judging_kinds(self) -> EventKinds | None:
        """`kinds` where values or actions say what is liked; None: all events count alike."""
        return self.kinds if self.kinds.are_judged else None

    def media(self, kind: str) -> tuple[np.ndarray, list[str | bytes]]:
        """Items that have an image or a sound, int64 [N] rising, and the path, URI or content of each.

        Raises:
            UserError: an earlier version prepared the folder, and wrote no such file.
        """
        where = storage.join(self.path, schema.MEDIA)
        if not storage.exists(where):
            raise UserError(
                f"{where} is missing, which names the files of the {kind} column; prepare into a new folder"
            )
        table = self._read(where, [schema.MEDIA_ITEM, kind])
        table = table.filter(table.column(kind).is_valid())
        places = table.column(kind).to_pylist()
        if pa.types.is_struct(table.column(kind).type):  # earlier versions wrote either contents or paths
            places = [place["path"] if place["content"] is None else place["content"] for place in places]
        return table.column(schema.MEDIA_ITEM).to_numpy().astype(np.int64), places

    @property
    def num_items(self) -> int:
        return self.meta["counts"]["items"]

    @property
    def fingerprint(self) -> str:
        """Changes whenever the rows, the spec or the options that made this folder change."""
        return str(self.meta["fingerprint"])

    @cached_property
    def bucket_paths(self) -> list[str]:
        return storage.list_files(storage.join(self.path, schema.HISTORIES))

    def read_bucket(self, bucket: int, columns: list[str] | None = None) -> pa.Table:
        """One bucket of histories, one row a user, users in the order of their ids."""
        return self._read(self.bucket_paths[bucket], columns).combine_chunks()

    def _read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        fs, inner = storage.filesystem(path)
        try:
            return pq.read_table(inner, columns=columns, filesystem=fs)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) not in (None, errno.ENOENT):
                raise  # of the machine, and not of the content
            said = " ".join(str(error).split())[:300]
            raise UserError(f"{path} is missing or damaged ({said}). {_AGAIN}") from error


def encode_categories(values: pa.Array | pa.ChunkedArray, vocabulary: list[str]) -> pa.Array:
    """Codes of string values: MISSING for null and empty, OTHER for what the vocabulary lacks. int32."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    values = values.cast(pa.string())
    known = pa.array(vocabulary, pa.string())
    position = pc.index_in(values, value_set=known)
    if position.null_count:  # another spelling of a value, or a vocabulary that was made before values had one form
        normal = pc.index_in(parsing.normal_categories(values), value_set=parsing.normal_categories(known))
        position = pc.coalesce(position, normal)
    codes = pc.fill_null(pc.add(position, schema.FIRST_CODE), schema.OTHER)
    absent = pc.or_kleene(pc.is_null(values), pc.equal(pc.fill_null(values, ""), ""))
    return pc.if_else(absent, schema.MISSING, codes).cast(pa.int32())
