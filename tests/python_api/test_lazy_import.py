"""`import ctxrec` is quick, and its functions are there whatever else was imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.system  # each test starts a process


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_loads_nothing_heavy():
    heavy = "'torch', 'ray', 'numpy', 'pyarrow', 'pandas', 'deepspeed', 'transformers', 'faiss'"
    assert run(f"import sys, ctxrec; print([m for m in ({heavy},) if m in sys.modules])") == "[]"


def test_a_command_of_the_same_name_hides_no_function():
    code = (
        "import importlib, ctxrec\n"
        "commands = [importlib.import_module('ctxrec.' + n) for n in ('prepare', 'train', 'evaluate')]\n"
        "assert all(callable(c.main) for c in commands)\n"
        "print([getattr(ctxrec, n).__module__ for n in ('prepare', 'train', 'evaluate', 'fit', 'load')])"
    )
    assert run(code) == str(["ctxrec.python_api.steps"] * 5)


def test_names_are_listed_and_others_refused():
    code = "import ctxrec\nprint('fit' in dir(ctxrec), hasattr(ctxrec, 'fti'), ctxrec.UserError.__name__)"
    assert run(code) == "True False UserError"
