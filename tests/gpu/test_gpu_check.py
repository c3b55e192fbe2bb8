"""The GPU check in its form for CPUs: every part of it runs, at sizes that say nothing."""

from __future__ import annotations

import gpu_check
import pytest
from gpu_check import LOSSES_APART


@pytest.fixture(scope="module")
def log(ray_cluster, tmp_path_factory) -> str:
    return gpu_check.make_data(str(tmp_path_factory.mktemp("gpu") / "data"), small=True)


def test_every_part_runs_without_a_gpu_and_fills_its_table(log, capsys):
    assert gpu_check.main(["--data", log, "--small"]) == 0
    said = capsys.readouterr().out
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ") and "---" not in line]
    for part in (
        "| two layers of 64 | towers | bf16",
        "| two layers of 64 | encoder | fp32",
        "| FAISS flat, cpu | 1.0000",
        "| ivf, cpu, 1 % allowed",
    ):
        assert part in said, part
    assert len(rows) == (1 + 4) + (1 + 1) + (1 + 2) + (1 + 4), "a table has other rows than expected"
    assert "losses in bfloat16 on cpu are at most" in said and "FAULT" not in said


def test_losses_that_leave_those_of_float32_are_a_fault(log, tmp_path, monkeypatch, capsys):
    """By a training in bfloat16 whose rates differ, as a wrong kernel would move its losses."""
    real = gpu_check.in_a_process

    def spoilt(job: dict, folder: str) -> dict:
        wrong = ["train.tower_lr=0.5"] if "train.precision=bf16" in job["options"] else []
        return real({**job, "options": [*job["options"], *wrong]}, folder)

    monkeypatch.setattr(gpu_check, "in_a_process", spoilt)
    monkeypatch.setattr(gpu_check, "exact_rows", lambda *_: iter([["2", "torch float32, cpu", "0.5", "1", "1"]]))
    assert gpu_check.main(["--data", log, "--small"]) == 1
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAULT")]
    assert len(faults) == 2 and "bfloat16" in faults[0] and "recall 0.5" in faults[1], (faults, LOSSES_APART)
