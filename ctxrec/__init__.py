"""ctxrec: context-aware recommendation with a large pretrained encoder, on Ray.

`import ctxrec` is quick: what the names below need is imported when one of them is used first.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ctxrec.core.errors import UserError
from ctxrec.core.version import VERSION as __version__

if TYPE_CHECKING:
    from ctxrec.python_api.fitted_model import Model
    from ctxrec.python_api.steps import evaluate, fit, load, prepare, train

__all__ = ["Model", "UserError", "__version__", "evaluate", "fit", "load", "prepare", "train"]

_WHERE = {name: "ctxrec.python_api.steps" for name in ("evaluate", "fit", "load", "prepare", "train")}
_WHERE["Model"] = "ctxrec.python_api.fitted_model"


class _Package(ModuleType):
    """This package, whose functions `train`, `prepare` and `evaluate` are not hidden by the commands of these names.

    To import `ctxrec.train`, the module of the command, would else bind the name `train` of the package to it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module 'ctxrec' has no attribute {name!r}")
        return getattr(importlib.import_module(_WHERE[name]), name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
