"""Commands end with 0, 2 (a user's mistake, one line) or 1 (anything else)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from paths import REPO

from ctxrec.core import cli
from ctxrec.core.errors import UserError


def command(module: str, *arguments: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], env=env, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize(
    ("module", "arguments", "named"),
    [
        ("ctxrec.prepare", ["nothing.toml", "--out", "{tmp}/data"], ["nothing.toml"]),
        (
            "ctxrec.prepare",
            ["{spec}", "--out", "{tmp}/data", "--set", "prepare.bucket=2"],
            ["prepare.bucket", "buckets"],
        ),
        ("ctxrec.train", ["--data", "{tmp}/nothing", "--out", "{tmp}/run"], ["nothing", "ctxrec.prepare"]),
        (
            "ctxrec.train",
            ["--data", "{tmp}", "--out", "{tmp}/run", "--set", "train.seed=x"],
            ["train.seed", "whole number"],
        ),
        ("ctxrec.evaluate", ["--run", "{tmp}/nothing"], ["nothing"]),
        ("ctxrec.evaluate", ["--run", "{tmp}", "--set", "evaluate.ks=[5]"], ["evaluate.ks", "10"]),
        (
            "ctxrec.recommend",
            ["--run", "{tmp}/nothing", "--requests", "{tmp}/r.parquet", "--k", "5", "--out", "{tmp}/o.parquet"],
            ["nothing"],
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(module, arguments, named, tmp_path):
    (tmp_path / "spec.toml").write_text('name = "x"\n[events]\npath = "events.parquet"\n')
    places = {"tmp": str(tmp_path), "spec": str(tmp_path / "spec.toml")}
    done = command(module, *(argument.format(**places) for argument in arguments))
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] == done.stderr.splitlines()[-1]
    assert all(part in errors[0] for part in named), errors[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spec.toml"], "nothing is written"


@pytest.mark.parametrize("module", ["ctxrec.prepare", "ctxrec.train", "ctxrec.evaluate", "ctxrec.recommend"])
def test_help_names_the_shared_options(module, monkeypatch, capsys):
    import importlib

    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"python -m {module}" in text and "--config" in text and "--set" in text


def ended(main) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code


def test_exit_codes(capsys, caplog):
    def fail(error: BaseException):
        def main() -> None:
            raise error

        return main

    assert ended(lambda: None) == 0
    assert capsys.readouterr().err == ""
    assert ended(fail(UserError("found x;\n  expected y"))) == 2
    assert capsys.readouterr().err == "error: found x; expected y\n"
    assert ended(fail(KeyboardInterrupt())) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert ended(fail(ZeroDivisionError("broken"))) == 1
    assert "broken" in caplog.text and caplog.records[-1].exc_info, "a defect shows where it happened"


def test_options_reach_the_config(tmp_path):
    (tmp_path / "c.toml").write_text("[model]\ndim = 16\n")
    args = cli.parser("ctxrec.x", "X.").parse_args(
        ["--config", str(tmp_path / "c.toml"), "--set", "model.heads=4", "--set", "train.seed=3"]
    )
    config = cli.config_from(args)
    assert (config.model.dim, config.model.heads, config.train.seed) == (16, 4, 3)
