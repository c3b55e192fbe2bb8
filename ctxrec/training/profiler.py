"""Where the time of training steps goes: a trace that opens in Perfetto, and a table of its sections."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from ctxrec.core import storage
from ctxrec.core.run_paths import RunPaths
from ctxrec.core.tracing import PREFIX, section, set_tracing
from ctxrec.training.trackers import PHASES

SECTIONS = ("data", "encode", "towers", "loss", "backward", "communication", "optimizer", "other")
SUMMARY = "summary.txt"
WARM_UP, STEPS = 3, 5  # steps of a phase before the trace, and in it at most
_COMMUNICATION = re.compile(r"gloo:|nccl:|ncclDevKernel")

T = TypeVar("T")
Span = tuple[str, float, float]  # section, start and end


def in_section(name: str, items: Iterable[T]) -> Iterator[T]:
    """Pass on the items of an iterable, and count the time of producing each one to a section."""
    rest, end = iter(items), object()
    while True:
        with section(name):
            item = next(rest, end)
        if item is end:
            return
        yield item  # type: ignore[misc]


class StepTrace:
    """Traces some steps of a phase, and writes the trace and the seconds of its sections into `folder` of the run."""

    def __init__(self, folder: str, phase: str, scratch: str) -> None:
        self._folder, self._phase, self._scratch = folder, phase, scratch
        self._profile: Any = None
        self._done = 0  # steps

    def step_done(self) -> None:
        """Count a step; start or end the trace when it is time."""
        self._done += 1
        if self._done == WARM_UP:
            set_tracing(True)
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
            self._profile.start()
        elif self._done == WARM_UP + STEPS:
            self.close()

    def close(self) -> None:
        """Save the trace, if it has begun."""
        if self._profile is None:
            return
        set_tracing(False)
        self._profile.stop()
        steps = self._done - WARM_UP
        if steps:
            path = os.path.join(self._scratch, f"{self._phase}.json.gz")
            self._profile.export_chrome_trace(path)
            with open(path, "rb") as stream:
                packed = stream.read()
            storage.write_bytes(storage.join(self._folder, os.path.basename(path)), packed)
            seconds = seconds_by_section(_spans(json.loads(gzip.decompress(packed))["traceEvents"]))
            summary = {"phase": self._phase, "steps": steps, "seconds": seconds}
            storage.write_json(storage.join(self._folder, f"{self._phase}.summary.json"), summary)
        self._profile = None


def _spans(events: Iterable[dict[str, Any]]) -> list[Span]:
    """Sections and communication among a trace's events, in seconds."""
    spans = []
    for event in events:
        if event.get("ph") != "X":
            continue
        name, start = str(event["name"]), event["ts"] / 1e6
        if name.startswith(PREFIX) and event.get("cat") == "user_annotation":  # a GPU's copy of it has another category
            spans.append((name.removeprefix(PREFIX), start, start + event["dur"] / 1e6))
        elif _COMMUNICATION.match(name):
            spans.append(("communication", start, start + event["dur"] / 1e6))
    return spans


def seconds_by_section(spans: list[Span]) -> dict[str, float]:
    """Seconds of each section; every moment from the first span's start to the last one's end counts to one section.

    A moment with communication counts to it, as other sections wait for it. Else it counts to the span that began last,
    which is the innermost. Else it counts to "other".
    """
    seconds = dict.fromkeys(SECTIONS, 0.0)
    borders = sorted({time for _, start, end in spans for time in (start, end)})
    waiting = sorted(spans, key=lambda span: -span[1])  # the next to begin comes last
    active: list[Span] = []
    for begin, end in zip(borders, borders[1:], strict=False):
        while waiting and waiting[-1][1] <= begin:
            active.append(waiting.pop())
        active = [span for span in active if span[2] > begin]
        names = [name for name, _, _ in active]
        name = "communication" if "communication" in names else names[-1] if names else "other"
        seconds[name] += end - begin
    return seconds


def summarise(run: str) -> str:
    """A table of the traced phases, which is kept in the run too."""
    folder = RunPaths(run).profile
    if not storage.exists(folder):
        return f"no phase has more than {WARM_UP} steps, so there is no trace"
    found = [storage.read_json(path) for path in storage.list_files(folder) if path.endswith(".summary.json")]
    found.sort(key=lambda summary: PHASES.index(summary["phase"]))
    lines = ["milliseconds a step".ljust(20) + "".join(f"{summary['phase']:>18}" for summary in found)]
    totals = [sum(summary["seconds"].values()) for summary in found]
    for name in SECTIONS:
        cells = [
            f"{summary['seconds'][name] / summary['steps'] * 1e3:10.2f} {summary['seconds'][name] / total:6.1%}"
            for summary, total in zip(found, totals, strict=True)
        ]
        lines.append(name.ljust(20) + "".join(cell.rjust(18) for cell in cells))
    whole = [f"{total / summary['steps'] * 1e3:10.2f} {1:6.1%}" for summary, total in zip(found, totals, strict=True)]
    lines.append("all".ljust(20) + "".join(cell.rjust(18) for cell in whole))
    text = "\n".join(lines) + f"\n{folder}/*.json.gz open in https://ui.perfetto.dev"
    storage.write_text(storage.join(folder, SUMMARY), text + "\n")
    return text
