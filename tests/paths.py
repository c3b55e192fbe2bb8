"""Where things are, for tests that run commands of this checkout."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
REPO = TESTS.parent
SHARED_DATA = REPO.parent / "shared" / "data"  # real data sets beside the checkout; tests skip where they are missing
