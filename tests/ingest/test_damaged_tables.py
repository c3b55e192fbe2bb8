"""`ctxrec init` and Python look at files that are damaged: a mistake is one line, and a bad line costs itself."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctxrec.core.errors import UserError
from ctxrec.ingest.guess import sample_files

DAMAGED = {
    "names.parquet": (None, "column 'x' stands twice in .*names.parquet"),
    "returns.csv": (b"a,b\r\r,c\n" * 9 + bytes(range(256)), "returns.csv cannot be read"),
    "zeros.csv": (bytes(500), "zeros.csv cannot be read"),
    "packed.csv.gz": (b"not packed", "packed.csv.gz cannot be read"),
    "quote.csv": (b'user_id,item_id,timestamp\n"a,1,1600000000\n' + b"b,2,1600000001\n" * 50, "quotation mark"),
    "list.jsonl": (b'[{"user_id": 1}]', "holds no row; expected one JSON object in each line"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_cannot_be_looked_at_is_a_users_mistake(tmp_path, name):
    content, message = DAMAGED[name]
    if content is None:
        pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["x", "x"]), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        sample_files(str(tmp_path / name))


def test_half_of_a_pair_of_surrogates_costs_its_line_alone(tmp_path):
    lines = [r'{"user_id": "\ud800", "item_id": 1}', r'{"user_id": "\ud83d\ude00", "item_id": 2}', "[" * 100_000]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert sample_files(str(tmp_path / "log.jsonl")).rows.to_pylist() == [{"user_id": "\U0001f600", "item_id": 2}]
