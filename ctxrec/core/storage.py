"""Files and folders by path or URI (local, s3://, gs://, hdfs://), on pyarrow's file systems."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from ctxrec.core import failures
from ctxrec.core.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}  # by the end of a file's name
MANIFEST = "manifest.json"  # the file that is written last into a folder, which is incomplete without it

_STALE = re.compile(r"\.[0-9a-f]{8}\.(tmp|old)$")  # names that a file or folder has while it is written
_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def is_uri(path: str) -> bool:
    """Whether `path` is a URI such as s3://bucket/folder, and not a local path."""
    return bool(_URI.match(path))


def filesystem(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system that a path or URI lies on, and the path inside it.

    Raises:
        UserError: the URI names no file system that can be opened.
    """
    if not is_uri(path):
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(path)
    try:
        return pyarrow.fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be opened: {error}") from error


def join(base: str, *parts: str) -> str:
    """`base/parts`; a part that is absolute or a URI replaces what stands before it."""
    for part in parts:
        base = part if is_uri(part) or os.path.isabs(part) else f"{base.rstrip('/')}/{part}" if base else part
    return base


def absolute(path: str) -> str:
    """A local path made absolute; a URI as it is."""
    return path if is_uri(path) else os.path.abspath(path)


def parent(path: str) -> str:
    """The folder that holds `path`, absolute for a local one."""
    if is_uri(path):
        return path.rstrip("/").rsplit("/", 1)[0]
    return os.path.dirname(os.path.abspath(path))


def exists(path: str) -> bool:
    """Whether a file or folder lies at a path or URI."""
    fs, inner = filesystem(path)
    return fs.get_file_info(inner).type != pyarrow.fs.FileType.NotFound


def make_dir(path: str) -> None:
    """Make a folder with all folders above it; an existing folder stays as it is."""
    fs, inner = filesystem(path)
    with failures.naming(path):
        fs.create_dir(inner, recursive=True)


def delete(path: str) -> None:
    """Remove a file, or a folder with all its content. A path that does not exist is ignored."""
    fs, inner = filesystem(path)
    kind = fs.get_file_info(inner).type
    if kind == pyarrow.fs.FileType.Directory:
        fs.delete_dir(inner)
    elif kind == pyarrow.fs.FileType.File:
        fs.delete_file(inner)


def open_stream(path: str) -> pa.NativeFile:
    """The content of a file as a stream, unpacked where its name ends in .gz, .bz2, .zst or .lz4, in any case."""
    fs, inner = filesystem(path)
    kind = next((kind for ending, kind in COMPRESSIONS.items() if inner.lower().endswith(ending)), None)
    return fs.open_input_stream(inner, compression=kind)


def is_hidden(name: str) -> bool:
    """Whether a name marks a file or folder that holds no data, because it begins with . or _. A folder of a hive
    table such as _day=2 holds data."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def list_files(path: str, *, recursive: bool = True, hidden: bool = False) -> list[str]:
    """Files at `path`, sorted: those of a folder, those that match a glob, or the one file.

    Files below a hidden name (`is_hidden`) are left out; with `hidden`, they are the ones listed. Brackets, asterisks
    and question marks in the names of folders that exist are no wildcards. In a glob, `*` stays within a folder's name and `**/` stands for any
    number of folders.

    Raises:
        UserError: nothing is there.
    """
    fs, inner = filesystem(path)
    bare = path.rstrip("/")
    prefix = bare[: len(bare) - len(inner)] if is_uri(path) and bare.endswith(inner) else ""
    root, pattern = inner, None
    kind = fs.get_file_info(inner).type
    if kind == pyarrow.fs.FileType.File:
        return [] if hidden else [path]
    if kind == pyarrow.fs.FileType.NotFound and re.search(r"[*?\[]", inner):
        root = _existing_folder(fs, inner)
        pattern = re.compile(
            re.escape(root.rstrip("/")) + "/" + _glob_pattern(inner[len(root) :].lstrip("/")), re.DOTALL
        )
    selector = pyarrow.fs.FileSelector(root, recursive=recursive, allow_not_found=True)
    found = sorted(
        info.path
        for info in fs.get_file_info(selector)
        if info.type == pyarrow.fs.FileType.File
        and any(map(is_hidden, info.path[len(root) :].split("/"))) == hidden
        and (pattern is None or pattern.fullmatch(info.path))
    )
    local = isinstance(fs, pyarrow.fs.LocalFileSystem) and not hidden
    for link in _broken_links(root) if local else []:  # the file system leaves them out in silence
        names = link[len(root) :].split("/")
        if not any(map(is_hidden, names)) and (pattern is None or pattern.fullmatch(link)):
            raise UserError(f"{link} is a link to a file that is not there; bring the file back, or remove the link")
    if not found and not hidden:
        raise UserError(f"no file found at {path}; give an existing file, folder or glob")
    return [prefix + p for p in found]


def _broken_links(folder: str) -> list[str]:
    """Links below a local folder whose target is missing."""
    broken: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                broken += [] if entry.is_symlink() else _broken_links(entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                broken.append(entry.path)
    return broken


def _existing_folder(fs: pyarrow.fs.FileSystem, inner: str) -> str:
    """The deepest folder above a glob whose name exists as it is written; its wildcards are part of the name."""
    names = inner.split("/")
    root = names[0]
    for place, name in enumerate(names[1:-1], 1):
        longer = "/".join(names[: place + 1])
        if re.search(r"[*?\[]", name) and fs.get_file_info(longer).type != pyarrow.fs.FileType.Directory:
            break
        root = longer
    return root or "/"


def _glob_pattern(glob: str) -> str:
    """A glob as a regular expression. (In `fnmatch`, `*` and `?` cross folders, and there is no `**`.)"""
    wildcards = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    translated = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", glob):
        if re.fullmatch(r"\[!?[^\]/]+\]", part):
            part = "[" + part[1:].replace("\\", "\\\\").replace("[", "\\[")
            translated += f"[^{part[2:]}" if part.startswith("[!") else part
        else:
            translated += wildcards.get(part, re.escape(part))
    return translated


def read_bytes(path: str) -> bytes:
    """The content of a file.

    Raises:
        UserError: no file lies there.
    """
    fs, inner = filesystem(path)
    info = fs.get_file_info(inner)
    if info.type != pyarrow.fs.FileType.File:
        found = "a folder" if info.type == pyarrow.fs.FileType.Directory else "nothing"
        raise UserError(f"found {found} at {path}; expected a file")
    with fs.open_input_stream(inner) as stream:
        return stream.read()


def read_text(path: str) -> str:
    """The content of a UTF-8 text file, without the byte order mark that editors of Windows put before it.

    Raises:
        UserError: no file lies there, or it is no UTF-8 text.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: str) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: no file lies there, or it is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and brackets without end
        raise UserError(f"{path} is not valid JSON: {error}") from error


def read_json_object(path: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: no file lies there, or it is no JSON, or another value than an object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {str(value)[:40]!r}; expected a JSON object")
    return value


def write_bytes(path: str, data: bytes) -> None:
    """Write a file under a temporary name and then rename it, so that no reader sees half of it."""
    make_dir(parent(path))
    fs, inner = filesystem(path)
    temporary = f"{inner}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with failures.naming(path), fs.open_output_stream(temporary) as stream:
            stream.write(data)
        fs.move(temporary, inner)
    except BaseException:  # no space is left, say
        with contextlib.suppress(OSError):
            fs.delete_file(temporary)
        raise


def write_text(path: str, text: str) -> None:
    """Write a UTF-8 text file, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str, value: Any) -> None:
    """Write a JSON file, as `write_bytes` does. NaN and infinity are a `ValueError`, as JSON has neither."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_dir(path: str, fill: Callable[[str], None], *, scratch: str) -> None:
    """Fill a local scratch folder with `fill(folder)`, then put it at `path` as one complete folder.

    Locally the folder appears by one rename, and replaces what is there already. Object stores have no rename: files
    are copied there one by one, and MANIFEST, which `fill` writes, comes last, so a folder without it is incomplete.
    """
    local = os.path.join(scratch, f"write-{uuid.uuid4().hex[:8]}")
    os.makedirs(local)
    try:
        with failures.naming(local):
            fill(local)
        fs, inner = filesystem(path)
        if isinstance(fs, pyarrow.fs.LocalFileSystem):
            os.makedirs(os.path.dirname(inner), exist_ok=True)
            staged, old = (f"{inner}.{uuid.uuid4().hex[:8]}.{ending}" for ending in ("tmp", "old"))
            try:
                shutil.copytree(local, staged)
                if os.path.exists(inner):
                    os.rename(inner, old)
                os.rename(staged, inner)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
                if os.path.exists(old) and not os.path.exists(inner):
                    os.rename(old, inner)
                shutil.rmtree(old, ignore_errors=True)
            return
        delete(path)
        names = sorted(local_files(local), key=lambda name: name.endswith(MANIFEST))
        for name in names:
            target = f"{inner}/{name}"
            fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
            with open(os.path.join(local, name), "rb") as source, fs.open_output_stream(target) as out:
                shutil.copyfileobj(source, out, 1 << 20)
    finally:
        shutil.rmtree(local, ignore_errors=True)


def delete_stale(folder: str) -> list[str]:
    """Remove what killed calls of `write_bytes` and `write_dir` left directly in a folder; returns the names.

    Only for a folder that nobody writes to now.
    """
    fs, inner = filesystem(folder)
    found = fs.get_file_info(pyarrow.fs.FileSelector(inner, allow_not_found=True))
    stale = sorted(info.base_name for info in found if _STALE.search(info.base_name))
    for name in stale:
        delete(join(folder, name))
    return stale


def cache_dir() -> str:
    """The folder for downloads and built extensions: $CTXREC_CACHE, or ~/.cache/ctxrec."""
    return os.environ.get("CTXREC_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "ctxrec")


def temporary_folder() -> str:
    """A folder below the system's temporary folder that only this user can enter; it is made where it is missing.

    The system's temporary folder belongs to everybody: others may put links or files there under names that they foresee.

    Raises:
        UserError: something else lies there, such as a link or a folder of somebody else.
    """
    folder = os.path.join(tempfile.gettempdir(), f"ctxrec-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        what = f"a folder of user {found.st_uid}" if stat.S_ISDIR(found.st_mode) else "a link or a file"
        raise UserError(
            f"{folder} is {what}; expected a folder of this user; remove it, or set TMPDIR to another folder"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(folder, 0o700)
    return folder


def fetch_dir(path: str, *, scratch: str) -> str:
    """A local folder with what lies at `path`: the folder itself when local, else a copy under `scratch`.

    A copy is never changed, as other processes may be reading it. When `path` holds something else, a new copy is
    made beside the old one.
    """
    fs, inner = filesystem(path)
    if isinstance(fs, pyarrow.fs.LocalFileSystem):
        return inner
    found = fs.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True))
    sizes = {info.path[len(inner) :].lstrip("/"): info.size for info in found if info.is_file}
    version = sha256_json([path, sorted((info.path, info.size, info.mtime_ns) for info in found if info.is_file)])
    local = os.path.join(scratch, version[:16])
    if _sizes(local) == sizes:
        return local
    fetched = f"{local}.{uuid.uuid4().hex[:8]}.tmp"
    os.makedirs(fetched)  # an object store has no folder of its own to copy
    try:
        pyarrow.fs.copy_files(inner, fetched, source_filesystem=fs)
        try:
            os.rename(fetched, local)
        except OSError:  # another process was faster, or the copy there has lost files
            if _sizes(local) != sizes:
                shutil.rmtree(local)
                os.rename(fetched, local)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return local


def _sizes(folder: str) -> dict[str, int]:
    return {name: os.path.getsize(os.path.join(folder, name)) for name in local_files(folder)}


def local_files(folder: str) -> list[str]:
    """Relative names of all files below a local folder, sorted."""
    return sorted(
        os.path.relpath(os.path.join(root, name), folder) for root, _, names in os.walk(folder) for name in names
    )


def write_parquet(table: pa.Table, path: str) -> None:
    """Write a table as one Parquet file."""
    fs, inner = filesystem(path)
    with failures.naming(path):
        pq.write_table(table, inner, filesystem=fs)


def sha256_file(path: str) -> str:
    """Hex sha256 of a local file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in one fixed spelling, as a fingerprint of configs and specs."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
