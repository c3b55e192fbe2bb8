"""MovieLens latest-small: GroupLens's small development set, 1996 to 2018.

The archive's free-text tags are left out: an item's text with all of them would tell a request what people
wrote only after it.
"""

from __future__ import annotations

import os

import pandas as pd
import pyarrow as pa

from ctxrec.core.errors import UserError
from ctxrec.datasets import common, titles

NAME = "ml-latest-small"
WRITER_VERSION = 1
ARCHIVE_URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
NO_GENRE = "(no genres listed)"
RATINGS: dict[str, common.Kind] = {"userId": "text", "movieId": "text", "rating": "number", "timestamp": "whole"}
MOVIES: dict[str, common.Kind] = {"movieId": "text", "title": "text", "genres": "text"}

SPEC = """\
# MovieLens latest-small (GroupLens): research use, no commercial use. F. M. Harper and J. A. Konstan, 2015, The
# MovieLens Datasets: History and Context, ACM TiiS 5(4), article 19.
name = "ml-latest-small"

[events]
path = "events.parquet"
value = "rating"

[items]
path = "items.parquet"
text = ["title", "genres"]
categorical = ["genres"]
numeric = ["year"]

[split]
strategy = "last"
"""


def write_movielens_small(out: str, source: str | None = None) -> bool:
    """Write the tables and the spec; returns False when they were there, unchanged.

    Args:
        out: local folder.
        source: the archive or a folder with its files; None: download it.

    Raises:
        UserError: no source can be reached, or its files are not the ones expected.
    """
    return common.write_dataset(out, source, writer=f"{NAME} {WRITER_VERSION}", make=lambda: _make(source))


def _make(source: str | None) -> common.Made:
    path = source or _download()
    files = common.find_files(path, ["ratings.csv", "movies.csv"], what="MovieLens latest-small")
    ratings = common.read_frame("ratings.csv", files["ratings.csv"], RATINGS)
    movies = common.read_frame("movies.csv", files["movies.csv"], MOVIES)
    return common.Made(
        tables={"events": _events(ratings), "items": _items(movies)},
        spec=SPEC,
        source=f"GroupLens's files in {os.path.basename(os.path.abspath(path))}",
    )


def _download() -> str:
    try:
        return common.download(ARCHIVE_URL, "ml-latest-small.zip", what="GroupLens's archive")
    except UserError as error:
        raise UserError(
            f"MovieLens latest-small cannot be had: {error}. Get ml-latest-small.zip by other means and give it "
            "with --source"
        ) from error


def _events(ratings: pd.DataFrame) -> pa.Table:
    """Ratings in the file's own order."""
    return pa.table(
        {
            "user_id": pa.array(ratings["userId"], pa.string()),
            "item_id": pa.array(ratings["movieId"], pa.string()),
            "rating": pa.array(ratings["rating"], pa.float32()),
            "timestamp": pa.array(ratings["timestamp"], pa.int64()),
        }
    )


def _items(movies: pd.DataFrame) -> pa.Table:
    names = movies["title"].fillna("").str.strip()
    years = [titles.YEAR.match(name) for name in names]
    genres = [[] if text == NO_GENRE else text.split("|") for text in movies["genres"].fillna(NO_GENRE)]
    return pa.table(
        {
            "item_id": pa.array(movies["movieId"], pa.string()),
            "title": [titles.article_first(name) for name in names],
            "genres": pa.array(genres, pa.list_(pa.string())),
            "year": pa.array([int(match[2]) if match else None for match in years], pa.int32()),
        }
    )
