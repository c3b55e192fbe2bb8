"""A lock that many readers may hold at once, or one writer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """Many readers or one writer.

    A thread may enter `reading` again while it reads or writes. A writer that waits goes before readers that come
    later, so a steady stream of readers cannot starve it.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._num_readers = 0
        self._num_waiting_writers = 0
        self._writer: int | None = None  # the thread that writes
        self._depth = threading.local()  # how often the current thread has entered `reading`

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        depth = getattr(self._depth, "value", 0)
        is_outermost = depth == 0 and self._writer != threading.get_ident()
        if is_outermost:
            with self._condition:
                self._condition.wait_for(lambda: self._writer is None and not self._num_waiting_writers)
                self._num_readers += 1
        self._depth.value = depth + 1
        try:
            yield
        finally:
            self._depth.value = depth
            if is_outermost:
                with self._condition:
                    self._num_readers -= 1
                    self._condition.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock alone; a thread that reads may not ask for it."""
        assert not getattr(self._depth, "value", 0), "a reader may not write: it would wait for itself"
        with self._condition:
            self._num_waiting_writers += 1
            try:
                self._condition.wait_for(lambda: self._writer is None and not self._num_readers)
                self._writer = threading.get_ident()
            finally:
                self._num_waiting_writers -= 1
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._writer = None
                self._condition.notify_all()
