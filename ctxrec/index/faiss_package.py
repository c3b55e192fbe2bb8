"""Which package brings the module `faiss`: exactly one may, because each writes over the files of another."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from typing import Any

from ctxrec.core.errors import UserError

VERSION = "1.15.1"  # of all of them, as in pyproject.toml
EXTRAS = {"cpu": "faiss-cpu", "gpu": "faiss-gpu", "gpu-cuvs": "faiss-gpu-cuvs"}
_OF_OTHERS = ("faiss", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cu13")  # other packages that own the module
_CHOICES = " or ".join(f"pip install {package}=={VERSION}" for package in list(EXTRAS.values())[:2])


def installed() -> list[str]:
    """Names of the installed packages that own the module `faiss`; a build without a package has none."""
    found = []
    for name in (*EXTRAS.values(), *_OF_OTHERS):
        try:
            found.append(importlib.metadata.distribution(name).metadata["Name"])
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check() -> None:
    """See that one FAISS is there, before anything imports it.

    Raises:
        UserError: none is installed, or several are. Where nobody catches it, a program ends with this one line and
            status 2, as commands do; without this, they would end with a traceback, as they import FAISS at their start.
    """
    if len(found := installed()) > 1:
        told = (
            f"{' and '.join(found)} are installed, and both bring the module faiss; expected one of them; "
            f"run: pip uninstall -y {' '.join(found)}; then: {_CHOICES}"
        )
    elif not found and importlib.util.find_spec("faiss") is None:
        told = f"no package with the module faiss is installed; expected one of two; run: {_CHOICES} (for NVIDIA GPUs)"
    else:
        return
    _end_with_one_line(error := UserError(told))
    raise error


def _end_with_one_line(error: UserError) -> None:
    before = sys.excepthook

    def hook(kind: Any, value: BaseException, trace: Any) -> None:
        if value is not error:
            before(kind, value, trace)
            return
        print(f"error: {value}", file=sys.stderr)
        raise SystemExit(2)

    sys.excepthook = hook
