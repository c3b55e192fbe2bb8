"""What a service says of a store that fails: a metric by kind, a line in the log, and an answer to the client."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException

from ctxrec.live.store import StoreError
from serve.service_metrics import Metrics

logger = logging.getLogger(__name__)

_LASTING = {  # kinds of failures that last until an operator mends them, in the words of the answer
    "damaged": "is damaged",
    "full": "has no room",
    "read-only": "is read-only",
    "denied": "does not let the service in",
}
_RETRY_S = 60


class StoreFailures:
    """Counts failed calls of a store. What lasts is logged once and not at each call.

    Args:
        metrics: of this process.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._said: set[str] = set()

    def __call__(self, error: StoreError) -> None:
        self._metrics.store_failures.labels(error.kind).inc()
        if error.kind not in _LASTING:
            logger.warning("the store does not answer: %s", error)
        elif error.kind not in self._said:
            self._said.add(error.kind)
            logger.error("the store %s; this is logged once: %s", _LASTING[error.kind], error)


def store_unavailable(error: StoreError, what: str = "") -> HTTPException:
    """The answer to a call that could not be stored, of which `what` the client sent ("the events"), or not be read ("")."""
    if error.kind not in _LASTING:
        lost = f"{what} may not be stored; " if what else ""
        detail = f"the history store does not answer; {lost}try again"
        return HTTPException(503, detail, headers={"Retry-After": "1"})
    lost, keep = (
        (f"; {what} may not be stored", "; keep what you sent and send it again after that") if what else ("", "")
    )
    mend = "The operator must mend it (the log of the service says how)"
    detail = f"the history store {_LASTING[error.kind]}{lost}. {mend}{keep}"
    return HTTPException(503, detail, headers={"Retry-After": str(_RETRY_S)})
