"""`ctxrec COMMAND` is `python -m ctxrec.COMMAND`; `ctxrec --help` lists every command without loading any."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib

import pytest
from commands import Ended, assert_users_mistake, call
from paths import REPO
from test_layers import COMMANDS as FILES

from ctxrec.core.commands import COMMANDS, overview


def console(*arguments: str) -> Ended:
    return call("ctxrec.__main__", *arguments)


def test_every_command_is_listed_once_in_one_line():
    lines = [line.split()[0] for line in console("--help").stdout.splitlines() if line.startswith("  ")]
    assert lines == list(COMMANDS)
    assert set(COMMANDS) == {*FILES, "datasets"}
    assert lines.index("prepare") < lines.index("train") < lines.index("evaluate") < lines.index("recommend")
    assert all(len(line) <= 100 for line in overview().splitlines())


def test_help_is_what_no_argument_prints():
    assert console().stdout == console("--help").stdout == console("help").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["trian"]])
def test_neither_help_nor_a_mistake_loads_ray_or_torch(arguments):
    """A person who asks what there is should not wait for what they do not use."""
    code = (
        "import sys, runpy\nsys.argv = ['ctxrec', *sys.argv[1:]]\n"
        "try: runpy.run_module('ctxrec', run_name='__main__', alter_sys=True)\n"
        "except SystemExit: pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'ray', 'torch', 'deepspeed', 'pandas'}))"
    )
    env = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("trian", ["'trian'", "did you mean train"]),
        ("evalute", ["did you mean evaluate?"]),
        ("xyzzy", ["'xyzzy'", "prepare, train"]),
        ("serve", ["serve run serve.app:build_app run=RUN"]),
        ("sweep", ["python -m tune.sweep"]),
        ("--data", ["--data", "stands before the command"]),
    ],
)
def test_an_unknown_command_is_one_line_with_the_nearest_names(name, named):
    assert_users_mistake(console(name), *named)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_how_it_was_called(name):
    module = "ctxrec.datasets.__main__" if name == "datasets" else f"ctxrec.{name}"
    assert console(name, "--help").stdout.startswith(f"usage: ctxrec {name} ")
    assert call(module, "--help").stdout.startswith(f"usage: python -m ctxrec.{name} ")


def test_a_mistake_in_a_command_is_the_same_line_either_way(tmp_path):
    arguments = ["--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "run")]
    ended = console("train", *arguments)
    assert_users_mistake(ended, "nothing", "ctxrec prepare")
    assert ended.stderr == call("ctxrec.train", *arguments).stderr


def test_a_reader_that_has_seen_enough_is_no_failure_to_report():
    """As in `ctxrec --help | head -1`: no traceback."""
    env = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "ctxrec", "--help"]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            command, env=env, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_console_script_is_that_function():
    script = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]["ctxrec"]
    module, name = script.split(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_messages_name_the_command_that_a_user_has():
    """`ctxrec train`, as the console script spells it; a name with a point is a module, or a function in Python."""
    spelled = re.compile(rf"(?<!import )\bctxrec\.(?:{'|'.join(COMMANDS)})\b")
    wrong = []
    for path in (path for folder in ("ctxrec", "serve", "tune") for path in sorted((REPO / folder).rglob("*.py"))):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        docs = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docs:
                continue
            if " " in node.value.strip() and spelled.search(node.value) and "ctxrec.fit" not in node.value:
                wrong.append(f"{path.relative_to(REPO)}:{node.lineno}: {node.value}")
    assert not wrong, "\n".join(wrong)
