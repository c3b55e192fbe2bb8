from __future__ import annotations

import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.datasets import movielens_small, source_name
from ctxrec.datasets.movielens_small import write_movielens_small

RATINGS = "userId,movieId,rating,timestamp\n2,50,4.0,1445714835\n1,1,3.5,964982703\n1,50,0.5,964981247\n"
MOVIES = """movieId,title,genres
1,Toy Story (1995),Adventure|Children
50,"Usual Suspects, The (1995)",Crime|Mystery|Thriller
7,"Amelie (Fabuleux destin d'Amélie Poulain, Le) (2001)",Romance
8,NA,(no genres listed)
9,"Babylon 5 ",Sci-Fi
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "ml-latest-small"
    made.mkdir()
    (made / "ratings.csv").write_text(RATINGS, encoding="utf-8")
    (made / "movies.csv").write_text(MOVIES, encoding="utf-8")
    (made / "tags.csv").write_text("userId,movieId,tag,timestamp\n2,50,twist ending,1445714994\n")
    return made


def test_tables_and_spec(folder, tmp_path):
    out = tmp_path / "out"
    assert write_movielens_small(str(out), str(folder))
    assert pq.read_table(out / "events.parquet").to_pylist() == [
        {"user_id": "2", "item_id": "50", "rating": 4.0, "timestamp": 1445714835},
        {"user_id": "1", "item_id": "1", "rating": 3.5, "timestamp": 964982703},
        {"user_id": "1", "item_id": "50", "rating": 0.5, "timestamp": 964981247},
    ]
    assert pq.read_table(out / "items.parquet").to_pylist() == [
        {"item_id": "1", "title": "Toy Story (1995)", "genres": ["Adventure", "Children"], "year": 1995},
        {"item_id": "50", "title": "The Usual Suspects (1995)", "genres": ["Crime", "Mystery", "Thriller"], "year": 1995},
        {"item_id": "7", "title": "Amelie (Fabuleux destin d'Amélie Poulain, Le) (2001)", "genres": ["Romance"], "year": 2001},
        {"item_id": "8", "title": "NA", "genres": [], "year": None},
        {"item_id": "9", "title": "Babylon 5", "genres": ["Sci-Fi"], "year": None},
    ]  # fmt: skip
    spec = load_spec(str(out / "dataset.toml"))
    assert (spec.name, spec.events.value, spec.split.strategy) == ("ml-latest-small", "rating", "last")
    assert spec.items.text == ("title", "genres") and not spec.split.repeats


def test_the_archive_is_read_and_reused(folder, tmp_path):
    archive = tmp_path / "ml-latest-small.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for path in folder.iterdir():
            made.write(path, f"ml-latest-small/{path.name}")
    out = str(tmp_path / "out")
    assert write_movielens_small(out, str(archive)) and not write_movielens_small(out, str(archive))
    assert source_name(out) == "GroupLens's files in ml-latest-small.zip"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings.csv", RATINGS.replace("964982703", "yesterday"), "'yesterday' as timestamp in row 2"),
        ("ratings.csv", "userId,movieId\n1,1\n", "expected also rating, timestamp"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n", "found no event"),
        ("movies.csv", "movieId,name\n1,x\n", r"movies.csv has the columns movieId, name; expected also title, genres"),
    ],
)
def test_damaged_files(folder, tmp_path, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_movielens_small(str(tmp_path / "out"), str(folder))
    assert not (tmp_path / "out").exists()


def test_a_missing_file(folder, tmp_path):
    (folder / "movies.csv").unlink()
    with pytest.raises(
        UserError, match=r"found ratings.csv, tags.csv in .*; expected movies.csv of MovieLens latest-small"
    ):
        write_movielens_small(str(tmp_path / "out"), str(folder))


def test_an_archive_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("CTXREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(movielens_small, "ARCHIVE_URL", (tmp_path / "nothing.zip").as_uri())
    with pytest.raises(UserError, match=r"cannot be had: GroupLens's archive is not reachable .* with --source"):
        write_movielens_small(str(tmp_path / "out"))
