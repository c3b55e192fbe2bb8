"""What `ctxrec init` looks at: a sample of one table, in one file or several."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctxrec.core.errors import UserError
from ctxrec.ingest.guess import sample_files


def test_a_folder_of_two_tables_is_refused(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    pq.write_table(
        pa.table({"user_id": ["a"], "item_id": ["x"], "timestamp": [1], "action": ["view"]}), folder / "events.parquet"
    )
    pq.write_table(
        pa.table({"item_id": ["x"], "title": ["t"], "brand": ["b"], "price": [1.0]}), folder / "items.parquet"
    )
    with pytest.raises(
        UserError, match=r"holds files of different tables: .*events\.parquet has user_id.*Name the files"
    ):
        sample_files(str(folder))
    (folder / "items.parquet").unlink()
    pq.write_table(pa.table({"user_id": ["a"], "item_id": ["x"], "timestamp": [1]}), folder / "later.parquet")
    assert sample_files(str(folder)).num_rows == 2, "a column more in one file is no other table"
