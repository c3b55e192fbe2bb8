import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import assert_users_mistake, call
from paths import REPO

from ctxrec import datasets
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.datasets import movielens_100k

EVENTS = [("196", "2", "3", "881250949"), ("1", "1", "5", "881250949"), ("196", "1", "4", "881250948")]
USERS = [("1", "24", "M", "technician", "85711"), ("196", "49", "F", "writer", "55105")]


def lines(rows, separator):
    return "".join(separator.join(row) + "\n" for row in rows)


@pytest.fixture
def atomic(tmp_path, monkeypatch) -> Path:
    """A small data set in RecBole's layout, with its sums."""
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    texts = {
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + lines(EVENTS, "\t"),
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tUsual Suspects, The\t1995\tCrime Thriller\n"
        "2\tunkonwn\tunkonwn\tunknown\n"
        "3\tDouble vie de Véronique, La (Double Life, The)\t1991\tDrama\n",
        "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n" + lines(USERS, "\t"),
        "kg": "head_id:token\trelation_id:token\ttail_id:token\nm.1\tfilm\tm.2\n",
        "link": "item_id:token\tentity_id:token\n1\tm.1\n",
    }
    for name, text in texts.items():
        (folder / f"ml-100k.{name}").write_text(text, encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        monkeypatch.setitem(movielens_100k.ATOMIC_SHA256, f"ml-100k.{name}", digest)
    return folder


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """The same data set in GroupLens's layout."""
    folder = tmp_path / "grouplens" / "ml-100k"
    folder.mkdir(parents=True)

    def flags(*genres):
        return "|".join(str(int(genre in genres)) for genre in movielens_100k.GENRES)

    texts = {
        "u.data": lines(EVENTS, "\t"),
        "u.user": lines(USERS, "|"),
        "u.item": f"1|Usual Suspects, The (1995)|14-Aug-1995||url|{flags('Crime', 'Thriller')}\n"
        f"2|unknown||||{flags('unknown')}\n"
        f"3|Double vie de Véronique, La (Double Life, The) (1991)|01-Jan-1991||url|{flags('Drama')}\n",
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("latin-1"))
        if name in movielens_100k.RAW_SHA256:
            monkeypatch.setitem(movielens_100k.RAW_SHA256, name, hashlib.sha256(text.encode("latin-1")).hexdigest())
    return folder


def tables(out: Path) -> dict[str, list]:
    return {name: pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("events", "items", "users")}


def test_both_layouts_give_the_same_tables(atomic, raw, tmp_path):
    assert datasets.write_movielens_100k(str(tmp_path / "a"), str(atomic))
    assert datasets.write_movielens_100k(str(tmp_path / "b"), str(raw))
    made = tables(tmp_path / "a")
    assert made == tables(tmp_path / "b")
    assert [(e["user_id"], e["item_id"], e["timestamp"]) for e in made["events"]] == [
        (user, item, int(time)) for user, item, _, time in EVENTS
    ]
    assert made["items"][0] == {
        "item_id": "1", "title": "The Usual Suspects (1995)", "genres": ["Crime", "Thriller"], "year": 1995
    }  # fmt: skip
    assert (made["items"][1]["title"], made["items"][1]["year"]) == ("unknown", None)
    assert made["items"][2]["title"] == "La Double vie de Véronique (Double Life, The) (1991)"
    with_graph, without = load_spec(str(tmp_path / "a/dataset.toml")), load_spec(str(tmp_path / "b/dataset.toml"))
    assert with_graph.graph is not None and without.graph is None
    assert with_graph.split.strategy == "last" and with_graph.events.value == "rating"
    assert pq.read_table(tmp_path / "a/graph.parquet").to_pylist() == [{"head": "1", "relation": "film", "tail": "m.2"}]


def test_zips_and_wheels_are_read_without_unpacking(atomic, raw, tmp_path):
    for folder, prefix in ((atomic, "recbole/dataset_example/ml-100k/"), (raw, "ml-100k/")):
        archive = tmp_path / f"{folder.parent.name}.zip"
        with zipfile.ZipFile(archive, "w") as made:
            made.writestr("elsewhere/u.data", "another set")
            for path in folder.iterdir():
                made.write(path, prefix + path.name)
        out = tmp_path / f"out-{archive.stem}"
        assert datasets.write_movielens_100k(str(out), str(archive))
        assert archive.name in datasets.source_name(str(out))


def test_a_second_call_reuses_what_is_unchanged(atomic, tmp_path):
    out = tmp_path / "out"
    assert datasets.write_movielens_100k(str(out), str(atomic))
    assert not datasets.write_movielens_100k(str(out), str(atomic))
    assert not datasets.write_movielens_100k(str(out))  # no source named: what is there will do
    (out / "users.parquet").write_bytes(b"damaged")
    assert datasets.write_movielens_100k(str(out), str(atomic))
    assert len(tables(out)["users"]) == 2


def test_a_changed_file_is_refused(atomic, tmp_path):
    with open(atomic / "ml-100k.inter", "a") as log:
        log.write("1\t1\t1\t1\n")
    with pytest.raises(UserError, match=r"ml-100k.inter has sha256 .* expected .*; take an unchanged copy"):
        datasets.write_movielens_100k(str(tmp_path / "out"), str(atomic))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"found notes.txt; expected u.data, u.item and u.user"):
        datasets.write_movielens_100k(str(tmp_path / "out"), str(tmp_path))
    with pytest.raises(UserError, match="neither a folder nor a zip file"):
        datasets.write_movielens_100k(str(tmp_path / "out"), str(tmp_path / "none"))


def test_offline_fails_fast_with_one_line(tmp_path):
    """A real process whose network leads nowhere: a closed local port stands as proxy and as package index."""
    closed = "http://127.0.0.1:9"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "CTXREC_CACHE": str(tmp_path / "cache")}
    env |= {
        "https_proxy": closed,
        "http_proxy": closed,
        "PIP_INDEX_URL": f"{closed}/simple",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    command = [sys.executable, "-m", "ctxrec.datasets", "movielens-100k", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=env, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith("error: MovieLens-100K cannot be had: ") and done.stderr.count("\n") == 1
    assert "--source" in done.stderr and "GroupLens's archive is not reachable" in done.stderr


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    assert_users_mistake(
        call("ctxrec.datasets.__main__", "netflix", "--out", str(tmp_path)), "expected one of movielens-100k"
    )
