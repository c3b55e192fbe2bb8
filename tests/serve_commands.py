"""`serve run`, called in this process, which has loaded all that it needs."""

from __future__ import annotations

import sys

import pytest
from ray.serve.scripts import cli

from serve.command import main


def serve_run_mistake(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a user's mistake, after which `serve run ARGUMENTS` starts nothing and ends with exit code 2."""
    command = cli.commands["run"]
    with monkeypatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(sys, "argv", ["serve", "run", *arguments])
        for name in ("callback", "help"):  # `main` changes them, and they are as before afterwards
            patch.setattr(command, name, getattr(command, name))
        with pytest.raises(SystemExit) as ended:
            main()
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and "Traceback" not in said, said
    return line
