"""The version is written once for the code and once for the package, and both are equal."""

from __future__ import annotations

import tomllib

from paths import REPO

import ctxrec
from ctxrec.core.version import VERSION


def test_the_package_has_the_version_of_the_code():
    assert tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"] == VERSION == ctxrec.__version__
