"""What tests of trainings share: their commands, their logs, and when two of them are the same."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

REPO = Path(__file__).resolve().parent.parent


def read_log(run: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "train_log.jsonl").read_text().splitlines()]


def assert_same_training(found: str, expected: str) -> None:
    """Losses within 1e-4 relative at every evaluation, item vectors of the result within 3e-3.

    Sums run in another order on two workers, and AdamW divides by the root of tiny second moments, so
    float32 rounding grows from 1e-7 in a gradient to at most this in a weight, most where text does not vary.
    """
    logs = read_log(found), read_log(expected)
    assert [(a["phase"], a["step"]) for a in logs[0]] == [(b["phase"], b["step"]) for b in logs[1]]
    for a, b in zip(*logs, strict=True):
        if "loss" in b:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    vectors = [load_file(Path(run) / "bundle" / "vectors.safetensors")["items"] for run in (found, expected)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=3e-3)


def command_env() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    return env | {"PYTHONPATH": str(REPO), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
