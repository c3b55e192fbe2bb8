"""A folder under a manifest is refused when anything in it has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import FolderKind, hash_files, read_checked, version_of, write_manifest

KIND = FolderKind("box", 3, "make one", "restore it", "Make it again")


@pytest.fixture
def box(tmp_path) -> Path:
    folder = tmp_path / "box"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a")
    (folder / "sub" / "b.bin").write_bytes(b"b")
    files = hash_files(str(folder))
    write_manifest(str(folder), KIND, files=files, model_version=version_of(files), note="n")
    return folder


def check(folder: Path) -> dict:
    return read_checked(str(folder), KIND, scratch="unused")[1]


def test_a_whole_folder_is_read(box):
    manifest = check(box)
    assert set(manifest["files"]) == {"a.bin", "sub/b.bin"} and manifest["note"] == "n"
    assert manifest["files"]["a.bin"] == storage.sha256_file(str(box / "a.bin"))
    assert hash_files(str(box)) == manifest["files"], "the manifest itself is not among the files"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda box: (box / "a.bin").write_bytes(b"c"), r"box at .* is damaged: a\.bin does not .* hash; restore it"),
        (lambda box: (box / "sub" / "b.bin").unlink(), r"is incomplete: sub/b\.bin is missing; restore it"),
        (lambda box: (box / "manifest.json").unlink(), r"no box at .* \(manifest\.json is missing\); make one"),
        (lambda box: (box / "manifest.json").write_text("[1]"), r"manifest\.json holds no manifest"),
        (lambda box: edit(box, format_version=4), r"has format version 4; expected 3\. Make it again"),
        (lambda box: edit(box, note="m"), r"manifest\.json does not match its own hash"),
        (lambda box: edit(box, files={}), r"manifest\.json does not match its own hash"),
        (lambda box: edit(box, files=None), r"manifest\.json does not match its own hash"),
        (lambda box: edit(box, sha256=None), r"manifest\.json does not match its own hash"),
    ],
)
def test_every_change_is_found(box, damage, says):
    damage(box)
    with pytest.raises(UserError, match=says):
        check(box)


def test_a_manifest_lists_all_files_and_at_least_one(box):
    (box / ".DS_Store").write_text("")
    check(box)
    (box / "extra.bin").write_text("")
    with pytest.raises(UserError, match=r"has the file extra\.bin, which manifest\.json does not list; remove it"):
        check(box)
    (box / "extra.bin").unlink()
    write_manifest(str(box), KIND, files={}, model_version=version_of({}))
    with pytest.raises(UserError, match=r"damaged: manifest\.json lists no file; restore it"):
        check(box)


def edit(box: Path, **changes) -> None:
    path = box / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundle_of_an_earlier_version_is_checked_by_its_model_version(box):
    manifest = check(box)
    del manifest["sha256"]
    (box / "manifest.json").write_text(json.dumps(manifest))
    check(box)
    (box / "a.bin").write_bytes(b"c")
    manifest["files"]["a.bin"] = storage.sha256_file(str(box / "a.bin"))
    (box / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not match its own hash"):
        check(box)
