"""The budget of a sweep: hours and GPU-hours that it may take, and has taken over all its starts."""

from __future__ import annotations

import time
from typing import Any

import ray.tune

from ctxrec.core import storage
from ctxrec.core.errors import UserError

_WRITE_EVERY_S = 5.0


class Budget(ray.tune.Stopper):
    """Ends the sweep when its hours or GPU-hours are used up.

    The file at `path` holds the limits and what was spent. Each start of the sweep reads it, so a sweep that goes on keeps
    its account and takes new limits.
    """

    def __init__(self, path: str, gpus_per_trial: float) -> None:
        self.path, self.gpus_per_trial = path, gpus_per_trial
        self._begin()

    def _begin(self) -> None:
        self._account = read_account(self.path)
        self._began, self._written = time.monotonic(), 0.0
        self._hours_before = self._account["hours"]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "gpus_per_trial": self.gpus_per_trial}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Add the time of a trial to the account. A single trial is never stopped here."""
        self._account["gpu_hours"] += self.gpus_per_trial * result.get("time_this_iter_s", 0.0) / 3600
        return False

    def stop_all(self) -> bool:
        """Whether the budget is used up."""
        now = time.monotonic()
        self._account["hours"] = self._hours_before + (now - self._began) / 3600
        spent = is_spent(self._account)
        # The final state must be in the file, because the sweep reads there why it ended.
        if spent or now - self._written > _WRITE_EVERY_S:
            self._written = now
            storage.write_json(self.path, self._account)
        return spent


def open_account(path: str, *, max_hours: float, max_gpu_hours: float) -> None:
    """Write the limits (0: none) into the account; what was spent stays."""
    spent = read_account(path) if storage.exists(path) else {"hours": 0.0, "gpu_hours": 0.0}
    storage.write_json(path, spent | {"max_hours": max_hours, "max_gpu_hours": max_gpu_hours})


def read_account(path: str) -> dict[str, Any]:
    """The limits and what was spent.

    Raises:
        UserError: the file is damaged.
    """
    try:
        account = storage.read_json_object(path)
    except UserError:
        account = {}
    keys = ("hours", "gpu_hours", "max_hours", "max_gpu_hours")
    if not all(isinstance(account.get(key), (int, float)) for key in keys):
        raise UserError(f"{path} is damaged; remove it, and the sweep goes on with a new account of its hours")
    return account


def is_spent(account: dict[str, Any]) -> bool:
    """Whether a limit of the account is reached."""
    return any(0 < account[f"max_{what}"] <= account[what] for what in ("hours", "gpu_hours"))
