"""One package brings FAISS: none or two of them are one line that says what to install, wherever a program starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from paths import REPO

from ctxrec.core.errors import UserError
from ctxrec.index import faiss_package


def packages(folder: Path, *names: str) -> Path:
    """What pip leaves of packages, without their files."""
    for name in names:
        info = folder / f"{name.replace('-', '_')}-1.15.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.15.1\n")
    return folder


@pytest.fixture
def only(tmp_path, monkeypatch):
    """Makes an environment with these packages alone, and with or without a module faiss."""

    def make(*names: str, module: bool = True) -> None:
        folder = packages(tmp_path / "site", *names)
        folder.mkdir(exist_ok=True)
        if module:
            (folder / "faiss.py").write_text("")
        monkeypatch.setattr(sys, "path", [str(folder)])
        monkeypatch.delitem(sys.modules, "faiss", raising=False)
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    return make


@pytest.mark.parametrize("names", [("faiss-cpu",), ("faiss-gpu",), ("faiss-gpu-cuvs",), ("faiss-gpu-cu12",), ()])
def test_one_package_or_a_build_of_ones_own_is_taken(only, names):
    only(*names)
    faiss_package.check()
    assert faiss_package.installed() == list(names)


@pytest.mark.parametrize("second", ["faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12"])
def test_two_packages_are_refused_by_their_names(only, second):
    only("faiss-cpu", second)
    with pytest.raises(UserError, match=f"faiss-cpu and {second} are installed.*uninstall -y faiss-cpu {second}; then"):
        faiss_package.check()


def test_no_package_says_what_to_install(only):
    only(module=False)
    with pytest.raises(UserError, match=r"run: pip install faiss-cpu==1\.15\.1 or pip install faiss-gpu==1\.15\.1"):
        faiss_package.check()


NONE = """
import importlib.abc, importlib.metadata, runpy, sys
real = importlib.metadata.distribution
def distribution(name):
    if name.startswith("faiss"):
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.distribution = distribution
real_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "faiss" else real_find(name, *more)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("command", "state"), [("ctxrec.index.topk", "none"), ("ctxrec.index.topk", "two"), ("ctxrec train --help", "two")]
)
def test_a_program_ends_with_the_line(tmp_path, command, state):
    env = os.environ | {"PYTHONPATH": str(REPO)}
    start = [sys.executable, "-c", "import importlib.util" + NONE]
    if state == "two":
        env["PYTHONPATH"] += os.pathsep + str(packages(tmp_path, "faiss-cpu", "faiss-gpu"))
        start = [sys.executable, "-m"]
    done = subprocess.run([*start, *command.split()], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match("error: (no package with|faiss-cpu and faiss-gpu are installed)", line) and "pip install" in line


def test_a_script_that_catches_the_error_keeps_its_own_tracebacks(tmp_path):
    code = "try: import ctxrec.index\nexcept ValueError: pass\n1 / 0"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), str(packages(tmp_path, "faiss-cpu", "faiss-gpu"))])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and "faiss" not in done.stderr


def chosen(extras: str) -> list[str]:
    return [extra for extra in extras.split(",") if extra in faiss_package.EXTRAS or extra == "$(FAISS)"]


def test_each_way_to_install_takes_one_of_the_extras():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for extra, package in faiss_package.EXTRAS.items():
        assert extras[extra] == [f"{package}=={faiss_package.VERSION}"]
    others = [line for extra, lines in extras.items() if extra not in faiss_package.EXTRAS for line in lines]
    assert not [line for line in project["dependencies"] + others if "faiss" in line or chosen(line)]
    makefile = (REPO / "Makefile").read_text()
    assert [chosen(e) for e in re.findall(r"-e '\.\[(.*?)\]'", makefile)] == [["$(FAISS)"]]
    assert re.findall(r"^FAISS +\?= (\S+)$", makefile, re.M) == ["cpu"]
    assert "make lint" in (REPO / ".ci/run").read_text()  # which installs by the Makefile
    dockerfile = (REPO / "cluster/Dockerfile").read_text()
    assert [chosen(e) for e in re.findall(r"extras=(\S+)", dockerfile)] == [["cpu"], ["gpu"]]
    for page in ("README.md", "cluster/README.md"):
        for found in re.findall(r"pip install (?:-e )?'?(\.\S*?)['`\s]", (REPO / page).read_text()):
            assert chosen(found.strip(".[]")), f"{page}: pip install {found} installs no FAISS"
