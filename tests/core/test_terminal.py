"""What a person sees of a command: no noise of libraries, one bar a step, nothing repeated where nobody watches."""

from __future__ import annotations

import inspect
import io
import json
import logging
import os
import subprocess
import sys
import warnings

import pytest

from ctxrec.core import ray_private, terminal

# As they stood in the log of a training before they were left out.
NOISE = [
    "[2026-11-30 07:04:42,490 E 22254 22302] core_worker.cc:2465: Actor with class name: 'PreemptionWatcher' and ID: "
    "'765d' has constructor arguments in the object store and max_restarts > 0. If the arguments in the object store go out",
    "[2026-11-30 07:45:54,175 E 6907 6907] (gcs_server) gcs_actor_scheduler.cc:538: Failed to kill actor 5a80fa, return",
    "INFO 2026-11-30 07:47:18,627 proxy 192.0.2.2 -- Got updated endpoints: {}.",
    "INFO 2026-12-01 12:47:14,865 proxy 127.0.0.1 bbcd642f-234b -- Client for request bbcd642f-234b disconnected, cancelling request.",
    "Loading faiss with AVX512-SPR support.",
    "Could not load library with AVX512 support due to:",
    "ModuleNotFoundError(\"No module named 'faiss.swigfaiss_avx2'\")",
    "Successfully loaded faiss.",
    "DeepSpeed deepspeed.ops.comm.deepspeed_shm_comm_op built successfully",
    "/x/torch/distributed/y.py:12: FutureWarning: `torch.z` is deprecated",
    "  warnings.warn(",
    "",
]
NEWS = [
    "training on 1 worker",
    "towers: 840 steps in 137 s, loss 11.8",
    "ModuleNotFoundError: No module named 'mine'",
    "[2026-11-30 07:04:42,490 E 22254 22302] core_worker.cc:99: Failed to connect to GCS",
    "Traceback (most recent call last):",
    "UserWarning: lr is 0",
    "INFO 2026-11-30 07:47:18,942 controller 9051 -- Adding 1 replica to Deployment(name='Service', app='default').",
]


@pytest.mark.parametrize("line", NOISE)
def test_lines_that_ask_for_nothing_are_left_out(line):
    assert not terminal.says_something(line)


@pytest.mark.parametrize("line", NEWS)
def test_all_other_lines_stay(line):
    assert terminal.says_something(line)


FAILED = (
    "Failed to send resource request for train-ba0b. If this only happens transiently during network partition or CPU "
    "being overloaded, it's safe to ignore this error. If this error persists, file a GitHub issue."
)


def test_a_request_that_ray_train_repeats_by_itself_is_left_out_with_its_traceback():
    quiet = terminal.QuietTracebacks()
    told = [
        "before", FAILED, "Traceback (most recent call last):", '  File "x.py", line 58, in send', "    ray.get(",
        "    ^^^^^^", "ray.exceptions.GetTimeoutError: Get timed out", "",
        "During handling of the above exception, another exception occurred:", "", "Traceback (most recent call last):",
        '  File "y.py", line 1', "ValueError: again", "training on 1 worker", FAILED, "  an indented line that is news",
        "Traceback (most recent call last):", '  File "z.py"', "KeyError: 'a fault of its own'",
    ]  # fmt: skip
    shown = []
    for line in told:
        shown += [line] if quiet.shows(1, line) else []
        assert quiet.shows(2, "    of another process")
    assert shown == ["before", *told[13:14], *told[15:]]


@pytest.mark.parametrize("bars", [True, False])
def test_lines_of_rays_processes_pass_the_filter(bars):
    """With Ray's own dispatcher, so that another version of Ray that shows lines in another way fails here."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as streams
    from ray.experimental.tqdm_ray import RAY_TQDM_MAGIC

    before, adds, seen = list(streams.handlers), vars(streams).get("add_handler"), []
    streams.handlers = []
    try:
        for _ in range(2):  # a second call changes nothing
            ray_private.filter_worker_lines(terminal.says_something, bars=bars)
        streams.add_handler("ray_print_logs", lambda data: seen.append((data["pid"], data["lines"])))
        streams.add_handler("other", lambda data: None)
        bar = json.dumps({RAY_TQDM_MAGIC: 1})
        streams.emit({"pid": 7, "is_err": True, "lines": [*NOISE, NEWS[0], bar]})
        streams.emit({"pid": 8, "is_err": False, "lines": list(NOISE)})
        streams.emit({"pid": 9, "is_err": True, "lines": [FAILED, "Traceback (most recent call last):", "  File x"]})
        streams.emit({"pid": 9, "is_err": True, "lines": ["    a frame", "ray.exceptions.GetTimeoutError: late"]})
        assert seen == [(7, [NEWS[0], bar] if bars else [NEWS[0]])]
        streams.remove_handler("ray_print_logs")  # as Ray does at the end
        assert [name for name, _ in streams.handlers] == ["other"]
    finally:
        streams.handlers = before
        vars(streams).pop("add_handler")
        if adds is not None:
            streams.add_handler = adds


def test_errors_that_rays_own_processes_tell_pass_the_filter(monkeypatch, capsys):
    """With the function by which Ray writes them, so that another version of Ray that writes in another way fails here."""
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    ray_private._filter_errors_of_ray(terminal.says_something)
    ended = "Task ServeController.graceful_shutdown failed. There are infinite retries remaining"
    for line in (ended, "The node with node id: 1 has been marked dead."):
        worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    out, err = capsys.readouterr()
    assert "marked dead" in out + err and "graceful_shutdown" not in out + err
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)


class Screen(io.StringIO):
    def __init__(self, watched: bool) -> None:
        super().__init__()
        self.watched = watched

    def isatty(self) -> bool:
        return self.watched


@pytest.mark.parametrize("watched", [True, False])
def test_a_bar_is_drawn_for_those_who_watch(watched, monkeypatch):
    screen = Screen(watched)
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.progress_bar(1000, "read", "row", scale=True) as bar:
        for _ in range(1000):
            bar.update()
    if watched:
        assert "read: 100%" in screen.getvalue() and "1.00k/1.00k" in screen.getvalue()
    else:
        assert screen.getvalue() == "", "a short step needs no line in a file"


def test_a_long_step_writes_a_line_now_and_then(monkeypatch):
    """The clock is the bar's own, so that nothing waits here."""
    screen = Screen(False)
    monkeypatch.setattr(sys, "stderr", screen)
    bar = terminal.progress_bar(1000, "read", "row")
    clock = [bar.start_t]
    bar._time = lambda: clock[0]
    for _ in range(1000):
        clock[0] += 0.1
        bar.update()
    bar.close()
    lines = [part for part in screen.getvalue().split("\r") if part.strip()]
    assert 3 <= len(lines) <= 5, "100 seconds, a line every 30, and the last state"
    assert "1000/1000" in lines[-1]


def test_libraries_keep_their_warnings():
    """Their warnings and errors stay; a FutureWarning is for those who write code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        terminal.quiet_libraries()
        warnings.warn("soon", FutureWarning, stacklevel=1)
        warnings.warn("look", UserWarning, stacklevel=1)
    assert [str(found.message) for found in caught] == ["look"]
    assert logging.getLogger("faiss.loader").level == logging.WARNING


def test_what_is_held_back_is_written_afterwards(capfd):
    """Also when an error comes between, and what another library writes to the file itself."""
    with pytest.raises(ValueError), terminal.filtered_stderr(lambda line: "noise" not in line):
        os.write(2, b"a line of noise\nfrom C\n")
        print("from Python", file=sys.stderr)
        raise ValueError
    assert sorted(capfd.readouterr().err.splitlines()) == ["from C", "from Python"]


def test_rays_own_processes_keep_their_level_of_logging(monkeypatch):
    from ray._private import services

    monkeypatch.delenv("RAY_BACKEND_LOG_LEVEL", raising=False)
    started, ray_starts = [], services.start_ray_process
    monkeypatch.setattr(services, "start_ray_process", lambda: started.append(os.environ.get("RAY_BACKEND_LOG_LEVEL")))
    with ray_private.driver_errors_in_files():
        assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "fatal"
        services.start_ray_process()
        assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "fatal"
    assert started == [None] and "RAY_BACKEND_LOG_LEVEL" not in os.environ
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "debug")
    with ray_private.driver_errors_in_files():
        services.start_ray_process()
    assert started == [None, "debug"], "whoever looks for a fault of Ray sees all"
    assert ray_starts.__module__ == "ray._private.services"


TALKS = """
from ctxrec.core import cli
def main():
    print("caf\\xe9")
cli.run(main)
"""


@pytest.mark.system  # it starts processes
def test_a_closed_stream_and_a_narrow_encoding_are_no_failures():
    """As with `>&-`, and in a locale without UTF-8."""
    for narrow in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        env = os.environ | narrow
        done = subprocess.run([sys.executable, "-c", TALKS], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9\n", "")
    for close in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$0" -c "$1" {close}', sys.executable, TALKS], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
