"""The table of images and sounds of items, without a cluster."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest import readers
from ctxrec.ingest.entities import write_media

BOTH = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def places(folder, *columns):
    """What `write_media` makes of files that have these columns: contents as bytes, paths without their folder, None."""
    for number, column in enumerate(columns):
        pq.write_table(pa.table({"image": column}), folder / f"{number}.parquet")
    files = readers.inspect(str(folder), ["image"], section="items")
    kept = np.ones(sum(map(len, columns)), bool)
    counts = write_media(files, {"image": "image"}, kept, str(folder / schema.MEDIA))
    table = pq.read_table(folder / schema.MEDIA)
    found = [row and (row["content"] or row["path"].removeprefix(f"{folder}/")) for row in table["image"].to_pylist()]
    assert counts == {"image": len(found) - found.count(None)}
    assert table[schema.MEDIA_ITEM].to_pylist() == list(range(len(kept)))
    return found


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ([pa.array(["a.png", " b.png ", "", None])], ["a.png", "b.png", None, None]),
        ([pa.array([b"A", None, b""])], [b"A", None, None]),
        ([pa.array([{"bytes": b"A", "path": "a.png"}, {"path": "b.png"}, {"bytes": b""}, None], BOTH)],
         [b"A", "b.png", None, None]),
        ([pa.array([b"A"]), pa.array(["b.png"]), pa.nulls(1), pa.array([{"bytes": b"B", "path": None}], BOTH)],
         [b"A", "b.png", None, b"B"]),
        ([pa.nulls(1), pa.array([b"A"], pa.large_binary())], [None, b"A"]),
        ([pa.array(["a.png", None, "a.png"]).dictionary_encode()], ["a.png", None, "a.png"]),
    ],
    ids=["paths", "contents", "rows of both", "files of both", "an empty file first", "dictionary"],
)  # fmt: skip
def test_contents_and_paths_may_be_mixed(tmp_path, columns, found):
    assert places(tmp_path, *columns) == found


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1]),
        pa.array([["a.png"]]),
        pa.array([{"bytes": "a.png"}]),
        pa.array([{"path": 1}]),
        pa.array([{"a": 1}]),
    ],
)
def test_a_column_of_neither_is_a_mistake(tmp_path, column):
    with pytest.raises(
        UserError, match=r"column 'image' is .*; expected paths, URIs, the content as bytes, or structs"
    ):
        places(tmp_path, column)


def test_places_of_earlier_versions_are_read(tmp_path):
    data = PreparedData(path=str(tmp_path), meta={})
    for column in (pa.array([None, "a.png"], pa.large_string()), pa.array([None, b"A"], pa.large_binary())):
        pq.write_table(pa.table({"item": pa.array([0, 1], pa.int32()), "image": column}), tmp_path / schema.MEDIA)
        items, found = data.media("image")
        assert items.tolist() == [1] and found == [column[1].as_py()]
    mixed = pa.array([{"content": b"A"}, {"path": "b.png"}], schema.MEDIA_PLACE)
    pq.write_table(pa.table({"item": pa.array([0, 1], pa.int32()), "image": mixed}), tmp_path / schema.MEDIA)
    assert data.media("image")[1] == [b"A", "b.png"]
