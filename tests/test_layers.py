"""The house: which package may import which, and what keeps a file small enough to read in one sitting."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from paths import REPO

# Each package of ctxrec, and the packages of ctxrec that it may import, anywhere in it.
LAYERS: dict[str, tuple[str, ...]] = {
    "core": (),
    "metrics": ("core",),
    "index": ("core",),
    "data": ("core",),
    "encoder": ("core", "data"),
    "live": ("core", "data"),
    "datasets": ("core", "data"),
    "ingest": ("core", "data"),
    "model": ("core", "data", "encoder"),
    "memory": ("core", "data", "index", "metrics"),
    "bundle": ("core", "data", "encoder", "index", "memory", "model"),
    "experiments": ("core", "data", "ingest", "bundle"),
    "training": ("core", "data", "ingest", "encoder", "model", "metrics", "index", "memory", "bundle"),
    "retrieval": ("core", "data", "encoder", "model", "metrics", "memory", "index", "bundle"),
    "reranking": ("core", "data", "encoder", "metrics", "index", "memory", "training", "retrieval"),
    "evaluation": (
        "core", "data", "ingest", "encoder", "model", "metrics", "index", "memory", "bundle", "training", "retrieval",
        "live", "datasets",
    ),
    "lifecycle": (
        "core", "data", "ingest", "metrics", "index", "bundle", "experiments", "training", "retrieval", "evaluation",
    ),
    "benchmarks": ("core", "data", "ingest", "training", "bundle", "datasets", "evaluation", "metrics"),
    "python_api": ("core", "data", "ingest", "index", "training", "retrieval", "evaluation"),
}  # fmt: skip
# Third-party packages that a layer must not need, even inside a function.
WITHOUT: dict[str, tuple[str, ...]] = {
    "metrics": ("ray", "deepspeed", "torch"),
    "data": ("ray", "deepspeed"),
    "encoder": ("ray", "deepspeed"),
    "live": ("ray", "deepspeed", "torch"),
    "model": ("ray", "deepspeed"),
    "memory": ("ray", "deepspeed"),
    "bundle": ("ray", "deepspeed"),
}
COMMANDS = (
    "ab",
    "benchmark",
    "demo",
    "evaluate",
    "init",
    "plan",
    "prepare",
    "publish",
    "recommend",
    "refresh",
    "rerank",
    "train",
)
MOST_FILES, MOST_LINES_OF_A_COMMAND, MOST_LINES = 18, 60, 400


def files(package: str) -> list[Path]:
    return sorted((REPO / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, in full; relative imports are not used in this repository."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def private_parts_of_ray(path: Path) -> set[str]:
    """What a file uses of Ray that has an underscore or that Ray's documentation calls internal."""
    used = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    names = {name for name in used | imports(path) if name.split(".")[0] == "ray"}
    internal = ("ray.dashboard", "ray.tune.execution")
    return {
        n
        for n in names
        if n.startswith(internal) or any(p.startswith("_") and not p.startswith("__") for p in n.split(".")[1:])
    }


def test_every_package_has_a_layer():
    folders = {p.name for p in (REPO / "ctxrec").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(LAYERS)
    seen: list[str] = []
    for package, below in LAYERS.items():
        assert set(below) <= set(seen), f"{package} may only import what stands above it in the table"
        seen.append(package)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_one_way(package):
    allowed = {package, *LAYERS[package]}
    for path in files(f"ctxrec/{package}"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "ctxrec":
                assert parts[1] in allowed, f"{path.relative_to(REPO)} imports {name}; {package} may not"
            assert parts[0] not in ("tune", "serve", "tests"), f"{path.relative_to(REPO)} imports {name}"
            assert parts[0] not in WITHOUT.get(package, ()), f"{path.relative_to(REPO)} imports {name}"


def test_the_thin_packages_do_not_import_each_other():
    for package, other in (("tune", "serve"), ("serve", "tune")):
        for path in files(package):
            assert other not in {name.split(".")[0] for name in imports(path)}, path


def test_no_two_modules_have_one_name():
    names = Counter(path.stem for package in ("ctxrec", "serve", "tune") for path in files(package))
    assert {name for name, count in names.items() if count > 1} <= {"__init__", "__main__"}


REFUSE = """
import importlib, importlib.abc, sys
blocked, modules = sys.argv[1].split(","), sys.argv[2].split(",")
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is refused")
sys.meta_path.insert(0, Refuse())
for module in modules:
    importlib.import_module(module)
"""


def import_without(blocked: tuple[str, ...], modules: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", REFUSE, ",".join(blocked), ",".join(modules)]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)


def test_pure_packages_run_without_ray_and_deepspeed():
    """The table above reads the sources; this runs them, so that what they import is seen through as well."""
    modules = [
        ".".join(path.relative_to(REPO).with_suffix("").parts)
        for package, blocked in WITHOUT.items()
        if "ray" in blocked
        for path in files(f"ctxrec/{package}")
    ]
    done = import_without(("ray", "deepspeed", "tune", "serve"), modules)
    assert done.returncode == 0, done.stderr
    assert len(modules) > 30


def test_the_refusal_works():
    done = import_without(("ray",), ["ctxrec.core.ray_cluster"])
    assert done.returncode != 0 and "ray is refused" in done.stderr


def test_the_private_parts_of_ray_are_used_in_one_file():
    users = {
        str(path.relative_to(REPO))
        for package in ("ctxrec", "serve", "tune", "cluster")
        for path in files(package)
        if private_parts_of_ray(path)
    }
    assert users == {"ctxrec/core/ray_private.py"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_define_main_alone(command):
    """What is pickled to Ray's workers must not live in a module that runs as `__main__`."""
    body = ast.parse((REPO / f"ctxrec/{command}.py").read_text()).body
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    defined = [node for node in body if isinstance(node, kinds)]
    assert [node.name for node in defined if isinstance(node, ast.FunctionDef)] == ["main"] and len(defined) == 1
    last = body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last) == "if __name__ == '__main__':\n    cli.run(main)"


def test_the_top_of_the_product_is_its_commands():
    top = sorted((REPO / "ctxrec").glob("*.py"))
    assert len(top) <= MOST_FILES
    assert {p.stem for p in top} - {"__init__", "__main__", "api", "client"} == set(COMMANDS)
    long = {p.name: n for p in top if (n := len(p.read_text().splitlines())) > MOST_LINES_OF_A_COMMAND}
    assert set(long) <= {"client.py"}, long


@pytest.mark.parametrize("package", ["ctxrec", "serve", "tune", "cluster", "tests"])
def test_modules_are_short_enough_to_read(package):
    long = {str(p.relative_to(REPO)): n for p in files(package) if (n := len(p.read_text().splitlines())) > MOST_LINES}
    assert not long, long


@pytest.mark.parametrize("package", LAYERS)
def test_packages_say_what_they_know(package):
    for init in (REPO / "ctxrec" / package).rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), init
    readme = REPO / "ctxrec" / package / "README.md"
    assert readme.exists() and len(readme.read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.worker as worker",
        "from ray import _private",
        "import ray\nray._private.worker.global_worker",
        "from ray.train.torch.config import _TorchBackend",
        "import importlib\ndef f():\n    importlib.import_module('ray._raylet')",
        "from ray.dashboard.utils import x",
    ],
)
def test_the_check_finds_private_parts_of_ray(tmp_path, source):
    path = tmp_path / "planted.py"
    path.write_text(source)
    assert private_parts_of_ray(path)
    path.write_text("import ray\nimport ray.train\nray.init()\nray.train.report({})")
    assert not private_parts_of_ray(path)


def test_the_check_sees_imports_by_name(tmp_path):
    path = tmp_path / "planted.py"
    path.write_text("import importlib\ndef f():\n    return importlib.import_module('ctxrec.training.driver')")
    assert "ctxrec.training.driver" in imports(path)
