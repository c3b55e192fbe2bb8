"""Every bench says how it is run; a bench itself takes minutes, so that no test runs one."""

from __future__ import annotations

import os
import runpy
import sys
from unittest import mock

import pytest
from paths import REPO

BENCHES = sorted((REPO / "tests/bench").glob("*.py"))
COMMANDS = [path for path in BENCHES if 'if __name__ == "__main__":' in path.read_text()]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_help_says_how_a_bench_is_run(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])  # as `python FILE` has it
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert text.startswith(f"usage: {path.name}") and f"python tests/bench/{path.name}" in text


def test_what_is_no_command_is_part_of_one():
    text = "\n".join(path.read_text() for path in COMMANDS)
    for path in set(BENCHES) - set(COMMANDS):
        assert f"from {path.stem} import" in text, path
