"""What the docstring of a public function has to say: that it is there, shapes of arrays, errors a caller can cause.

A line that starts a module says what the module knows. A class and a function that others import say what they are.
Who returns an array or a tensor gives its shape, in brackets or in words. Who raises a `UserError` says so.
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


def test_the_check_finds_what_is_missing(tmp_path: Path):
    source = '''
def shaped() -> np.ndarray:
    """Scores, float32 [N]."""
def shapeless() -> np.ndarray:
    """Scores."""
def refuses():
    """Refuses."""
    raise UserError("no")
class Bare: ...
'''
    found = {name: lacks(name, node, method) for name, node, method in public(ast.parse(source).body)}
    assert found == {
        "shaped": [],
        "shapeless": ["the shape of what it returns"],
        "refuses": ["a section `Raises:`"],
        "Bare": ["a docstring"],
    }
