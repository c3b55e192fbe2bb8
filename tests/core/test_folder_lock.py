"""Two commands do not write into one folder at the same time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ctxrec.core.errors import UserError
from ctxrec.core.folder_lock import only_here

HOLDS = """
import sys, time
from ctxrec.core.folder_lock import only_here
with only_here(sys.argv[1]):
    print("here", flush=True)
    time.sleep(600)
"""


@pytest.mark.system  # it starts a process
def test_the_second_command_is_refused_until_the_first_has_gone_even_by_a_kill(tmp_path):
    out = str(tmp_path / "run")
    first = subprocess.Popen([sys.executable, "-c", HOLDS, out], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "here\n"
        with (
            pytest.raises(UserError, match=r"another command writes into .*run now; wait until it has ended"),
            only_here(out),
        ):
            pass
        with only_here(str(tmp_path / "other")):
            pass
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    for _ in range(2):
        with only_here(out):
            pass
    assert list((tmp_path / "run").iterdir()) == []
