"""SIGTERM to `serve run`, as a container or a service manager sends it, finishes what is in flight."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType

import ray
import ray.serve

from ctxrec.core import ray_private

logger = logging.getLogger(__name__)

_LOOK_S = 0.2


def drain_in_serve_run() -> None:
    """`drain_on_sigterm`, where this process is `serve run` and not a test, a task or another program."""
    if os.path.basename(sys.argv[0]) == "serve" and "run" in sys.argv[1:]:
        drain_on_sigterm()


def drain_on_sigterm() -> None:
    """Let SIGTERM end this process as it should.

    By itself Ray would end all processes at once, replicas with what they are answering. It takes the signal when it
    starts, which may be later than this call, and handlers are the main thread's to set: hence the timer.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if ray.is_initialized():
        signal.signal(signal.SIGTERM, _stop)
    else:
        signal.signal(signal.SIGALRM, _look)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)


def _look(signum: int, frame: FrameType | None) -> None:
    if ray.is_initialized():
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, _stop)


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever cannot wait sends it again
    logger.warning("SIGTERM: finishing what is in flight")
    done = threading.Event()
    threading.Thread(target=_end_without_ray, args=(done,), daemon=True).start()
    # Applications first: `shutdown` alone takes the proxies away from under their requests.
    for name in ray.serve.status().applications:
        ray.serve.delete(name)
    ray.serve.shutdown()
    done.set()
    sys.exit(0)


def _end_without_ray(done: threading.Event) -> None:
    """End this process where Ray's own processes got the signal too: its calls would wait for them for a minute."""
    while not done.wait(_LOOK_S):
        if not ray_private.own_processes_live():
            logger.error(
                "SIGTERM went to the processes of Ray too, so what was in flight is lost; send it to the process of "
                "`serve run` alone (systemd: KillMode=mixed)"
            )
            os._exit(1)
