"""Commands end with 0, 2 (a user's mistake, one line) or 1 (anything else)."""

from __future__ import annotations

import ast
import re
import sys

import pytest
from commands import assert_users_mistake, call
from paths import REPO

from ctxrec.core import cli
from ctxrec.core.errors import UserError


@pytest.mark.parametrize(
    ("module", "arguments", "named"),
    [
        ("ctxrec.prepare", ["nothing.toml", "--out", "{tmp}/data"], ["nothing.toml"]),
        (
            "ctxrec.prepare",
            ["{spec}", "--out", "{tmp}/data", "--set", "prepare.bucket=2"],
            ["prepare.bucket", "buckets"],
        ),
        ("ctxrec.train", ["--data", "{tmp}/nothing", "--out", "{tmp}/run"], ["nothing", "ctxrec prepare"]),
        (
            "ctxrec.train",
            ["--data", "{tmp}", "--out", "{tmp}/run", "--set", "train.seed=x"],
            ["train.seed", "whole number"],
        ),
        (
            "ctxrec.train",
            ["--data", "{tmp}", "--out", "{tmp}/run", "--set", "model.use_text=false"],
            ["model.use_text is no longer an option", "model.sources"],
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
    assert_users_mistake(call(module, *(argument.format(**places) for argument in arguments)), *named)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spec.toml"], "nothing is written"


@pytest.mark.parametrize("module", ["ctxrec.prepare", "ctxrec.train", "ctxrec.evaluate", "ctxrec.recommend"])
def test_help_names_the_shared_options(module):
    ended = call(module, "--help")
    assert ended.returncode == 0
    assert f"python -m {module}" in ended.stdout and "--config" in ended.stdout and "--set" in ended.stdout


def exit_code(main) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code


def test_no_command_takes_half_a_flag(capsys):
    parser = cli.parser("ctxrec.train", "")
    parser.add_argument("--data")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--dat", "data"])
    assert ended.value.code == 2 and "unrecognized arguments: --dat data" in capsys.readouterr().err
    made = [
        (path, node)
        for folder in ("ctxrec", "serve", "tune", "cluster")
        for path in (REPO / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser")
    ]
    assert len(made) >= 3
    assert not [path for path, node in made if "allow_abbrev=False" not in ast.unparse(node)]


def test_exit_codes(capsys, caplog):
    def fail(error: BaseException):
        def main() -> None:
            raise error

        return main

    assert exit_code(lambda: None) == 0
    assert capsys.readouterr().err == ""
    assert exit_code(fail(UserError("found x;\n  expected y"))) == 2
    assert capsys.readouterr().err == "error: found x; expected y\n"
    assert exit_code(fail(KeyboardInterrupt())) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert exit_code(fail(ZeroDivisionError("broken"))) == 1
    assert "broken" in caplog.text and caplog.records[-1].exc_info, "a defect shows where it happened"


def test_options_reach_the_config(tmp_path):
    (tmp_path / "c.toml").write_text("[model]\ndim = 16\n")
    args = cli.parser("ctxrec.x", "X.").parse_args(
        ["--config", str(tmp_path / "c.toml"), "--set", "model.heads=4", "--set", "train.seed=3"]
    )
    config = cli.config_from(args)
    assert (config.model.dim, config.model.heads, config.train.seed) == (16, 4, 3)


@pytest.mark.parametrize("module", ["ctxrec.publish", "ctxrec.ab"])
@pytest.mark.parametrize("flag", [["--config", "c.toml"], ["--set", "train.seed=3"]])
def test_options_that_a_command_would_ignore_are_refused(module, flag, monkeypatch, capsys):
    import importlib

    main = importlib.import_module(module).main
    monkeypatch.setattr(sys, "argv", [module, *flag])
    assert exit_code(main) == 2
    assert f"error: {flag[0]} {flag[1]} has no effect: python -m {module} reads no options" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    assert exit_code(main) == 0
    assert flag[0] not in capsys.readouterr().out


def called_with(module: str, function: str, arguments: list[str], monkeypatch) -> dict:
    """Run a command's `main` with the function that does its work replaced; returns its arguments by name."""
    import importlib
    import inspect

    command = importlib.import_module(module)
    signature = inspect.signature(getattr(command, function))
    calls = []

    def record(*args, **kwargs):
        calls.append(signature.bind(*args, **kwargs).arguments)
        return 0

    monkeypatch.setattr(command, function, record)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    command.main()
    return dict(calls[0])


def test_a_config_file_of_recommend_adds_to_the_options_of_the_run(tmp_path, monkeypatch):
    bundle = tmp_path / "run" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "data.json").write_text("{}")
    (bundle / "config.toml").write_text("[model]\ndim = 16\n[evaluate]\nbatch_size = 7\n")
    (tmp_path / "c.toml").write_text("[evaluate]\nactors = 2\n")
    given = ["--run", f"{tmp_path}/run", "--requests", "r", "--k", "5", "--out", "o", "--config", f"{tmp_path}/c.toml"]
    config = called_with("ctxrec.recommend", "recommend", [*given, "--set", "diversity.pool=50"], monkeypatch)["config"]
    assert (config.model.dim, config.evaluate.batch_size, config.evaluate.actors) == (16, 7, 2)
    assert config.diversity.pool == 50


def test_a_config_file_of_the_demo_replaces_its_options(tmp_path, monkeypatch):
    from ctxrec.benchmarks.main_job import demo_config

    (tmp_path / "c.toml").write_text("[train]\nworkers = 1\nseed = 5\n")
    config = demo_config(str(tmp_path / "c.toml"), ["train.seed=6"])
    assert (config.train.workers, config.train.zero_stage, config.train.seed, config.encoder.tune) == (1, 2, 6, "lora")
    called = called_with("ctxrec.demo", "run_main_job", ["--config", "c.toml", "--set", "train.seed=6"], monkeypatch)
    assert (called["config_path"], called["overrides"]) == ("c.toml", ["train.seed=6"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            ["--set", "model.dim=32"],
            "model.dim is 32, but the run was trained with 16, which stays; leave the option out",
        ),
        (["--set", "train.seed=4"], "train.seed is 4, but the run was trained with 3"),
        (["--config", "{tmp}/other.toml"], "model.dim is 32, but the run was trained with 16"),
    ],
)
def test_options_that_only_a_training_could_heed_are_refused(given, says, tmp_path):
    (tmp_path / "run.toml").write_text("[model]\ndim = 16\n[train]\nseed = 3\ntower_epochs = 7\n")
    (tmp_path / "other.toml").write_text("[model]\ndim = 32\n")
    args = cli.parser("ctxrec.x", "X.").parse_args([word.format(tmp=tmp_path) for word in given])
    with pytest.raises(UserError, match=re.escape(says)):
        cli.config_of_run(args, str(tmp_path / "run.toml"))


def test_the_options_of_the_training_may_be_given_again(tmp_path, monkeypatch):
    """A suite gives the same options to every command; a run saves folders absolute, and epochs as a number."""
    (tmp_path / "gpt").mkdir()
    monkeypatch.chdir(tmp_path)
    saved = f'[model]\nbackbone = "{tmp_path}/gpt"\n[train]\nseed = 3\ntower_epochs = 7\n[evaluate]\nks = [10]\n'
    (tmp_path / "run.toml").write_text(saved)
    (tmp_path / "used.toml").write_text('[model]\nbackbone = "gpt"\n[train]\ntower_epochs = 0\n')
    given = ["--config", "used.toml", "--set", "train.seed=3", "--set", "evaluate.ks=[5,10]"]
    config = cli.config_of_run(cli.parser("ctxrec.x", "X.").parse_args(given), "run.toml")
    assert config.evaluate.ks == (5, 10)
