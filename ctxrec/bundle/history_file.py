"""The histories of a bundle as one Arrow file that a process maps into memory: it reads what requests ask for.

The file is a single record batch, so that every column is one piece of the mapped file and none is copied. It is written
bucket by bucket; only ids, attributes and texts of all users are in memory while it is written.

Legend: N users, E events.
"""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pyarrow as pa

from ctxrec.bundle import content_check
from ctxrec.core import schema
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.data.events import Histories, histories_from_table, one_piece
from ctxrec.data.prepared import FeatureMeta, PreparedData
from ctxrec.data.user_ids import UserIds, sorted_rows

ORDER = "rows_by_user_id"  # a column: the rows in the order of the ids. Bundles of earlier versions have none
_MOST = (1 << 31) - 1  # events that lists of Arrow with 32-bit offsets hold


def write_histories(path: str, data: PreparedData, *, trained: bool = False) -> None:
    """Write all buckets as one file.

    Args:
        path: local path of the file.
        data: the prepared data.
        trained: whether the test events were trained on too; the file then has them as validation events.

    Raises:
        UserError: there are more events than one file holds.
    """
    wanted = data.read_bucket(0).schema
    of_events = [field for field in wanted if _is_plain(field)]
    others = [field.name for field in wanted if not _is_plain(field)]
    kept, lengths = [], [np.zeros(1, np.int64)]
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        pieces = [os.path.join(folder, str(number)) for number in range(len(of_events))]
        for bucket in range(len(data.bucket_paths)):
            table = data.read_bucket(bucket).cast(wanted).combine_chunks()
            if trained:
                table = _without_test(table)
            kept.append(table.select(others))
            lists = {field.name: table.column(field.name).combine_chunks() for field in of_events}
            lengths.append(lists[schema.EVENT_ITEMS].value_lengths().to_numpy(zero_copy_only=False))
            for field, piece in zip(of_events, pieces, strict=True):
                with open(piece, "ab") as stream:
                    stream.write(np.ascontiguousarray(lists[field.name].flatten().to_numpy()).data)
        offsets = np.cumsum(np.concatenate(lengths), dtype=np.int64)
        if offsets[-1] > _MOST:
            raise UserError(f"the log has {offsets[-1]:,} events; the histories of a bundle hold at most {_MOST:,}")
        columns = dict(zip(others, pa.concat_tables(kept).combine_chunks().columns, strict=True))
        for field, piece in zip(of_events, pieces, strict=True):
            values = pa.Array.from_buffers(field.type.value_type, int(offsets[-1]), [None, _mapped(piece)])
            columns[field.name] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=field.type)
        order = sorted_rows(one_piece(columns[schema.USER_ID]))
        made = pa.table([columns[name] for name in wanted.names], schema=wanted).append_column(ORDER, pa.array(order))
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, made.schema) as writer:
            writer.write_table(made)


def read_histories(path: str, spec: DatasetSpec, features: FeatureMeta, *, num_items: int, source: str) -> Histories:
    """The histories of a file, mapped into memory, after checking their content.

    Args:
        path: local path of the file.
        spec, features: of the data set.
        num_items: items of the catalogue.
        source: what the file is, for messages.

    Raises:
        UserError: a column is missing or has another type.
        Unsound: the content cannot be used (`ctxrec.bundle.content_check`).
    """
    with pa.memory_map(path) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
    schema.check_schema(table, schema.histories_schema(spec, features.user_lists), source=source)
    order = one_piece(table.column(ORDER)).to_numpy() if ORDER in table.column_names else None
    content_check.check_histories(table, spec, order)
    ids = UserIds(one_piece(table.column(schema.USER_ID)), order)
    histories = histories_from_table(table, features, ids=ids)
    content_check.check_events(histories, features, num_items)
    pa.default_memory_pool().release_unused()  # what the checks took
    return histories


def _is_plain(field: pa.Field) -> bool:
    """Whether a column has a number for each event."""
    plain = pa.types.is_list(field.type) and pa.types.is_primitive(field.type.value_type)
    return plain and not field.name.startswith(schema.user_column(""))


def _mapped(path: str) -> pa.Buffer:
    if not os.path.getsize(path):
        return pa.py_buffer(b"")
    with pa.memory_map(path) as mapped:
        return mapped.read_buffer()


def _without_test(table: pa.Table) -> pa.Table:
    """A bucket with its test events as validation events."""
    place = table.column_names.index(schema.EVENT_SPLIT)
    lists = table.column(place).combine_chunks()
    values = lists.flatten().to_numpy()
    split = pa.array(np.where(values == schema.TEST, schema.VALID, values).astype(np.int8))
    offsets = pa.array(
        np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))]), pa.int32()
    )
    return table.set_column(place, table.schema.field(place), pa.ListArray.from_arrays(offsets, split))
