"""Checks that the content of a bundle is sound: hashes say that it is what was written, and not that it can be used.

What fails here would load, and would fail later in a request, or answer it wrongly without a word: a number that is
not finite, an id that stands twice, a position of an item that does not exist.

Legend: I items, E events.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import safe_open

from ctxrec.core import schema
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.data.events import Histories
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.user_ids import is_order
from ctxrec.memory.blend import Blend

_CLOCK = {"hour": (0, 23), "weekday": (0, 6), "month": (1, 12)}  # ranges of `schema.TIME_CONTEXT`


class Unsound(ValueError):
    """A file of a bundle has content that cannot be used; the message names the file and what is wrong."""


def check_finite(folder: str, files: Sequence[str]) -> None:
    """Check that all numbers of all weights and vectors are finite.

    Args:
        folder: of a checked local bundle.
        files: of its manifest, by their paths in the folder.

    Raises:
        Unsound: names the file and the tensor.
    """
    for name in files:
        if not name.endswith(".safetensors"):
            continue
        with safe_open(os.path.join(folder, name), "pt") as stream:
            for key in stream.keys():  # noqa: SIM118  (it is no dict)
                tensor = stream.get_tensor(key)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise Unsound(f"{name} has a number in {key!r} that is not finite")


def check_items(items: pa.Table) -> None:
    """Check the rows of the item table.

    Raises:
        Unsound: an id is missing or stands twice, or a number is not finite.
    """
    _check_ids(items.column(schema.ITEM_ID), "items.parquet", "item")
    for field in items.schema:
        numbers = pa.types.is_floating(field.type)
        if numbers and pc.all(pc.is_finite(items.column(field.name))).as_py() is False:
            raise Unsound(f"items.parquet has a number in {field.name!r} that is not finite")


def check_histories(table: pa.Table, spec: DatasetSpec, order: np.ndarray | None) -> None:
    """Check the users of the stored histories, and that each list has one value for each event.

    Args:
        table: with the columns of `schema.histories_schema`.
        spec: names them.
        order: rows in the order of the users' ids, unsigned [N]; None: the file does not say it.

    Raises:
        Unsound: names what is wrong.
    """
    file = "histories.arrow"
    ids = table.column(schema.USER_ID)
    if order is None or ids.null_count or not is_order(order, ids):
        _check_ids(ids, file, "user")
        if order is not None:
            raise Unsound(f"{file} has another order of the users than that of their ids")
    lengths = None
    of_users = {schema.user_column(name) for name in (spec.users.columns if spec.users else ())}
    wanted = [field for field in schema.histories_schema(spec) if field.name not in of_users]
    for name in [field.name for field in wanted if pa.types.is_list(field.type)]:
        column = table.column(name)
        found = pc.list_value_length(column).combine_chunks()
        lengths = found if lengths is None else lengths
        may_be_null = pa.types.is_string(column.type.value_type)
        if found.null_count or not found.equals(lengths) or (pc.list_flatten(column).null_count and not may_be_null):
            raise Unsound(f"{file} has lists of {name!r} that do not have one value for each event")


def check_events(histories: Histories, features: FeatureMeta, num_items: int) -> None:
    """Check the events of the stored histories and the users' attributes.

    Raises:
        Unsound: an item, an action or a category is none of those known, a number is infinite, or a user's events are
            not in the order of their times.
    """
    events, context, users = histories.events, histories.events.context, histories.users
    first = schema.FIRST_CODE
    codes = {
        "items": (events.items, 0, num_items - 1),
        "actions": (events.actions, 0, len(features.actions)),
        "split": (histories.split, schema.TRAIN, schema.TEST),
        "times": (events.times, 0, np.iinfo(np.int64).max),
    }
    codes |= {name: (context.cat[name], low + first, high + first) for name, (low, high) in _CLOCK.items()}
    of_users = {**users.cat, **users.lists}
    for cat, known in ((context.cat, features.context_categories), (of_users, features.user_categories)):
        codes |= {name: (cat[name], 0, len(values) + first - 1) for name, values in known.items()}
    for name, (found, low, high) in codes.items():
        if len(found) and not (low <= found.min() and found.max() <= high):
            raise Unsound(f"histories.arrow has {name} from {found.min()} to {found.max()}; expected {low} to {high}")
    for name, numbers in (context.num | users.num).items():
        if np.isinf(numbers).any():
            raise Unsound(f"histories.arrow has a number in {name!r} that is not finite")
    back = np.diff(events.times) < 0
    back[events.offsets[1:-1][np.diff(events.offsets)[1:] > 0] - 1] = False  # between two users
    if back.any():
        raise Unsound("histories.arrow has a user whose events are not in the order of their times")


def check_parts(offsets: np.ndarray, length: int, file: str) -> None:
    """Check that offsets divide an array into parts that follow each other.

    Args:
        offsets: int64, where each part begins, and the end of the last one.
        length: of the array.
        file: for the message.

    Raises:
        Unsound: they do not.
    """
    if offsets.ndim != 1 or not len(offsets) or offsets[0] or offsets[-1] != length or (np.diff(offsets) < 0).any():
        raise Unsound(f"{file} has offsets that do not divide its {length} numbers")


def check_sizes(vectors: np.ndarray, widths: Sequence[int], blend: Blend | None, *, num_codes: int) -> None:
    """Check that the vectors, the towers and the blend have the same sizes.

    Args:
        vectors: [I, W] of the towers.
        widths: of the towers' heads.
        blend: of the same bundle.
        num_codes: of events, that of no action too.

    Raises:
        Unsound: names both sizes.
    """
    if vectors.ndim != 2 or vectors.shape[1] != sum(widths):
        raise Unsound(
            f"vectors.safetensors has vectors of shape {vectors.shape}; the towers make {sum(widths)} numbers each"
        )
    if blend is None:
        return
    heads = [*widths, *([] if blend.text_IC is None else [blend.text_IC.shape[1]])]
    shapes = [(width, width) for width in heads]
    if tuple(widths) != blend.widths or [c.shape for c in blend.covariances] != shapes:
        raise Unsound(f"blend.safetensors has heads of {blend.widths}; the towers have {tuple(widths)}")
    if blend.memory.speaks_A is not None and blend.memory.speaks_A.shape != (num_codes,):
        raise Unsound(
            f"blend.safetensors has what {blend.memory.speaks_A.shape} codes of events say; data.json has {num_codes}"
        )
    if blend.weights_2K.shape != (2, len(blend.sources)):
        raise Unsound(
            f"blend.safetensors has weights of shape {blend.weights_2K.shape}; expected (2, {len(blend.sources)})"
        )


def check_text_axes(arrays: Mapping[str, np.ndarray], text_width: int, blend: Blend | None) -> None:
    """Check that the words of a request can be compared with the text head of a blend.

    Args:
        arrays: of vectors.safetensors; where they have "axes", these are [H, C] and "centre" is [H].
        text_width: H.
        blend: of the same bundle.
        num_codes: of events, that of no action too.

    Raises:
        Unsound: names both sizes.
    """
    if "axes" not in arrays or blend is None or blend.text_IC is None:
        return
    wanted = {"axes": (text_width, blend.text_IC.shape[1]), "centre": (text_width,)}
    for name, shape in wanted.items():
        if name not in arrays or arrays[name].shape != shape:
            found = arrays[name].shape if name in arrays else "none"
            raise Unsound(f"vectors.safetensors has {name!r} of shape {found}; expected {shape}")


def _check_ids(ids: pa.ChunkedArray, file: str, what: str) -> None:
    if ids.null_count:
        raise Unsound(f"{file} has {ids.null_count} rows without the id of the {what}")
    if (distinct := pc.count_distinct(ids).as_py()) != len(ids):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
        raise Unsound(f"{file} has {len(ids)} rows and {distinct} ids; {what} {twice.as_py()!r} stands more than once")
