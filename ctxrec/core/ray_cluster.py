"""Join the Ray cluster that is there, or start a local one; set what Ray's workers need."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator

import ray
import ray.data
from ray.exceptions import AuthenticationError

from ctxrec.core import failures, ray_private, terminal
from ctxrec.core.errors import Failed

logger = logging.getLogger(__name__)

# Environment variables that every worker process gets. DeepSpeed must know its accelerator before it is imported, and
# its CPU extension is built once and shared. GPU nodes override both in their own environment.
_WORKER_ENV = ("DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR", "HF_HUB_OFFLINE", "CTXREC_CACHE", "PYTHONPATH")

_API_SERVER = "RAY_API_SERVER_ADDRESS"
_AGAIN = "and run the command again"
_TOKEN = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or the file that RAY_AUTH_TOKEN_PATH names, to the token of the cluster, or "
    "RAY_AUTH_MODE=disabled for a cluster without one"
)
_REFUSED = re.compile(r"(?i)unauthenticated|invalidauthtoken|authentication token")  # in what Ray says
_REACH_S = 10.0  # in which a head that is starting again may answer


def connect(*, log_to_driver: bool = True) -> None:
    """Connect to the cluster that RAY_ADDRESS names, as it does in a submitted job, or start a local cluster.

    A second call in one process does nothing.

    Args:
        log_to_driver: whether this terminal shows what all processes of the cluster print.

    Raises:
        Failed: Ray did not start; says where, why and what to do.
    """
    ray_private.quiet_data_errors()
    ray_private.quiet_data_progress()
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    env = {name: os.environ[name] for name in _WORKER_ENV if name in os.environ}
    options = {"runtime_env": {"env_vars": env}, "log_to_driver": log_to_driver, "logging_level": logging.WARNING}
    quiet_processes()
    if address := os.environ.get("RAY_ADDRESS"):
        check_reachable(address)
    with naming_why_not(address), ray_private.driver_errors_in_files():
        if address:
            ray.init(**options)
        else:
            # Ray Train's controller watches itself through the dashboard's state API; it binds to localhost.
            options |= {"address": "local", "include_dashboard": True, "object_store_memory": _object_store_bytes()}
            with ray_private.of_this_machine_alone():
                ray.init(**options)
    _quiet_small_clusters()
    logger.info("Ray %s with %s CPUs", ray.__version__, ray.cluster_resources().get("CPU", 0))


@contextlib.contextmanager
def naming_why_not(address: str | None) -> Iterator[None]:
    """A Ray that does not start inside this context is one line: where, why and what to do.

    Args:
        address: of the cluster that is joined; None: Ray starts on this machine.

    Raises:
        Failed: whatever `ray.init` raised.
    """
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:300].rstrip(".")
        told = failures.explain(error)
        links = failures.chain(error)
        refused = any(isinstance(link, AuthenticationError) or _REFUSED.search(str(link)) for link in links)
        if address and refused:
            told = f"the cluster at {address} does not take the token of this process; {_TOKEN}, {_AGAIN}"
        if told is None:
            remedy = "wait until the machine is less busy"
            if address:  # a cluster does not answer whoever has another token, and Ray says that it timed out
                remedy = (
                    f"check that the cluster is up; if it is, its token may be another than this process has: {_TOKEN}"
                )
            told = f"{type(error).__name__} on {address or 'this machine'}: {said}; {remedy}, {_AGAIN}"
        raise Failed(f"Ray did not start: {told}") from error


def quiet_processes() -> None:
    """Show of a cluster that this process joins next only what says something to its user (`terminal.says_something`)."""
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # else each print draws finished bars again
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of a local cluster's processes
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    ray_private.quiet_start()
    ray_private.filter_worker_lines(terminal.says_something, bars=sys.stderr.isatty())


def check_reachable(address: str) -> None:
    """Look whether anything listens at the address of a cluster; Ray itself looks for minutes.

    Args:
        address: as in RAY_ADDRESS. One without a port, such as "auto", is left to Ray.

    Raises:
        Failed: nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    deadline = time.monotonic() + _REACH_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline or isinstance(error, OverflowError):
                raise Failed(
                    f"Ray did not start: nothing answers at {address}, the address of the cluster ({error}); start the "
                    "cluster, or unset RAY_ADDRESS to use this machine alone, and run the command again"
                ) from error
        time.sleep(0.5)


@contextlib.contextmanager
def train_knows_its_cluster() -> Iterator[None]:
    """Trainings that begin inside this context tell Ray Train's helper processes which cluster they belong to.

    Without it a helper looks for a cluster on the machine and gives up where it finds two, such as a service beside a
    sweep. Then nothing frees the CPUs of a training whose driver has died, and the next trial waits forever.
    """
    ray_private.pass_to_train_processes(_API_SERVER)
    before = os.environ.get(_API_SERVER)
    os.environ[_API_SERVER] = ray_private.api_server_url(ray.get_runtime_context().gcs_address)
    try:
        yield
    finally:
        del os.environ[_API_SERVER]
        if before is not None:
            os.environ[_API_SERVER] = before


def _object_store_bytes() -> int:
    """Bytes of the object store: a fifth of the memory, at most 4 GB, and at most 80 % of what shared memory has free."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    room = os.statvfs(shm)
    return int(max(min(memory / 5, room.f_bavail * room.f_frsize * 0.8, 4e9), 1e8))


def _quiet_small_clusters() -> None:
    """Read in fewer blocks on a small cluster: Ray Data's default of 200 blocks is overhead on two cores."""
    context = ray.data.DataContext.get_current()
    cpus = int(ray.cluster_resources().get("CPU", 1))
    context.read_op_min_num_blocks = min(context.read_op_min_num_blocks, 2 * cpus)
    context.execution_options.preserve_order = True
