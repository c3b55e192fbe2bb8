"""Files and folders on the local disk, by path and by file:// URI."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs
import pytest

from ctxrec.core import storage
from ctxrec.core.errors import UserError

TREE = ["x.1.parquet", "xy1.parquet", "w.csv", "c/y.parquet", "c/d/z.parquet", "_tmp/t.parquet", "c/.hidden.parquet"]


@pytest.fixture(params=["path", "uri"])
def root(request, tmp_path) -> str:
    """A folder whose name has a dot, written as a path and as a URI."""
    folder = tmp_path / "a.b"
    for name in TREE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return str(folder) if request.param == "path" else f"file://{folder}"


def names(root: str, found: list[str]) -> list[str]:
    assert all(path.startswith(root + "/") for path in found)
    assert all(storage.read_text(path) == path[len(root) + 1 :] for path in found)
    return [path[len(root) + 1 :] for path in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["c/d/z.parquet", "c/y.parquet", "w.csv", "x.1.parquet", "xy1.parquet"]),
        ("/", ["c/d/z.parquet", "c/y.parquet", "w.csv", "x.1.parquet", "xy1.parquet"]),
        ("/*.parquet", ["x.1.parquet", "xy1.parquet"]),
        ("/x.*.parquet", ["x.1.parquet"]),
        ("/*/*.parquet", ["c/y.parquet"]),
        ("/**/*.parquet", ["c/d/z.parquet", "c/y.parquet", "x.1.parquet", "xy1.parquet"]),
        ("/c/**", ["c/d/z.parquet", "c/y.parquet"]),
        ("/**/d/*", ["c/d/z.parquet"]),
        ("/c/d/z.parquet", ["c/d/z.parquet"]),
        ("/w.csv", ["w.csv"]),
    ],
)
def test_files_of_folders_and_globs(root, pattern, expected):
    assert names(root, storage.list_files(root + pattern)) == expected


def test_more_wildcards_of_paths(tmp_path):
    for name in ("w.csv", "wv.csv", "x.csv", "y.csv", "b[1].csv", "sub/w.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(pattern: str) -> list[str]:
        return [Path(path).name for path in storage.list_files(f"{tmp_path}/{pattern}")]

    assert found("?.csv") == ["w.csv", "x.csv", "y.csv"]
    assert found("[wx].csv") == ["w.csv", "x.csv"]
    assert found("[!wx].csv") == ["y.csv"]
    assert found("[v-x]*.csv") == ["w.csv", "wv.csv", "x.csv"]
    assert found("b[1].csv") == ["b[1].csv"]  # a file of that very name
    assert found("s?b/w.csv") == ["w.csv"]
    with pytest.raises(UserError, match="no file"):
        found("sub?w.csv")  # a wildcard stays within a name


def test_not_recursive(root):
    assert names(root, storage.list_files(root, recursive=False)) == ["w.csv", "x.1.parquet", "xy1.parquet"]


def test_nothing_found_names_the_path(root):
    for missing in (root + "/none", root + "/*.json", root + "/none/*.csv"):
        with pytest.raises(UserError, match="no file found") as caught:
            storage.list_files(missing)
        assert missing in str(caught.value)


def test_write_read_exists_delete(root):
    path = storage.join(root, "new/deep/file.json")
    assert not storage.exists(path)
    storage.write_json(path, {"text": "schön ✓", "n": [1, 2.5, None]})
    assert storage.exists(path) and storage.exists(storage.parent(path))
    assert storage.read_json(path) == {"text": "schön ✓", "n": [1, 2.5, None]}
    assert storage.list_files(storage.parent(path)) == [path], "no temporary file is left"
    storage.delete(path)
    storage.delete(path)
    storage.delete(storage.join(root, "new"))
    assert not storage.exists(storage.join(root, "new"))


def test_a_json_that_cannot_be_written_leaves_the_old_file(root):
    path = storage.join(root, "file.json")
    storage.write_json(path, 1)
    for bad in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            storage.write_json(path, bad)
    assert storage.read_json(path) == 1


def test_a_replaced_file_is_whole_for_a_reader_that_has_it_open(tmp_path):
    path = tmp_path / "file.bin"
    storage.write_bytes(str(path), b"a" * 100_000)
    with open(path, "rb") as reader:
        assert reader.read(10) == b"a" * 10
        storage.write_bytes(str(path), b"b" * 100_000)
        assert set(reader.read()) == set(b"a")
    assert set(path.read_bytes()) == set(b"b")


def test_reading_what_is_no_such_file(root, tmp_path):
    with pytest.raises(UserError, match="found nothing"):
        storage.read_bytes(storage.join(root, "none"))
    with pytest.raises(UserError, match="found a folder"):
        storage.read_bytes(root)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        storage.read_text(str(tmp_path / "latin"))
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"half\.json is not valid JSON"):
        storage.read_json(str(tmp_path / "half.json"))


def fill_with(**files: str):
    def fill(folder: str) -> None:
        for name, text in files.items():
            path = Path(folder) / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return fill


def test_write_dir_replaces_the_whole_folder(root, tmp_path):
    target, scratch = storage.join(root, "out/bundle"), tmp_path / "scratch"
    storage.write_dir(target, fill_with(manifest="1", old="1", sub__x="1"), scratch=str(scratch))
    storage.write_dir(target, fill_with(manifest="2", sub__y="2"), scratch=str(scratch))
    found = {path[len(target) + 1 :]: storage.read_text(path) for path in storage.list_files(target)}
    assert found == {"manifest": "2", "sub/y": "2"}
    assert storage.list_files(storage.parent(target)) == storage.list_files(target), "nothing is left beside it"
    assert list(scratch.iterdir()) == []


def test_write_dir_that_fails_leaves_the_old_folder(root, tmp_path):
    target, scratch = storage.join(root, "bundle"), tmp_path / "scratch"
    storage.write_dir(target, fill_with(a="1"), scratch=str(scratch))

    def fail(folder: str) -> None:
        (Path(folder) / "a").write_text("2")
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        storage.write_dir(target, fail, scratch=str(scratch))
    assert storage.read_text(storage.join(target, "a")) == "1"
    assert list(scratch.iterdir()) == []


def test_fetch_dir_of_a_local_folder_is_the_folder(root, tmp_path):
    folder = storage.fetch_dir(root, scratch=str(tmp_path / "scratch"))
    assert (Path(folder) / "w.csv").read_text() == "w.csv"
    assert not (tmp_path / "scratch").exists()


@pytest.fixture
def remote(tmp_path, monkeypatch) -> Path:
    """A folder that storage takes for one of an object store."""
    folder = tmp_path / "remote"
    (folder / "c").mkdir(parents=True)
    (folder / "w.csv").write_text("w")
    (folder / "c" / "y.csv").write_text("y")
    fs = pyarrow.fs.SubTreeFileSystem(str(folder), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(storage, "filesystem", lambda path: (fs, ""))
    return folder


def test_a_fetched_folder_is_not_written_again_while_others_may_read_it(remote, tmp_path):
    scratch = tmp_path / "scratch"
    first = Path(storage.fetch_dir("s3://k/a", scratch=str(scratch)))
    assert storage.local_files(str(first)) == ["c/y.csv", "w.csv"]
    files = {path: path.stat().st_ino for path in first.rglob("*.csv")}
    assert storage.fetch_dir("s3://k/a", scratch=str(scratch)) == str(first)
    assert {path: path.stat().st_ino for path in first.rglob("*.csv")} == files
    (remote / "w.csv").write_text("newer")
    second = Path(storage.fetch_dir("s3://k/a", scratch=str(scratch)))
    assert (second / "w.csv").read_text() == "newer" and (first / "w.csv").read_text() == "w"
    assert sorted(scratch.iterdir()) == sorted([first, second])


def test_what_was_lost_of_a_fetched_folder_is_fetched_again(remote, tmp_path):
    first = Path(storage.fetch_dir("s3://k/a", scratch=str(tmp_path / "scratch")))
    (first / "c" / "y.csv").unlink()
    (first / "w.csv").write_text("")
    again = Path(storage.fetch_dir("s3://k/a", scratch=str(tmp_path / "scratch")))
    assert ((again / "w.csv").read_text(), (again / "c" / "y.csv").read_text()) == ("w", "y")


def test_many_fetch_the_same_folder_at_once(remote, tmp_path):
    (remote / "big").write_bytes(bytes(1 << 22))

    def fetch(_: int) -> tuple[str, int]:
        folder = storage.fetch_dir("s3://k/a", scratch=str(tmp_path / "scratch"))
        return folder, len((Path(folder) / "big").read_bytes())

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(fetch, range(32)))
    assert len(found) == 1 and next(iter(found))[1] == 1 << 22
    assert [str(path) for path in (tmp_path / "scratch").iterdir()] == [next(iter(found))[0]]


@pytest.mark.parametrize(
    ("base", "parts", "expected"),
    [
        ("/a", ("b", "c"), "/a/b/c"),
        ("/a/", ("b",), "/a/b"),
        ("s3://k/a", ("b",), "s3://k/a/b"),
        ("/a", ("/b",), "/b"),
        ("/a", ("gs://k/b",), "gs://k/b"),
        ("", ("b",), "b"),
    ],
)
def test_join(base, parts, expected):
    assert storage.join(base, *parts) == expected


def test_parent():
    assert storage.parent("s3://k/a/b/") == "s3://k/a"
    assert storage.parent("/a/b") == "/a"
    assert storage.parent("b") == str(Path.cwd())


def test_unknown_scheme_is_a_users_mistake():
    with pytest.raises(UserError, match="nosuch://x"):
        storage.exists("nosuch://x/y")


def test_hashes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert storage.sha256_file(str(tmp_path / "f")).startswith("ba7816bf8f01cfea")
    assert storage.sha256_json({"b": 1, "a": [2]}) == storage.sha256_json(json.loads('{"a": [2], "b": 1}'))
    assert storage.sha256_json({"a": 1}) != storage.sha256_json({"a": 2})


def test_brackets_in_names_of_folders_are_no_wildcards(tmp_path):
    folder = tmp_path / "log [1]*" / "day[2]"
    folder.mkdir(parents=True)
    (folder / "a[b].csv").write_text("x")
    (folder / "c.csv").write_text("x")
    base = str(tmp_path / "log [1]*")
    for path, expected in (
        (base, ["a[b].csv", "c.csv"]),
        (f"{base}/day[2]/*.csv", ["a[b].csv", "c.csv"]),
        (f"{base}/**/[c].csv", ["c.csv"]),
        (f"{base}/day[2]/a[b].csv", ["a[b].csv"]),
        (f"{tmp_path}/log*/day[[]2]/c.csv", ["c.csv"]),
    ):
        assert [Path(found).name for found in storage.list_files(path)] == expected, path


def test_folders_of_hive_keys_hold_data_and_other_hidden_names_can_be_listed(tmp_path):
    for name in ("_day=1/a.csv", "_old/b.csv", ".git/c.csv", "_SUCCESS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [Path(p).name for p in storage.list_files(str(tmp_path))] == ["a.csv"]
    assert [Path(p).name for p in storage.list_files(str(tmp_path), hidden=True)] == ["c.csv", "_SUCCESS", "b.csv"]


def test_text_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "t.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert storage.read_json(str(tmp_path / "t.json")) == {"a": 1}
