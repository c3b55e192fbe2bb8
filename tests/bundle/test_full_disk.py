"""A full disk while a model is published: one line, what is served stays, and nothing is left of the attempt."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ctxrec.bundle.registry import publish, read_published
from ctxrec.core import failures

EARLIER = Path(__file__).parent / "published_v1"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leave(disk: Path, kilobytes: int) -> None:
    """Fill a disk but for so much."""
    (disk / "filler").unlink(missing_ok=True)
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - (kilobytes << 10)))


def test_what_is_served_stays(tmp_path, small_disk, make_variant):
    """The disk gets page by page more room, so that each file of the new version is once the first that does not fit."""
    (version,) = (EARLIER / "versions").iterdir()
    models = Path(shutil.copytree(EARLIER, small_disk / "models"))
    other = make_variant(str(version), tmp_path / "other")
    before, served, failed = content(models), read_published(str(models)), []
    for room in range(0, 400, 4):
        leave(small_disk, room)
        try:
            publish(str(tmp_path / "other"), str(models))
            break
        except OSError as error:
            failed.append(str(failures.explain(error)))
        after = content(models)
        assert {name: after.get(name) for name in before} == before and read_published(str(models)) == served
        assert not [path for path in models.rglob("*") if path.name.endswith((".tmp", ".old"))]
    assert len(failed) > 10 and all(told.startswith(f"no space is left for {models}") for told in failed), failed
    assert any("current.json" in told for told in failed), failed
    assert read_published(str(models)).version == other


def test_what_a_killed_publish_left_is_removed_though_it_fills_the_disk(tmp_path, small_disk, make_variant):
    (version,) = (EARLIER / "versions").iterdir()
    models = Path(shutil.copytree(EARLIER, small_disk / "models"))
    other = make_variant(str(version), tmp_path / "other")
    left = models / "versions" / f"{other}.0a1b2c3d.tmp"
    shutil.copytree(tmp_path / "other", left)
    (left / "more").write_bytes(bytes(1 << 20))
    leave(small_disk, 0)
    assert publish(str(tmp_path / "other"), str(models)).version == other
