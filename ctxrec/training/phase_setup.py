"""What the phases of a training share on one worker: this process, the log, the catalogue. It needs no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ctxrec.core.config import Config
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.batching import Batcher
from ctxrec.data.log_statistics import LogScan
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests
from ctxrec.encoder.cache import Place
from ctxrec.memory.item_memory import ItemMemory, fit_memory
from ctxrec.training.catalogue_vectors import Catalogue
from ctxrec.training.trackers import Tracker
from ctxrec.training.user_texts import TrainingTexts
from ctxrec.training.validator import Validator

Report = Callable[[dict[str, Any], str | None], None]


def keep_nothing(metrics: dict[str, Any], folder: str | None) -> None:
    """The report of a training whose checkpoints nobody keeps."""


@dataclass(frozen=True)
class Worker:
    """This process among the workers of a training."""

    place: Place
    dtype: torch.dtype  # what products are computed in
    scratch: str  # a local folder for as long as the training lasts
    profile: bool  # trace some steps of each phase
    tracker: Tracker | None  # on rank 0 alone
    report: Report = keep_nothing  # takes the figures of a checkpoint and, on rank 0, its folder

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def world(self) -> int:
        return self.place.world

    @property
    def device(self) -> torch.device:
        return self.place.device


@dataclass(frozen=True)
class TrainingLog:
    """The behaviour log: its buckets, what one read of them found, and what is made of both."""

    data: PreparedData
    scan: LogScan  # with the events on rank 0 alone, which alone makes memories
    batcher: Batcher
    validator: Validator | None  # None without validation requests
    _memory: list[tuple[tuple[int, bytes], ItemMemory]] = field(default_factory=list)  # the last one, and what it is of

    @property
    def validation(self) -> Requests | None:
        """The validation requests."""
        return self.scan.validation

    def memory(self, before: int, text_IC: np.ndarray | None) -> ItemMemory:
        """What the events of earlier splits than `before` say of items; on rank 0 alone.

        It takes minutes for a large catalogue, so the last one is kept.

        Args:
            before: schema.VALID or schema.TEST.
            text_IC: text vectors, its prior (`ctxrec.memory.item_memory.fit_memory`).
        """
        key = (before, b"" if text_IC is None else hashlib.blake2b(text_IC.tobytes()).digest())
        if not self._memory or self._memory[0][0] != key:
            parts, repeats = self.scan.training_events(before), self.data.spec.split.repeats
            kinds = self.data.kinds
            made = fit_memory(parts, self.data.num_items, repeats=repeats, text_IC=text_IC, kinds=kinds)
            self._memory[:] = [(key, made)]
        return self._memory[0][1]


@dataclass(frozen=True)
class Setup:
    """What all phases of a training share on one worker."""

    config: Config
    run: str
    worker: Worker
    log: TrainingLog
    catalogue: Catalogue
    user_texts: TrainingTexts | None = None  # None where no tower reads texts of users

    @property
    def checkpoints(self) -> str:
        return RunPaths(self.run).checkpoints
