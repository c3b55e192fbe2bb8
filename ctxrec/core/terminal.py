"""What a person sees of a command: one bar for each step, and no lines of libraries that ask for nothing.

Where nobody watches (a file, a job's log), a bar writes a line now and then and not one for each of its states.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

QUIET_S = 30.0  # seconds between lines of a bar that no terminal shows

# Loggers whose information is not for the users of a command.
_LIBRARIES = ("httpx", "faiss", "faiss.loader", "DeepSpeed", "ray.data")
# Lines of Ray's processes that ask nobody to do anything. They stay in Ray's log files.
_NOISE = re.compile(
    "|".join(
        (
            r"has constructor arguments in the object store and max_restarts > 0",  # Ray's own actors
            r"Failed to kill actor",  # that ended with its cluster
            # Of Ray Serve's proxies, with all routes in one line; that the service is ready is said besides.
            r" proxy \S+ -- (?:Got updated endpoints|Started <ray|Calling user-provided|Proxy starting)",
            # A client that gave up is no fault of the service; at its end Serve kills the actor that it has just asked to end.
            r" proxy \S+(?: \S+)? -- Client for request \S+ disconnected",
            r"Task ServeController\.graceful_shutdown failed",
            r"DeepSpeed .* built successfully",
            r"FutureWarning: ",
            r"^\s*(?:warnings\.warn|_warn)\(",  # the second line of a warning
            r"Loading faiss|Successfully loaded faiss|Could not load library with AVX|'faiss\.swigfaiss",
            r"^\s*$",
        )
    )
)


# What Ray Train logs with a traceback where a machine is busy, and tries again by itself.
_PASSES = re.compile(r"Failed to send resource request for .*safe to ignore this error")
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")


class QuietTracebacks:
    """Leaves out messages that ask nobody to do anything, with the tracebacks below them, line by line."""

    def __init__(self) -> None:
        self._awaited: dict[object, str] = {}  # by process: the part of a message that may come next

    def shows(self, process: object, line: str) -> bool:
        """Whether the next line of a process is shown.

        >>> quiet = QuietTracebacks()
        >>> quiet.shows(7, "Failed to send resource request for train-1. [...] it's safe to ignore this error.")
        False
        >>> [quiet.shows(7, line) for line in ("Traceback (most recent call last):", "  File x", "Timeout", "step 10")]
        [False, False, False, True]
        """
        awaited = self._awaited.pop(process, "")
        if _PASSES.search(line) or (awaited == "more" and line.startswith(_CHAINED)):
            self._awaited[process] = "traceback"
        elif awaited == "more" and not line.strip():
            self._awaited[process] = "more"
        elif (awaited == "traceback" and (line.startswith("Traceback (") or not line.strip())) or awaited == "frames":
            is_frame = line.startswith((" ", "\t", "Traceback ("))
            self._awaited[process] = "frames" if is_frame else ("more" if line.strip() else awaited)
        else:
            return True
        return False


@contextlib.contextmanager
def filtered_stderr(shown: Callable[[str], bool]) -> Iterator[None]:
    """Hold back what is written to standard error, by C++ and by new processes too; write the lines that are shown afterwards.

    Args:
        shown: says whether a line is shown.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if shown(line.decode(errors="replace")):
                    os.write(2, line)


def progress_bar(total: int, what: str, unit: str, *, scale: bool = False) -> tqdm:
    """A progress bar on standard error, to be used in a `with` statement.

    Args:
        total: steps of the work; 0: there is nothing to show.
        what: the work.
        unit: what a step is, such as "row".
        scale: whether steps are written as 1.2k.
    """
    watched = sys.stderr.isatty()
    wait = (
        {"mininterval": 0.5}
        if watched
        else {"mininterval": QUIET_S, "delay": QUIET_S, "miniters": 1, "maxinterval": 1e9}
    )
    return tqdm(total=total, desc=what, unit=unit, unit_scale=scale, disable=total == 0, **wait)


def step_bar(total: int, what: str) -> Any:
    """A progress bar of steps: of a process of Ray on its driver's terminal, else on this one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return progress_bar(total, what, "step")
    from ray.experimental import tqdm_ray

    return tqdm_ray.tqdm(total=total, desc=what, unit="step", flush_interval_s=1.0)


def says_something(line: str) -> bool:
    """Whether a line of one of Ray's processes is shown.

    >>> says_something("towers: 840 steps"), says_something("Loading faiss with AVX2 support.")
    (True, False)
    """
    return _NOISE.search(line) is None


def quiet_libraries() -> None:
    """Keep what libraries tell of themselves off the terminal of this process; their warnings and errors stay."""
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)


def usable_streams() -> None:
    """Let printing never fail for the sake of the terminal: a closed stream takes nothing, and a character that the
    encoding of a stream lacks is written as an escape such as \\xe9."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started the command, as with >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
