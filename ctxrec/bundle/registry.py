"""Published versions of a model side by side, and which of them is served.

MODELS/versions/VERSION/   a bundle; MODELS/rerankers/VERSION/ its second stage
MODELS/current.json        which version is served, and which were before; replaced whole
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs

from ctxrec.bundle.format import check_bundle
from ctxrec.bundle.publish_lock import publishing
from ctxrec.bundle.reranker_folder import copy_reranker
from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import is_version, version_of
from ctxrec.core.run_paths import BundlePaths, ModelsPaths, RunPaths

logger = logging.getLogger(__name__)

_REMEMBERED = 20  # earlier versions to which a rollback can return


@dataclass(frozen=True)
class Published:
    """The content of `current.json`: the served version, and the versions before it, the latest last."""

    version: str
    previous: tuple[str, ...] = ()
    since: float = field(default=0.0, compare=False)  # epoch seconds of the change


class Superseded(UserError):
    """Another version is served than the one that a candidate was compared with."""


def is_models(folder: str) -> bool:
    """Whether a folder, path or URI, holds published models."""
    return storage.exists(ModelsPaths(folder).current)


def read_published(models: str) -> Published:
    """What is served from a folder of published models.

    Raises:
        UserError: nothing is published there, or `current.json` is damaged.
    """
    path = ModelsPaths(models).current
    if not storage.exists(path):
        raise UserError(f"nothing is published at {models} (current.json is missing); run ctxrec publish first")
    try:
        raw = storage.read_json_object(path)
    except UserError:
        raw = {}
    version, previous = raw.get("version"), raw.get("previous")
    if not (is_version(version) and isinstance(previous, list) and all(map(is_version, previous))):
        raise UserError(
            f"{path} is damaged: it names no version; publish a model with --repair, which writes it anew and keeps the "
            "versions that lie there for a rollback"
        )
    since = raw.get("since")
    return Published(str(version), tuple(previous), float(since) if isinstance(since, int | float) else 0.0)


def version_folder(models: str, version: str) -> str:
    """The bundle of a published version, path or URI."""
    return ModelsPaths(models).version(version).root


def find_bundle(run: str) -> str:
    """The bundle of a run folder, the served bundle of published models, or `run` itself when it is a bundle.

    A local path becomes absolute.

    Raises:
        UserError: none of these is there.
    """
    run = storage.absolute(run)
    if is_models(run):
        return version_folder(run, read_published(run).version)
    for folder in (RunPaths(run).bundle, run):
        if storage.exists(BundlePaths(folder).data):
            return folder
    found = "a folder without bundle/" if storage.exists(run) else "nothing"
    raise UserError(f"found {found} at {run}; expected a run that ctxrec train finished, or its bundle")


def add(bundle: str, models: str) -> str:
    """Copy a checked bundle, and its second stage, beside the published versions; returns its version. `publishing` must
    be held.

    A version that lies there and is damaged is replaced.

    Raises:
        UserError: the bundle is damaged, incomplete or of another format.
    """
    folder, manifest = check_bundle(bundle, scratch=storage.temporary_folder())
    version = manifest["model_version"]
    if version != version_of(manifest["files"]):
        raise UserError(
            f"the bundle at {bundle} is damaged: its version {version} is not the one of its files, "
            f"{version_of(manifest['files'])}; restore it or train again"
        )
    target = version_folder(models, version)
    if not _is_whole(target):
        with tempfile.TemporaryDirectory() as scratch:
            storage.write_dir(target, lambda out: _copy(folder, out), scratch=scratch)
    check_bundle(target, scratch=storage.temporary_folder())
    copy_reranker(bundle, target, version)
    return version


def _is_whole(target: str) -> bool:
    """Whether a published version lies there undamaged."""
    if not storage.exists(target):
        return False
    try:
        check_bundle(target, scratch=storage.temporary_folder())
    except UserError as error:
        logger.warning("the published version is replaced: %s", error)
        return False
    return True


def publish(bundle: str, models: str, *, repair: bool = False, expected: Published | None = None) -> Published:
    """Copy a checked bundle beside the published versions, and then serve it.

    Args:
        bundle: path or URI.
        models: folder of published models, path or URI; made if it is not there.
        repair: write a damaged `current.json` anew: the undamaged versions that lie there become the earlier ones.
        expected: publish only if this is served, and has been since then. A bundle that is served already counts as
            published, so a call that was killed may be made again.

    Raises:
        UserError: the bundle is damaged, incomplete or of another format; what is served stays.
        Superseded: something else than `expected` is served.
    """
    check_bundle(bundle, scratch=storage.temporary_folder())
    with publishing(models):
        return _publish(bundle, models, repair=repair, expected=expected)


def _publish(bundle: str, models: str, *, repair: bool, expected: Published | None) -> Published:
    before = None
    if is_models(models):
        try:
            before = read_published(models)
        except UserError:
            if not repair:
                raise
    version = add(bundle, models)
    if before is None and repair:
        return _write(models, Published(version, _versions_there(models, but=version)))
    if before is not None and before.version == version:
        return before
    if expected is not None and (
        before is None or (before.version, before.since) != (expected.version, expected.since)
    ):
        found = "nothing" if before is None else f"{before.version} since {before.since:.0f}"
        raise Superseded(
            f"{models} serves {found}; expected {expected.version} since {expected.since:.0f}. What is served was changed "
            "meanwhile, so nothing was published"
        )
    if before is not None:
        _warn_of_other_data(models, before.version, version)
    previous = () if before is None else tuple(v for v in (*before.previous, before.version) if v != version)
    return _write(models, Published(version, previous[-_REMEMBERED:]))


def _warn_of_other_data(models: str, before: str, now: str) -> None:
    """Say so where two versions are trained on data sets of different names."""
    names = [_dataset_name(version_folder(models, version)) for version in (before, now)]
    if names[0] != names[1]:
        logger.warning(
            "%s served the data set %r and now serves %r: users, items and posted events may not fit. If this was not "
            "meant, go back with --rollback, and publish each data set into a folder of its own",
            models,
            *names,
        )


def _dataset_name(bundle: str) -> str:
    """The name of the data set that a bundle is trained on; "" where it does not say."""
    path = BundlePaths(bundle).data
    spec = storage.read_json_object(path).get("spec") if storage.exists(path) else None
    return str(spec.get("name", "")) if isinstance(spec, dict) else ""


def _names_there(models: str) -> list[str]:
    """Names of the versions that lie in a folder of published models, in the order of the alphabet."""
    fs, inner = storage.filesystem(version_folder(models, "x"))
    folders = fs.get_file_info(pyarrow.fs.FileSelector(inner.rsplit("/", 1)[0], allow_not_found=True))
    return sorted(info.base_name for info in folders if is_version(info.base_name))


def _versions_there(models: str, *, but: str) -> tuple[str, ...]:
    """Undamaged versions that lie in a folder of published models, the one that was published last at the end."""
    whole = [name for name in _names_there(models) if name != but and _is_whole(version_folder(models, name))]

    def published_at(name: str) -> int:
        fs, inner = storage.filesystem(BundlePaths(version_folder(models, name)).manifest)
        return fs.get_file_info(inner).mtime_ns or 0

    return tuple(sorted(whole, key=published_at))[-_REMEMBERED:]


def roll_back(models: str, version: str | None = None, *, expected: str | None = None) -> Published:
    """Serve an earlier version again: one that lies in the folder, by its name, or the one before the present one.

    Args:
        models: folder of published models, path or URI.
        version: the name; None: the one before.
        expected: go back only if this version is served.

    Raises:
        UserError: there is none, or it is damaged; what is served stays.
        Superseded: another version than `expected` is served.
    """
    read_published(models)
    with publishing(models):
        if expected is not None and (now := read_published(models).version) != expected:
            raise Superseded(f"{models} serves {now}; expected {expected}, so nothing was rolled back")
        return _roll_back(models, version)


def _roll_back(models: str, version: str | None) -> Published:
    now = read_published(models)
    there = _names_there(models)
    if version is None and not now.previous:
        others = [name for name in there if name != now.version]
        name_one = f"; give --rollback one of {', '.join(others)}" if others else "; no other version lies there"
        raise UserError(f"{models} has no version before {now.version} to go back to{name_one}")
    wanted = version or now.previous[-1]
    if version is not None and wanted not in {now.version, *now.previous, *there}:
        raise UserError(f"version {wanted!r} does not lie in {models}; found {', '.join(there)}")
    check_bundle(version_folder(models, wanted), scratch=storage.temporary_folder())
    if wanted == now.version:
        return now
    left = tuple(v for v in now.previous if v != wanted)
    return _write(models, Published(wanted, (*left, now.version) if version else left))


def _write(models: str, now: Published) -> Published:
    now = dataclasses.replace(now, since=round(time.time(), 3))
    content: dict[str, Any] = {"version": now.version, "previous": list(now.previous), "since": now.since}
    storage.write_json(ModelsPaths(models).current, content)
    return now


def _copy(folder: str, out: str) -> None:
    shutil.copytree(folder, out, dirs_exist_ok=True)
