"""Keeps the catalogue of a replica equal to the store: added, changed and removed items."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ctxrec.core.errors import UserError
from ctxrec.data.posted_rows import check_rows, fitting, posted_table
from ctxrec.live.store import HistoryStore, RowChange, StoreError
from ctxrec.retrieval.item_encoder import ItemEncoder
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.retriever import Retriever

logger = logging.getLogger(__name__)

_AT_ONCE = 256  # items that are encoded together
Run = Callable[[Callable[[], None]], None]


class ItemSync:
    """Applies the item changes of the store to a retriever; for use by one thread.

    Args:
        retriever: of one version of the model.
        encoder: of the same.

    Methods that change the retriever take `run`, which calls a function where nothing searches meanwhile, and
    waits for it.
    """

    def __init__(self, retriever: Retriever[Recommender], encoder: ItemEncoder, store: HistoryStore):
        self._retriever, self._encoder, self._store = retriever, encoder, store
        self._number = 0  # of the last change that was taken over

    def load_encoder(self) -> None:
        """Load the text encoder now, so that the first new item need not wait for it."""
        self._encoder.load()

    def put(self, rows: Sequence[Mapping[str, Any]], run: Run) -> int:
        """Store rows and make them searchable here; other replicas follow.

        Raises:
            BadRow: a row does not fit the item file.
            NoEncoder: texts cannot be encoded here.
            StoreError: they may not be stored.
        """
        check_rows(rows, self._retriever.recommender.spec)
        self._encoder.load()
        posted_table(rows, self._retriever.recommender.spec)  # what cannot be read must not reach the other replicas
        accepted = {row["item_id"]: {k: v for k, v in row.items() if k != "item_id"} for row in rows}
        self._store.change_rows("items", accepted)
        self.catch_up(run, accepted)
        return len(rows)

    def remove(self, item_id: str, run: Run) -> bool:
        """Take an item out of the catalogue; False when it is not there."""
        self.catch_up(run)
        if not self._retriever.has_item(item_id):
            return False
        self._store.change_rows("items", {item_id: None})
        self.catch_up(run)
        return True

    def catch_up(self, run: Run | None = None, accepted: Mapping[str, Any] | None = None) -> None:
        """Take over what the store has and the retriever lacks; without `run` while nobody searches it yet.

        `accepted` are rows by item id that were checked already.
        """
        changes = self._store.row_changes("items", self._number)
        for start in range(0, len(changes), _AT_ONCE):
            part = changes[start : start + _AT_ONCE]
            self._take(part, run or (lambda change: change()), accepted or {})
            self._number = part[-1].number

    def _take(self, changes: Sequence[RowChange], run: Run, accepted: Mapping[str, Any]) -> None:
        spec, rows = self._retriever.recommender.spec, []
        for change in changes:
            if change.row is not None:
                row = {**change.row, "item_id": change.id}
                # What another replica took may have columns that the item file of this version lacks.
                rows.append(row if change.row == accepted.get(change.id) else fitting(row, spec))
        encoded = self._encoder.encode(posted_table(rows, spec)) if rows else None
        removed = [c.id for c in changes if c.row is None]
        run(lambda: self._retriever.update(encoded, removed))


class Every:
    """Calls a function every so many seconds in a thread of its own; what it raises is logged and tried again."""

    def __init__(self, seconds: float, call: Callable[[], None], name: str):
        self._seconds, self._call = seconds, call
        self._stopped = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._call()
                self._failing = False
            except (UserError, StoreError) as error:
                if not self._failing:  # once, not every time
                    logger.warning("%s: %s", self._thread.name, error)
                self._failing = True
            except Exception:
                logger.exception("%s failed; it will be tried again", self._thread.name)
