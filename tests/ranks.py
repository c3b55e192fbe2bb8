"""Several processes of one group, without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_ranks(script: str, folder: Path, world: int, *, env: dict[str, str], timeout_s: float) -> dict[str, Any]:
    """Run `script RANK WORLD FOLDER` for each rank of a process group; what all of them write to WORLD-RANK.json."""
    commands = [[sys.executable, script, str(rank), str(world), str(folder)] for rank in range(world)]
    ranks = [
        subprocess.Popen(c, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands
    ]
    said = [rank.communicate(timeout=timeout_s)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(text[-3000:] for text in said)
    found = [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]
    assert all(other == found[0] for other in found), "all workers see the same mean loss"
    return found[0]
