"""Commands of the product, called in this process, which has loaded all that they need.

A process of its own costs each call some seconds of imports. `tests/system/test_commands.py` starts every command
once as people type it; all other tests call it here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import sys
from unittest import mock

import pytest

from ctxrec.core import cli


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a command left: the names are those of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def call(module: str, *arguments: str) -> Ended:
    """What `python -m MODULE ARGUMENTS` does, up to the exit code."""
    main = importlib.import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [module, *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.run(main)
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, out.getvalue(), err.getvalue())


def assert_users_mistake(ended: Ended, *named: str) -> None:
    """Exit code 2, one line that begins with `error: ` and names what is wrong, and no traceback."""
    assert ended.returncode == 2, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] == ended.stderr.splitlines()[-1]
    assert all(part in errors[0] for part in named), errors[0]
    assert "Traceback" not in ended.stderr + ended.stdout
