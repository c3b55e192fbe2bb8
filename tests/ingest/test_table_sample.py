"""What `ctxrec init` looks at: a sample of one table, in one file or several, in its encoding and with odd characters."""

from __future__ import annotations

import guessed_logs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.ingest.guess import guess, sample_files
from ctxrec.ingest.guess.spec_text import spec_text


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


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("naïve", "cp1252"),
        ("élève à l'école, ça va très bien", "cp1252"),
        ("Señor niño, cañón ¿qué?", "cp1252"),
        ("coração, não é útil", "cp1252"),
        ("£5 café", "cp1252"),
        ("książka o życiu i miłości", "cp1250"),
        ("Příliš žluťoučký kůň", "cp1250"),
        ("İstanbul güneş çığ", "cp1254"),
    ],
)
def test_few_letters_of_an_encoding_are_read_and_shown(text, encoding, tmp_path):
    rows = [{"user": f"u{n % 7}", "item": f"i{n % 5}", "time": 1_600_000_000 + n, "note": text} for n in range(60)]
    found = guess([sample_files(guessed_logs.write_csv(tmp_path / "log.csv", rows, encoding=encoding))])
    assert found.tables["events"].sample.rows.column("note")[0].as_py() == text
    (doubt,) = [doubt.text for doubt in found.unsure if doubt.key == "events"]
    assert f"its letters look like {encoding}, as in {text!r}" in doubt


def test_control_characters_of_names_and_values_leave_the_spec_readable(tmp_path):
    rows = {
        "user": ["a", "b"] * 30,
        "item\x7f": ["x\x00", "y\x1b", "z"] * 20,
        "time": [1_600_000_000 + n for n in range(60)],
    }
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    found = guess([sample_files(str(tmp_path / "log.parquet"))], columns={"item": "item\x7f"})
    (tmp_path / "d.toml").write_text(spec_text(found, folder=str(tmp_path)), encoding="utf-8")
    assert load_spec(str(tmp_path / "d.toml")).events.item == "item\x7f"
