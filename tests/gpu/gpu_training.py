"""One training of `gpu_check.py` in a process of its own, so that its memory and its device are its own.

    python tests/gpu/gpu_training.py JOB.json

The job names prepared data, an encoder, options and the device. The last line of the output is a JSON object: events and
tokens a second and utilisation of each phase, the losses, and the peak of memory.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says, without Ray, and read what the training logged."""
    import torch

    from ctxrec.core.config import load_config
    from ctxrec.training.driver import train

    options = [f"encoder.name={job['encoder']}", "train.workers=0", "train.trackers=[]", *job["options"]]
    config = load_config(None, options)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CTXREC_CACHE"] = f"{folder}/cache"  # what another training encoded is encoded again
        run = train(job["data"], f"{folder}/run", config)
        log = [json.loads(line) for line in Path(run, "train_log.jsonl").read_text().splitlines()]
    on_gpu = config.train.use_gpu == "yes"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps = [line for line in log if "loss" in line]
    phases = {
        phase: {
            name: max(line.get(name, 0.0) for line in steps if line["phase"] == phase)
            for name in ("events_per_s", "tokens_per_s", "utilisation")
        }
        for phase in dict.fromkeys(line["phase"] for line in steps)
    }
    return {"phases": phases, "losses": [line["loss"] for line in steps], "peak_bytes": peak}


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(Path(sys.argv[1]).read_text()))))
