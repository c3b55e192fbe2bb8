"""What the docstring of a public function has to say: shapes of arrays, units of times, errors, sources of formulas.

A line that starts a module says what the module knows. A class and a function that others import say what they are.
Who returns an array or a tensor gives its shape, in brackets or in words. A function that raises a `UserError` itself says so.
Who takes a time or a duration names its unit, in the parameter's name or in words. Modules of formulas name the sources of
these.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import REPO

ARRAYS = re.compile(r"\b(ndarray|Tensor|csr_array|csr_matrix)\b")
SHAPE = re.compile(r"\[[^\]]+\]|\bscalar\b|\bshape\b|\blike `|\bas `|\bone number\b|See `\w+`")
TIMES = re.compile(r"(^|_)(times?|timeout|seconds|latency|delay|duration|age|ages)$")
UNIT = re.compile(r"second|_s\b|_ms\b|_us\b|epoch|hour|minute|\bdays?\b")
SOURCE = re.compile(r"\b(19|20)\d\d\b|arXiv|https?://")
# Modules whose public definitions are formulas of others, and what in them is none.
FORMULAS: dict[str, set[str]] = {
    "ctxrec/metrics/ranking.py": {"share_taken"},
    "ctxrec/metrics/intervals.py": set(),
    "ctxrec/model/losses.py": {"ChunkParams"},
    "ctxrec/memory/ease.py": set(),
    "ctxrec/evaluation/baselines/als.py": set(),
    "ctxrec/evaluation/baselines/itemknn.py": set(),
    "ctxrec/evaluation/baselines/markov.py": {"last_items"},
    "ctxrec/experiments/statistics.py": {"Ratio", "Comparison"},
    "ctxrec/retrieval/slate/mmr.py": set(),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt], inside: str = "") -> Iterator[tuple[str, Function | ast.ClassDef, bool]]:
    """Public definitions with their names, and whether a class defines them."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield f"{inside}{node.name}", node, bool(inside)
            yield from public(node.body, f"{inside}{node.name}.")
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield f"{inside}{node.name}", node, bool(inside)


def raised(node: Function) -> set[str]:
    """Names of the exceptions that a function itself raises."""
    calls = (n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc is not None)
    return {ast.unparse(call.func if isinstance(call, ast.Call) else call).split(".")[-1] for call in calls}


def lacks(name: str, node: Function | ast.ClassDef, method: bool) -> list[str]:
    """What a definition's docstring does not say."""
    said = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        return [] if said else ["a docstring"]
    found = []
    if not said and not method and name != "main":
        found.append("a docstring")
    overrides = any(ast.unparse(d).endswith(("overload", "override")) for d in node.decorator_list)
    if (
        node.returns is not None
        and ARRAYS.search(ast.unparse(node.returns))
        and not overrides
        and not SHAPE.search(said)
    ):
        found.append("the shape of what it returns")
    times = [a.arg for a in node.args.args + node.args.kwonlyargs if TIMES.search(a.arg)]
    flags = {a.arg for a in node.args.kwonlyargs if a.annotation is not None and ast.unparse(a.annotation) == "bool"}
    if set(times) - flags and not UNIT.search(said):
        found.append(f"the unit of {', '.join(times)}")
    if "UserError" in raised(node) and not method and "Raises:" not in said and name != "main":
        found.append("a section `Raises:`")
    return found


@pytest.mark.parametrize("package", ["ctxrec", "serve", "tune"])
def test_public_definitions_say_what_a_caller_needs(package):
    missing = []
    for path in sorted((REPO / package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(f"{path.relative_to(REPO)}: a docstring of the module")
        for name, node, method in public(tree.body):
            missing += [f"{path.relative_to(REPO)}:{node.lineno} {name}: {what}" for what in lacks(name, node, method)]
    assert not missing, f"{len(missing)}:\n" + "\n".join(missing)


@pytest.mark.parametrize("module", FORMULAS)
def test_formulas_have_a_source(module):
    tree = ast.parse((REPO / module).read_text())
    about = ast.get_docstring(tree) or ""
    for name, node, method in public(tree.body):
        if not method and name not in FORMULAS[module]:
            assert SOURCE.search(about + (ast.get_docstring(node) or "")), f"{module}: {name} names no source"


def test_the_check_finds_what_is_missing(tmp_path: Path):
    source = '''
def shaped() -> np.ndarray:
    """Scores, float32 [N]."""
def shapeless() -> np.ndarray:
    """Scores."""
def refuses():
    """Refuses."""
    raise UserError("no")
def waits(timeout: float) -> None:
    """Wait."""
class Bare: ...
'''
    found = {name: lacks(name, node, method) for name, node, method in public(ast.parse(source).body)}
    assert found == {
        "shaped": [],
        "shapeless": ["the shape of what it returns"],
        "refuses": ["a section `Raises:`"],
        "waits": ["the unit of timeout"],
        "Bare": ["a docstring"],
    }
