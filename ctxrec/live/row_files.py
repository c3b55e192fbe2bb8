"""Posted items and users as Parquet files with the columns of the data set's own tables, for the next `ctxrec.prepare`.

A file holds the rows of a range of changes of the store, as they were when it was written. New rows become a file of their
own. It takes the place of the files before it while these are at most twice as large, so a row is written about log(rows)
times, and about log(rows) files hold all of them.

The name of a file with later changes sorts before others, because `prepare` keeps the first row of an id that several files
have. The store has the latest change of a row alone. So a file with an earlier state of a row ends before that change, and
sorts behind the file that has it. That holds for any ranges: several replicas may write, and any of them may be killed.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.dataset_spec import ItemsSpec, UsersSpec
from ctxrec.data.posted_rows import file_table, key_of
from ctxrec.live.store import HistoryStore, RowChange, Table

_LAST = 10**12 - 1  # change that a name has room for
_LARGER = 2  # a file stays where it has more than so many times the rows of the new one
_REST = 20  # all files become one again after so many times the time that it took before


@dataclass(frozen=True)
class _File:
    """A file with the changes after `first`; `rows` of it."""

    first: int
    rows: int


class RowFiles:
    """Writes the posted rows of a table to files; for use by one thread.

    An item that was taken away has no row. A user who was has an empty one, so that the next `prepare` knows no more of the
    user than the service does. What was taken away leaves earlier files too, when all of them become one: at the first call,
    and after rows were taken away, but not more often than for a twentieth of the time.

    Args:
        store: what was posted.
        table: which rows.
        folder: path or URI.
        section: names of the files' columns; None where the data set has no such table: nothing is written.
        keep_s: seconds for which a file stays after another took its place, for a `prepare` that is about to read it.
        now: a clock in seconds that never goes back.
    """

    def __init__(
        self,
        store: HistoryStore,
        table: Table,
        folder: str,
        section: ItemsSpec | UsersSpec | None,
        *,
        keep_s: float = 600.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._table, self._folder, self._section = store, table, folder, section
        self._keep_s, self._now = keep_s, now
        self._files: list[_File] = []  # oldest changes first
        self._last = 0  # change that is in the files
        self._rests_until = now()  # before that all files do not become one
        self._is_unclean = True  # whether a file may have a row that was taken away
        self._replaced: dict[str, float] = {}  # files whose rows another one has, and since when

    def write(self) -> int:
        """Write what no file has yet; returns the number of rows that were written, old ones too.

        Raises:
            StoreError: the store does not answer.
        """
        if self._section is None:
            return 0
        self._delete_replaced()
        start, files = self._now(), list(self._files)
        changes = self._store.row_changes(self._table, self._last)
        self._is_unclean |= any(change.row is None for change in changes)
        whole = self._is_unclean and start >= self._rests_until
        if not changes and not whole:
            return 0
        first, rows = self._last, len(changes)
        while files and (whole or files[-1].rows <= _LARGER * rows):
            merged = files.pop()
            first, rows = merged.first, rows + merged.rows
        first = 0 if whole else first
        if first < self._last:
            changes = self._store.row_changes(self._table, first)
        last = changes[-1].number if changes else self._last
        written = self._write(changes, first, last) if changes else 0
        if whole:
            self._is_unclean, self._rests_until = False, self._now() + _REST * (self._now() - start)
        self._files, self._last = [*files, _File(first, len(changes))], last
        return written

    def _write(self, changes: Sequence[RowChange], first: int, last: int) -> int:
        """Write a file with the rows of these changes; those whose changes it has too are replaced by it."""
        assert self._section is not None
        left = [change for change in changes if change.row is not None or self._table == "users"]
        rows = [{**(change.row or {}), key_of(self._table): change.id} for change in left]
        if not rows and first == self._last > 0:
            return 0
        sink = pa.BufferOutputStream()
        pq.write_table(file_table(rows, self._section, self._table), sink)
        name = f"0-live-{self._store.id}-{_LAST - last:012d}-{first}-{last}.parquet"
        storage.write_bytes(storage.join(self._folder, name), sink.getvalue().to_pybytes())
        if first < self._last or not self._last:
            self._find_replaced(name, first, last)
        return len(rows)

    def _find_replaced(self, name: str, first: int, last: int) -> None:
        """Note the files of this store that have no change besides those of a file; earlier versions wrote one with all."""
        pattern = re.compile(rf"0-live-{re.escape(self._store.id)}(?:-\d+-(\d+)-(\d+))?\.parquet")
        for path in storage.list_files(self._folder):
            found = pattern.fullmatch(path.rpartition("/")[2])
            if found is None or found[0] == name:
                continue
            range_ = (0, 0) if found[1] is None else (int(found[1]), int(found[2]))
            if first <= range_[0] and range_[1] <= last:
                self._replaced.setdefault(path, self._now())

    def _delete_replaced(self) -> None:
        for path, since in list(self._replaced.items()):
            if self._now() - since >= self._keep_s:
                with contextlib.suppress(FileNotFoundError):  # another replica was faster
                    storage.delete(path)
                del self._replaced[path]
