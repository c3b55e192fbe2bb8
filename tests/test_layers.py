"""Imports go one way: what is pure needs neither Ray nor DeepSpeed, the product needs no tool built on it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("ctxrec", "tune", "serve")
PURE = [
    "errors", "storage", "config", "spec", "schema", "prepared", "events", "features", "batching", "backbones",
    "model", "losses", "encoder", "texts", "metrics", "exact_search", "index", "index_building", "baselines", "item_models", "ensemble", "slices", "summary", "bundle", "recommender", "retrieval",
    "likeness", "pairs", "memory", "blend", "new_items", "history_cache", "reranker", "rerank_candidates", "rerank_training", "simulation", "stream", "network", "validation", "cli",
    "history_store", "history_sqlite", "history_redis", "event_files", "item_files", "filters", "timing",
    "live_items", "live_vectors", "client", "published", "publish",
    "plan_memory", "planning", "explain", "item_cards", "encoder_cache", "item_states", "lower_layers", "row_store", "faults",
    "meter", "profiling", "tracking", "media",
    "model_inputs", "embeddings", "loading", "before_validation", "context_reader", "oracle", "graph", "item_tower", "user_tower",
]  # fmt: skip
BASE = [
    "errors",
    "storage",
    "typed_toml",
    "config",
    "spec",
    "schema",
    "prepared",
    "events",
    "history_sqlite",
    "event_files",
    "item_files",
    "rules",
    "diversity",
]  # no torch either
ENTRIES = [f"ctxrec/{name}.py" for name in ("prepare", "train", "evaluate", "recommend", "rerank", "benchmark", "plan")]

REFUSE = """
import importlib, importlib.abc, sys
blocked, modules = sys.argv[1].split(","), sys.argv[2].split(",")
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is refused")
sys.meta_path.insert(0, Refuse())
for module in modules:
    importlib.import_module("ctxrec." + module)
"""


def import_without(blocked: list[str], modules: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", REFUSE, ",".join(blocked), ",".join(modules)]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.parametrize(
    ("blocked", "modules"), [(["ray", "deepspeed", "tune", "serve"], PURE), (["ray", "deepspeed", "torch"], BASE)]
)
def test_pure_modules_import_without_ray_and_deepspeed(blocked, modules):
    done = import_without(blocked, modules)
    assert done.returncode == 0, done.stderr


def test_the_refusal_works():
    done = import_without(["ray"], ["runtime"])
    assert done.returncode != 0 and "ray is refused" in done.stderr


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, in full; relative imports are not used in this repository."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(package: str) -> list[Path]:
    return sorted((REPO / package).rglob("*.py"))


def test_the_product_imports_no_package_built_on_it():
    for path in files("ctxrec"):
        assert not {name.split(".")[0] for name in imports(path)} & {"tune", "serve", "tests"}, path


def test_the_thin_packages_do_not_import_each_other():
    for package, other in (("tune", "serve"), ("serve", "tune")):
        for path in files(package):
            assert other not in {name.split(".")[0] for name in imports(path)}, path


def test_no_cycle_of_modules():
    """At import time no module of ctxrec needs, by any way, a module that needs it."""
    modules: dict[str, list[Path]] = {}  # a package is one module
    for path in files("ctxrec"):
        modules.setdefault(path.relative_to(REPO / "ctxrec").parts[0].removesuffix(".py"), []).append(path)

    def top_level(path: Path) -> set[str]:
        names: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ctxrec":
                parts = node.module.split(".")[1:]
                names |= set(parts[:1]) if parts else {alias.name for alias in node.names}
        return names & set(modules)

    needs = {name: set().union(*map(top_level, paths)) - {name} for name, paths in modules.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for needed in sorted(needs[name]):
                visit(needed, (*way, name))
            done.add(name)

    for name in needs:
        visit(name, ())
    assert "backbones" in needs["model"] and needs["training"] and needs["backbones"], "imports were found"


@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_modules_define_main_alone(entry):
    """What is pickled to Ray's workers must not live in a module that runs as `__main__`."""
    body = ast.parse((REPO / entry).read_text()).body
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    defined = [node for node in body if isinstance(node, kinds)]
    assert [node.name for node in defined if isinstance(node, ast.FunctionDef)] == ["main"] and len(defined) == 1
    last = body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last) == "if __name__ == '__main__':\n    cli.run(main)"


def test_modules_are_short_enough_to_read():
    long = {str(p.relative_to(REPO)): n for p in files("ctxrec") if (n := len(p.read_text().splitlines())) >= 500}
    assert not long, long
