"""How far a refresh is: one small file, replaced whole, so that a killed command goes on where it was."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Literal

from ctxrec.bundle.registry import Published
from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RefreshPaths
from ctxrec.core.toml import build_dataclass

Stage = Literal["prepare", "train", "gate", "complete", "canary", "publish", "watch", "done"]
Outcome = Literal["", "published", "refused", "nothing new", "rolled back", "superseded"]

_KEPT = 2  # rounds whose data and run stay on disk, this one included


@dataclass(frozen=True, kw_only=True)
class Round:
    """One refresh, from new data to a decision.

    Attributes:
        number: counts from 1.
        stage: what is to be done next; all before it is done.
        served: the version that is served at the start, with which the candidate is compared.
        served_since: epoch seconds since when it is served.
        started: epoch seconds of the start.
        source: fingerprint of the files, the spec and the options, and the flags; "" before they are looked at.
        decided: the same of the round before.
        candidate: version of the new model; "" before it is trained.
        judged: version that passed the gates, where the candidate is made of it and knows the newest events too; "" where the
            gates judged the candidate itself.
        warm: whether training starts from the served version.
        trained_anew_because: why it does not, in words.
        outcome: how the round ended; "" before its end.
    """

    number: int
    stage: Stage = "prepare"
    served: str
    served_since: float
    started: float
    source: str = ""
    decided: str = ""
    candidate: str = ""
    judged: str = ""
    warm: bool = False
    trained_anew_because: str = ""
    outcome: Outcome = ""


def last_round(work: str) -> Round | None:
    """The newest round of a working folder; None before the first.

    Raises:
        UserError: its state is damaged.
    """
    path = RefreshPaths(work).state
    if not storage.exists(path):
        return None
    try:
        made: Round = build_dataclass(Round, storage.read_json_object(path), source=path)
    except UserError as error:
        raise UserError(
            f"{error}; expected what ctxrec refresh wrote. Delete {path}, and the same command begins a new round"
        ) from error
    return made


def begin(work: str, before: Round | None, served: Published) -> Round:
    """Begin a round, and delete what rounds before the last one left.

    Args:
        work: the working folder.
        before: the last round.
        served: what is served now.
    """
    number = 1 if before is None else before.number + 1
    decided = "" if before is None else before.source
    made = Round(
        number=number,
        served=served.version,
        served_since=served.since,
        started=round(time.time(), 3),
        decided=decided,
    )
    storage.delete(RefreshPaths(work).round(number))  # of a round whose state was deleted
    storage.delete(RefreshPaths(work).round(number - _KEPT))
    write(work, made)
    return made


def advance(work: str, now: Round, stage: Stage, **facts: str | bool) -> Round:
    """The round at its next stage, with what the stage before found; it is on disk when this returns."""
    made = dataclasses.replace(now, stage=stage, **facts)  # type: ignore[arg-type]
    write(work, made)
    return made


def write(work: str, state: Round) -> None:
    """Write the state of a round whole."""
    storage.write_json(RefreshPaths(work).state, dataclasses.asdict(state))
