"""Failures of the machine are one line; all others stay what they are."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import resource
import shutil
import signal
import socket

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from ctxrec.core import cli, failures, storage


def test_a_full_disk_and_a_missing_permission_are_one_line():
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert failures.explain(full) == (
        "no space is left for /data/x; free some space, or write to another folder, and run the command again"
    )
    try:
        raise RuntimeError("task failed") from OSError("[Errno 13] Permission denied: '/root/y'")
    except RuntimeError as error:
        assert "permission is denied for /root/y" in str(failures.explain(error))
    assert "no space is left" in str(failures.explain(RuntimeError("OSError: [Errno 28] No space left on device")))
    assert failures.explain(ValueError("Permission denied by the model")) is None
    assert failures.explain(KeyError("x")) is None
    assert failures.explain(OSError("Corrupt snappy compressed data.")) is None


def _small_file(path, write=storage.write_bytes):
    """Write beyond a limit of the size of files, which the system treats as a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        write(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def _folder(write):
    """Writes a folder of one file beyond the limit, by a library that has its own words for that."""

    def fail(path):
        scratch = os.path.dirname(path)

        def write_dir(path, _):
            storage.write_dir(path, lambda folder: write(os.path.join(folder, "x")), scratch=scratch)

        _small_file(path, write_dir)

    return fail


def _index(path):
    index = faiss.IndexFlatIP(100)
    index.add(np.zeros((100, 100), np.float32))
    faiss.write_index(index, path)


def _port(path):
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        first.listen()
        second.bind(first.getsockname())


def _many_files(path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 3, before[1]))
    try:
        while True:
            opened.append(socket.socket())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for file in opened:
            file.close()


def _under_a_file(path):
    storage.write_bytes(path, b"x")
    storage.write_bytes(f"{path}/below", b"x")


def _parquet_at_a_folder(path):
    os.makedirs(path)
    storage.write_parquet(pa.table({"a": [1]}), path)


@pytest.mark.parametrize(
    ("fail", "what", "named"),
    [
        (_small_file, "no space is left", True),
        (_folder(lambda path: save_file({"a": np.zeros(5000)}, path)), "no space is left", False),
        (_folder(lambda path: save_tensors({"a": torch.zeros(5000)}, path)), "no space is left", False),
        (_folder(lambda path: np.save(path, np.zeros(5000))), "no space is left", False),
        (_folder(_index), "no space is left", False),
        (_under_a_file, "a file stands where a folder is needed", True),
        (_parquet_at_a_folder, "a folder stands where a file is needed", True),
        (lambda path: storage.write_bytes(f"{path}/{'x' * 300}", b"x"), "the name is too long", True),
        (lambda path: os.stat(path), "a file has gone while it was needed", True),
        (lambda path: storage.write_bytes("/proc/ctxrec/x", b""), "a file has gone", False),
        (_port, "the port is in use", False),
        (_many_files, "too many files are open", False),
        (lambda path: socket.create_connection(("127.0.0.1", 9), 1), "nothing answers", False),
    ],
)
def test_real_failures_of_the_system_are_one_line_with_their_path(tmp_path, fail, what, named, capsys):
    path = str(tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: fail(path))
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.startswith(f"error: {what}") and told.count("\n") == 1, told
    assert (path in told) or not named
    assert os.path.dirname(path) in told or what != "no space is left"
    assert told.rstrip().endswith("and run the command again (CTXREC_LOG_LEVEL=DEBUG shows where it happened)")
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")], "no half of a file is left"


def test_the_traceback_of_a_failure_is_shown_to_whoever_asks_for_it(monkeypatch, caplog):
    """A bug of ours may end in a missing file, too."""

    def fail():
        os.stat("/no/such/file")

    def tracebacks() -> list[str]:
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            cli.run(fail)
        assert ended.value.code == 1
        return [str(record.exc_info[1]) for record in caplog.records if record.exc_info]

    monkeypatch.setattr(logging.getLogger("ctxrec"), "level", logging.INFO)
    assert tracebacks() == []
    monkeypatch.setenv(cli.LOG_LEVEL, "debug")
    assert tracebacks() == ["[Errno 2] No such file or directory: '/no/such/file'"]


def test_a_path_that_arrow_does_not_name_is_named_and_survives_pickling():
    with pytest.raises(OSError) as raised, failures.naming("/data/shard"):
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    assert "no space is left for /data/shard;" in str(failures.explain(raised.value))
    assert "no space is left for /data/shard;" in str(failures.explain(pickle.loads(pickle.dumps(raised.value))))
    text = RuntimeError(f"ray::task()\n  File 'x'\nOSError: {raised.value}")  # as a worker's error reaches the driver
    assert "no space is left for /data/shard;" in str(failures.explain(text))


def test_of_a_copy_the_place_where_it_goes_is_named():
    copy = OSError(errno.ENOSPC, "No space left on device", "/from/a", None, "/to/a")
    assert "no space is left for /to/a;" in str(failures.explain(copy))
    many = shutil.Error([("/from/a", "/to/a", "[Errno 28] No space left on device: '/from/a' -> '/to/a'")])
    assert "no space is left for /to/a;" in str(failures.explain(many))


def test_a_long_folder_for_sockets():
    with socket.socket(socket.AF_UNIX) as made, pytest.raises(OSError) as raised:
        made.bind("/tmp/" + "x" * 200)
    assert "set TMPDIR" in str(failures.explain(raised.value))


def test_a_command_prints_the_line(capsys):
    def fail():
        raise PermissionError(errno.EACCES, "Permission denied", "/x")

    with pytest.raises(SystemExit) as ended:
        cli.run(fail)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: permission is denied for /x; give this user access")
