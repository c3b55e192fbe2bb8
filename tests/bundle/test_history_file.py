"""Histories of a bundle: written bucket by bucket, mapped whole, and the same from a file of an earlier version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from bucket_files import write_shop

from ctxrec.bundle import history_file
from ctxrec.bundle.content_check import Unsound
from ctxrec.bundle.history_file import ORDER, read_histories, write_histories
from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.data.events import histories_from_table
from ctxrec.data.user_ids import UserIds


class Buckets:
    """The buckets of a prepared folder, with all columns of the schema."""

    def __init__(self, data) -> None:
        self.data, self.bucket_paths = data, data.bucket_paths

    def read_bucket(self, bucket: int) -> pa.Table:
        table = self.data.read_bucket(bucket)
        items = table.column(schema.EVENT_ITEMS).combine_chunks()
        numbers = pa.ListArray.from_arrays(items.offsets, pa.array(np.arange(len(items.flatten())), pa.float32()))
        for name in (schema.EVENT_VALUES, schema.EVENT_GAPS):
            table = table.append_column(name, numbers)
        return table.select([field.name for field in schema.histories_schema(self.data.spec)])


@pytest.fixture(scope="module")
def buckets(make_world, tmp_path_factory) -> Buckets:
    return Buckets(write_shop(tmp_path_factory.mktemp("histories") / "data", make_world)[0])


@pytest.fixture
def whole(buckets) -> pa.Table:
    return pa.concat_tables([buckets.read_bucket(n) for n in range(len(buckets.bucket_paths))])


def read(path, buckets: Buckets):
    data = buckets.data
    return read_histories(str(path), data.spec, data.features, num_items=data.num_items, source="the file")


def write_table(path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def assert_are(found, table: pa.Table, features) -> None:
    expected = histories_from_table(table, features)
    assert isinstance(found.users.ids, UserIds) and list(found.users.ids) == expected.users.ids.tolist()
    for name in ("offsets", "items", "times", "actions"):
        np.testing.assert_array_equal(getattr(found.events, name), getattr(expected.events, name))
    np.testing.assert_array_equal(found.split, expected.split)
    for name in schema.TIME_CONTEXT:
        np.testing.assert_array_equal(found.events.context.cat[name], expected.events.context.cat[name])
    assert dict(found.users.ids.rows) == {user: row for row, user in enumerate(expected.users.ids)}


def test_histories_are_those_of_all_buckets(buckets, whole, tmp_path):
    write_histories(str(tmp_path / "file"), buckets)
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing else is left"
    assert_are(read(tmp_path / "file", buckets), whole, buckets.data.features)


def test_columns_are_pieces_of_the_mapped_file(buckets, tmp_path):
    write_histories(str(tmp_path / "file"), buckets)
    with pa.memory_map(str(tmp_path / "file")) as mapped:
        assert pa.ipc.open_file(mapped).num_record_batches == 1
    histories = read(tmp_path / "file", buckets)
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(tmp_path / "file"))]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    for column in (histories.events.items, histories.events.times, histories.events.actions, histories.split):
        address = column.__array_interface__["data"][0]
        assert any(start <= address and address + column.nbytes <= stop for start, stop in spans)


def test_a_file_of_an_earlier_version_has_the_same_histories(buckets, whole, tmp_path):
    write_table(tmp_path / "file", whole)
    with pa.memory_map(str(tmp_path / "file")) as mapped:
        assert pa.ipc.open_file(mapped).num_record_batches == len(buckets.bucket_paths) > 1
    assert_are(read(tmp_path / "file", buckets), whole, buckets.data.features)


def test_test_events_that_were_trained_on_are_validation_events(buckets, whole, tmp_path):
    write_histories(str(tmp_path / "file"), buckets, trained=True)
    before, now = histories_from_table(whole, buckets.data.features).split, read(tmp_path / "file", buckets).split
    assert (before == schema.TEST).any()
    np.testing.assert_array_equal(now, np.where(before == schema.TEST, schema.VALID, before))


def test_a_wrong_order_of_users_is_refused(buckets, tmp_path):
    write_histories(str(tmp_path / "file"), buckets)
    with pa.memory_map(str(tmp_path / "file")) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
    place = table.column_names.index(ORDER)
    wrong = pa.array(table.column(ORDER).to_numpy()[::-1])
    write_table(tmp_path / "wrong", table.set_column(place, ORDER, wrong))
    with pytest.raises(Unsound, match="another order of the users than that of their ids"):
        read(tmp_path / "wrong", buckets)


def test_more_events_than_a_file_holds_are_refused(buckets, tmp_path, monkeypatch):
    monkeypatch.setattr(history_file, "_MOST", 10)
    with pytest.raises(UserError, match=r"events; the histories of a bundle hold at most 10"):
        write_histories(str(tmp_path / "file"), buckets)
    assert not list(tmp_path.iterdir())


def test_a_log_without_events_and_users_is_a_file(buckets, whole, tmp_path):
    class Empty(Buckets):
        def read_bucket(self, bucket: int) -> pa.Table:
            return super().read_bucket(bucket).slice(0, 0)

    write_histories(str(tmp_path / "file"), Empty(buckets.data))
    assert_are(read(tmp_path / "file", buckets), whole.slice(0, 0), buckets.data.features)
