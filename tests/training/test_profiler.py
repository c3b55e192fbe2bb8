"""Where a step's time goes: sections by hand, a trace of real work, and the figures of the progress line."""

from __future__ import annotations

import gzip
import json
import time

import numpy as np
import pytest
import torch

from ctxrec.core.tracing import section
from ctxrec.data.batching import make_windows
from ctxrec.encoder.encode_plan import Tokens, plan_encoding
from ctxrec.training.profiler import SECTIONS, STEPS, WARM_UP, StepTrace, in_section, seconds_by_section, summarise
from ctxrec.training.throughput import Meter, peak_flops
from ctxrec.training.window_sampler import Step

CPU = torch.device("cpu")


def test_each_moment_belongs_to_one_section():
    spans = [
        ("data", 0, 1), ("loss", 1, 6), ("encode", 2, 4), ("backward", 6, 9), ("optimizer", 10, 12),
        ("communication", 3, 3.5), ("communication", 8, 11), ("communication", 8.5, 9),
    ]  # fmt: skip
    found = seconds_by_section(spans)
    expected = {"data": 1, "loss": 3, "encode": 1.5, "backward": 2, "optimizer": 1, "communication": 3.5}
    assert {name: value for name, value in found.items() if value} == expected
    assert sum(found.values()) == 12 and seconds_by_section([("data", 0, 1), ("loss", 3, 4)])["other"] == 2
    assert seconds_by_section([]) == dict.fromkeys(SECTIONS, 0.0)


def test_a_trace_opens_and_its_table_adds_up(tmp_path):
    folder = str(tmp_path / "run" / "profile")
    trace = StepTrace(folder, "towers", str(tmp_path))
    weight = torch.randn(64, 64, requires_grad=True)
    inside, around = [], []  # seconds of the section "towers" in each step, by clocks within it and about it
    for _ in in_section("data", range(WARM_UP + STEPS + 3)):
        with section("loss"):
            outer = time.perf_counter()
            with section("towers"):
                inner = time.perf_counter()
                time.sleep(0.004)
                inside.append(time.perf_counter() - inner)
            around.append(time.perf_counter() - outer)
            loss = (weight @ weight).sum()
        with section("backward"):
            loss.backward()
        trace.step_done()
    trace.close()
    summary = json.loads((tmp_path / "run" / "profile" / "towers.summary.json").read_text())
    traced = slice(WARM_UP, WARM_UP + STEPS)
    assert summary["steps"] == STEPS
    assert sum(inside[traced]) - 1e-4 <= summary["seconds"]["towers"] <= sum(around[traced]) + 1e-4
    assert summary["seconds"]["backward"] > 0 and summary["seconds"]["encode"] == 0
    events = json.loads(gzip.decompress((tmp_path / "run" / "profile" / "towers.json.gz").read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert names.count("ctxrec.towers") == STEPS and "aten::mm" in names
    spent_s = sum(event["dur"] for event in events if event.get("name") == "ctxrec.towers") / 1e6
    assert summary["seconds"]["towers"] == pytest.approx(spent_s, rel=0.05)
    table = summarise(str(tmp_path / "run"))
    assert table.splitlines()[0].split()[-1] == "towers" and "100.0%" in table and "perfetto" in table
    assert "no trace" in summarise(str(tmp_path / "other"))


def test_a_phase_that_is_too_short_leaves_no_trace(tmp_path):
    trace = StepTrace(str(tmp_path / "profile"), "towers", str(tmp_path))
    for _ in range(WARM_UP - 1):
        trace.step_done()
    trace.close()
    assert not (tmp_path / "profile").exists()


def test_the_figures_of_the_progress_line_by_hand(make_world):
    world = make_world(rich=False)
    batcher = world.batcher(world.config())
    offsets = world.histories.events.offsets
    batch = batcher.training(world.histories, make_windows(offsets[:-1], offsets[1:], batcher.history))
    targets = int((batch.weights_BS != 0).sum())
    step = Step(epoch=0, step_in_epoch=0, micro_batches=[batch], distinct_items=[np.arange(10)], num_slots=40)
    tokens = Tokens(ids=np.zeros(9, np.int32), offsets=np.array([0, 2, 5, 9]), pad_id=0)
    plan = plan_encoding(np.arange(3), tokens.lengths, budget=100, world=1)
    meter, weight = Meter(2, CPU, torch.float32), torch.randn(32, 32)

    def work(_step: Step) -> str:
        meter.encoded(tokens, plan)
        _ = weight @ weight
        time.sleep(0.01)
        return "done"

    assert meter.read() == {} and meter.pace() == ""
    for _ in range(4):  # of which the second has its operations counted, not its time
        meter.begin()
        assert meter.measured(work, step) == "done"
    assert "events/s" in meter.pace() and "tokens/s" in meter.pace()
    figures = meter.read()
    assert figures["distinct_items"] == 0.25 and figures["padding"] == pytest.approx(3 / 12)
    seconds = 3 * 9 / figures["tokens_per_s"]
    assert seconds >= 0.03 and figures["events_per_s"] == pytest.approx(3 * targets * 2 / seconds)
    expected = 3 * 2 * 32**3 / seconds / peak_flops(CPU, torch.float32)
    assert figures["utilisation"] == pytest.approx(expected)
    assert meter.read() == {}, "each reading begins anew"
