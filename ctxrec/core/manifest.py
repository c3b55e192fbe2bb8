"""The manifest of a folder: `manifest.json` with the sha256 of every file beside it and of itself.

A bundle and the second stage of a run are such folders. Whoever loads one checks every hash before it reads a file.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.storage import MANIFEST

_OWN_HASH = "sha256"  # of the manifest without this key


@dataclass(frozen=True)
class FolderKind:
    """What a manifest says of one kind of folder, in the words of its error messages.

    Attributes:
        noun: what the folder is, such as "bundle".
        format_version: the version that this code writes and reads.
        when_missing: what to do where there is no such folder.
        when_damaged: what to do where a file is missing or does not match its hash.
        when_outdated: what to do where the folder has another format version.
    """

    noun: str
    format_version: int
    when_missing: str
    when_damaged: str
    when_outdated: str


def hash_files(folder: str) -> dict[str, str]:
    """Hex sha256 of every file below a local folder, by its relative name."""
    names = (name for name in storage.local_files(folder) if name != MANIFEST)
    return {name: storage.sha256_file(os.path.join(folder, name)) for name in names}


def version_of(files: dict[str, str]) -> str:
    """A short name of a folder's content: the first 12 hex digits of the sha256 over the hashes of its files."""
    return storage.sha256_json(files)[:12]


def is_version(name: object) -> bool:
    """Whether a value from a file can be the name of a version, and so of its folder."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None


def write_manifest(folder: str, kind: FolderKind, *, files: dict[str, str], **facts: Any) -> None:
    """Write the manifest of a complete local folder.

    Args:
        folder: local path.
        kind: of the folder.
        files: what `hash_files` says of it.
        **facts: what else the manifest records, such as `model_version`; JSON values.
    """
    content = {"format_version": kind.format_version, **facts, "files": files}
    text = json.dumps(content | {_OWN_HASH: storage.sha256_json(content)}, indent=1, ensure_ascii=False)
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as stream:
        stream.write(text)


def read_run_manifest(run: str) -> dict[str, Any]:
    """The manifest of a finished run.

    Args:
        run: path or URI.

    Raises:
        UserError: it is no manifest of a run, or a value in it has another type.
    """
    path = storage.join(run, MANIFEST)
    remedy = "remove it and run ctxrec train again, which goes on from the checkpoints"
    try:
        manifest = storage.read_json_object(path)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    for key in ("data_path", "data_fingerprint", "model_version"):
        if not isinstance(manifest.get(key), str):
            raise UserError(f"{path} is damaged: {key} is {manifest.get(key)!r}; expected a text; {remedy}")
    return manifest


def read_checked(path: str, kind: FolderKind, *, scratch: str) -> tuple[str, dict[str, Any]]:
    """A local folder with the content of `path`, every hash of which is checked, and its manifest.

    Args:
        path: path or URI.
        kind: of the folder.
        scratch: local folder for a copy of what lies at a URI.

    Raises:
        UserError: the folder is missing, of another format, incomplete or damaged; the message names the file.
    """
    where = f"the {kind.noun} at {path}"
    if not storage.exists(storage.join(path, MANIFEST)):
        raise UserError(f"no {kind.noun} at {path} ({MANIFEST} is missing); {kind.when_missing}")
    folder = storage.fetch_dir(path, scratch=scratch)
    manifest = storage.read_json(os.path.join(folder, MANIFEST))
    if not isinstance(manifest, dict):
        raise UserError(f"{where} is damaged: {MANIFEST} holds no manifest; {kind.when_damaged}")
    if manifest.get("format_version") != kind.format_version:
        found = f"format version {manifest.get('format_version')}; expected {kind.format_version}"
        raise UserError(f"{where} has {found}. {kind.when_outdated}")
    if not _is_whole(manifest):
        raise UserError(f"{where} is damaged: {MANIFEST} does not match its own hash; {kind.when_damaged}")
    for key in ("model_version", "encoder", "data_fingerprint"):
        value = manifest.get(key, "")
        if not isinstance(value, str) or (key == "model_version" and not is_version(value)):
            found = f"{key} {str(value)[:40]!r} in {MANIFEST}"
            raise UserError(f"{where} is damaged: {found}; expected a word; {kind.when_damaged}")
    _check_listed(folder, manifest["files"], where, kind)
    for name, digest in manifest["files"].items():
        file = os.path.join(folder, name)
        if not os.path.isfile(file):
            raise UserError(f"{where} is incomplete: {name} is missing; {kind.when_damaged}")
        if storage.sha256_file(file) != digest:
            raise UserError(f"{where} is damaged: {name} does not match its hash; {kind.when_damaged}")
    return folder, manifest


def _check_listed(folder: str, files: dict[str, str], where: str, kind: FolderKind) -> None:
    """A manifest must list the files of its folder, all of them."""
    if not files:
        raise UserError(f"{where} is damaged: {MANIFEST} lists no file; {kind.when_damaged}")
    there = storage.local_files(folder)
    outside = [name for name in files if os.path.isabs(name) or ".." in name.split("/")]
    if outside:
        raise UserError(f"{where} is damaged: {MANIFEST} lists {outside[0]!r}, outside of it; {kind.when_damaged}")
    unlisted = sorted(name for name in there if name not in files and not _is_free(name))
    if unlisted:
        raise UserError(
            f"{where} has the file {unlisted[0]}, which {MANIFEST} does not list; remove it, or {kind.when_damaged}"
        )


def _is_free(name: str) -> bool:
    """Whether a manifest need not list a file: itself, and hidden files such as those of a file manager."""
    return name == MANIFEST or os.path.basename(name).startswith(".")


def _is_whole(manifest: dict[str, Any]) -> bool:
    """Whether a manifest matches its own hash, and lists files."""
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return False
    if _OWN_HASH not in manifest:  # a bundle of an earlier version, whose model version is the hash of its files
        return version_of(manifest["files"]) == manifest.get("model_version")
    content = {key: value for key, value in manifest.items() if key != _OWN_HASH}
    return bool(storage.sha256_json(content) == manifest[_OWN_HASH])
