"""How much the steps of a training process and how fast: the figures of its progress line."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ctxrec.encoder.encode_plan import EncodePlan, Tokens
from ctxrec.training.window_sampler import Step

_COUNT_FIRST, _COUNT_EVERY = 2, 100  # which steps count their operations, as counting is slow


class Meter:
    """Figures of this worker's steps since the last `read`."""

    def __init__(self, world: int, device: torch.device, dtype: torch.dtype) -> None:
        self._world, self._device, self._dtype = world, device, dtype
        self._num_steps = 0
        self._counted: list[int] = []  # operations of some steps of the phase
        self._clear()

    def _clear(self) -> None:
        self._steps, self._seconds = 0, 0.0
        self._events = self._distinct = self._slots = self._tokens = self._computed = 0

    def begin(self) -> None:
        """Start the clock of a step."""
        self._begun = time.perf_counter()

    def measured(self, run: Callable[[Step], Any], step: Step) -> Any:
        """Run a step and count it; for some steps also count the operations."""
        self._num_steps += 1
        if self._num_steps % _COUNT_EVERY == _COUNT_FIRST:
            before = self._tokens, self._computed
            with FlopCounterMode(display=False) as counter:
                result = run(step)
            self._counted.append(counter.get_total_flops())
            self._tokens, self._computed = before  # the seconds of this step do not count either
        else:
            result = run(step)
            self._seconds += time.perf_counter() - self._begun
            self._steps += 1
            self._events += sum(int((batch.weights_BS != 0).sum()) for batch in step.micro_batches) * self._world
            self._distinct += sum(len(items) for items in step.distinct_items)
            self._slots += step.num_slots
        return result

    def encoded(self, tokens: Tokens, plan: EncodePlan) -> None:
        """Count the texts of a plan, which all workers encode together."""
        real = int(tokens.lengths[plan.order[: plan.num_texts]].sum())
        self._tokens += real
        self._computed += round(float(tokens.lengths[plan.order].sum()) / max(1 - plan.padding, 1e-9))

    def pace(self) -> str:
        """Events and tokens a second, as a short text."""
        if not self._steps:
            return ""
        tokens = f"  {self._tokens / self._seconds:,.0f} tokens/s" if self._tokens else ""
        return f"{self._events / self._seconds:,.0f} events/s{tokens}"

    def read(self) -> dict[str, float]:
        """Figures since the last call; empty where no step was timed."""
        if not self._steps:
            return {}
        seconds, figures = self._seconds, {"events_per_s": self._events / self._seconds}
        figures["distinct_items"] = self._distinct / max(self._slots, 1)
        if self._tokens:
            figures["tokens_per_s"] = self._tokens / seconds
            figures["padding"] = 1 - self._tokens / self._computed
        if self._counted:
            rate = sum(self._counted) / len(self._counted) * self._steps / seconds
            figures["utilisation"] = rate / peak_flops(self._device, self._dtype)
        self._clear()
        return figures


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product here, the best of several. Utilisation is measured against it."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times[1:])
