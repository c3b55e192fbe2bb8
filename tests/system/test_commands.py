"""Every command once as people type it, in a process of its own: a user's mistake is one line and exit code 2.

What the commands do when all is well is tested in one process, beside the module that does it (`commands.call`).
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import Ended, assert_users_mistake
from paths import REPO

MISTAKES = {  # arguments, and what the line must name
    "ctxrec": (["trian"], ["did you mean train"]),
    "ctxrec.ab": (["--exposures", "{tmp}/none", "--events", "{tmp}/none"], ["none"]),
    "ctxrec.benchmark": (["--suite", "{tmp}/none.toml", "--out", "{tmp}/out"], ["none.toml"]),
    "ctxrec.datasets": (["netflix", "--out", "{tmp}/out"], ["expected one of movielens-100k"]),
    "ctxrec.demo": (["--out", "{tmp}/out", "--source", "{tmp}/none"], ["none"]),
    "ctxrec.evaluate": (["--run", "{tmp}/none"], ["no finished run at"]),
    "ctxrec.init": (["{tmp}/none.csv", "--out", "{tmp}/dataset.toml"], ["none.csv"]),
    "ctxrec.plan": (
        ["--events", "1e8", "--items", "1e6", "--users", "1e7", "--encoder", "6,384"],
        ["layers,hidden,vocab"],
    ),
    "ctxrec.prepare": (["{tmp}/none.toml", "--out", "{tmp}/data"], ["none.toml"]),
    "ctxrec.publish": (["--to", "{tmp}/models", "--rollback"], ["nothing is published at"]),
    "ctxrec.recommend": (
        ["--run", "{tmp}/none", "--requests", "{tmp}/r.parquet", "--k", "5", "--out", "{tmp}/o.parquet"],
        ["none"],
    ),
    "ctxrec.refresh": (["--models", "{tmp}/models"], ["nothing is published at"]),
    "ctxrec.rerank": (["--run", "{tmp}/none"], ["none"]),
    "ctxrec.train": (["--data", "{tmp}/none", "--out", "{tmp}/run"], ["none", "ctxrec prepare"]),
    "tune.sweep": (["--data", "d", "--out", "{tmp}/out", "--set", "sweep.trials=0"], ["sweep.trials is 0"]),
}


def commands() -> set[str]:
    """Modules that run as `__main__`: files directly in the product's folders, and packages with a `__main__.py`."""
    places = [*REPO.glob("ctxrec/*.py"), *REPO.glob("tune/*.py"), *REPO.glob("ctxrec/*/__main__.py")]
    found = set()
    for path in places:
        if any(
            isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            for node in ast.parse(path.read_text()).body
        ):
            found.add(".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__main__"))
    return found


def test_every_command_is_here():
    assert commands() == set(MISTAKES)


@pytest.fixture(scope="module")
def ended(request, tmp_path_factory) -> Callable[[str], Ended]:
    """What the process of a command left. Two run at a time, as each spends its seconds on imports."""
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(REPO)}

    def run(module: str) -> Ended:
        folder = tmp_path_factory.mktemp(module)
        arguments = [argument.format(tmp=folder) for argument in MISTAKES[module][0]]
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
        return Ended(done.returncode, done.stdout, done.stderr)

    asked = {
        item.callspec.params["module"]
        for item in request.session.items
        if hasattr(item, "callspec") and item.path == request.path
    }
    with ThreadPoolExecutor(2) as threads:
        started = {module: threads.submit(run, module) for module in MISTAKES if module in asked}
        yield lambda module: started[module].result()


@pytest.mark.parametrize("module", MISTAKES)
def test_a_users_mistake_ends_a_process_with_one_line_and_2(module, ended):
    assert_users_mistake(ended(module), *MISTAKES[module][1])
