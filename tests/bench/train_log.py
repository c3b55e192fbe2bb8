"""A real training for a bench, and what it logged at each evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def train_log(data: str, overrides: list[str]) -> list[dict[str, Any]]:
    """The lines of `train_log.jsonl` of a `ctxrec.train` on prepared data; ends the bench where that fails."""
    with tempfile.TemporaryDirectory() as run:
        flags = [word for option in overrides for word in ("--set", option)]
        command = [sys.executable, "-m", "ctxrec.train", "--data", data, "--out", run, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return [json.loads(line) for line in Path(run, "train_log.jsonl").read_text().splitlines()]
