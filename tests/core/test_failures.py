"""Failures of the machine are one line; all others stay what they are."""

from __future__ import annotations

import errno

import pytest

from ctxrec.core import cli, failures


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


def test_a_command_prints_the_line(capsys):
    def fail():
        raise PermissionError(errno.EACCES, "Permission denied", "/x")

    with pytest.raises(SystemExit) as ended:
        cli.run(fail)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: permission is denied for /x; give this user access")
