"""All that ctxrec uses of Ray's private modules, written for the version in WRITTEN_FOR.

Another version may rename any of it without notice, so whoever changes Ray's version reads this file first.
Imports lie inside the functions, as some of these modules take seconds to import.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from ctxrec.core import terminal

WRITTEN_FOR = "2.60.0"


def api_server_url(gcs_address: str) -> str:
    """The URL of the dashboard's API server of the cluster whose global control store is at `gcs_address`."""
    from ray.dashboard.utils import ray_address_to_api_server_url

    return ray_address_to_api_server_url(gcs_address)


def num_cpus() -> float:
    """The CPUs that a local cluster would have; limits of a container count."""
    from ray._private.utils import get_num_cpus

    return get_num_cpus()


def quiet_start() -> None:
    """Keep Ray from saying at each start that a local cluster asks for a token, which ctxrec passes on by itself."""
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


# What the core says of a level that is set in the environment, and each second of a cluster with another token, which
# the exception names.
_SAID_OF_IT = (
    "Set ray log level from environment variable",
    "Failed to get cluster ID from GCS server: Unauthenticated",
)


@contextlib.contextmanager
def driver_errors_in_files() -> Iterator[None]:
    """A `ray.init` inside this context keeps errors of Ray's C++ core in this process off the terminal.

    They stay in Ray's log files. The core logs as an error that Ray Data's own pools of actors have arguments in the
    object store; what a user must know is raised in Python. The level is read when this process joins a cluster. The
    processes of a local cluster, which are started just before, keep theirs.
    """
    from ray._private import services

    level = "RAY_BACKEND_LOG_LEVEL"
    if level in os.environ:  # somebody looks for a fault of Ray
        yield
        return
    start = services.start_ray_process

    def start_as_ever(*args: Any, **options: Any) -> Any:
        del os.environ[level]
        try:
            return start(*args, **options)
        finally:
            os.environ[level] = "fatal"

    os.environ[level], services.start_ray_process = "fatal", start_as_ever
    try:
        with terminal.filtered_stderr(lambda line: not any(word in line for word in _SAID_OF_IT)):
            yield
    finally:
        services.start_ray_process = start
        del os.environ[level]


def filter_worker_lines(shown: Callable[[str], bool], *, bars: bool) -> None:
    """Show in this terminal only those lines of Ray's processes for which `shown` is true, from the next `ray.init` on.

    Args:
        shown: says whether a line is shown.
        bars: whether progress bars of other processes are shown.
    """
    from ray._private.ray_logging import WorkerStandardStreamDispatcher
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as streams
    from ray.experimental.tqdm_ray import RAY_TQDM_MAGIC

    quiet = terminal.QuietTracebacks()

    def keep(process: object, line: str) -> bool:
        return bars if RAY_TQDM_MAGIC in line else quiet.shows(process, line) and shown(line)

    def add_handler(name: str, show: Callable[[dict[str, Any]], None]) -> None:
        def filtered(data: dict[str, Any]) -> None:
            process = (data.get("ip"), data.get("pid"), data.get("is_err"))
            if lines := [line for line in data.get("lines", []) if keep(process, line)]:
                show(data | {"lines": lines})

        WorkerStandardStreamDispatcher.add_handler(streams, name, filtered if name == "ray_print_logs" else show)

    streams.add_handler = add_handler
    _filter_errors_of_ray(shown)


def _filter_errors_of_ray(shown: Callable[[str], bool]) -> None:
    """The same for the errors that Ray's own processes tell, which go past the handlers."""
    from ray._private import worker

    write = worker.print_to_stdstream

    def filtered(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if data.get("pid") != "raylet" or any(shown(line) for line in data.get("lines", [])):
            write(data, *args, **options)

    worker.print_to_stdstream = filtered


def pass_to_train_processes(variable: str) -> None:
    """Let Ray Train copy an environment variable of the driver to its controller and its helpers."""
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.add(variable)


def torch_backend(before_start: Callable[[], None]) -> type[Any]:
    """Ray Train's backend for PyTorch, which calls `before_start` on every worker before the process group is made."""
    from ray.train._internal.base_worker_group import BaseWorkerGroup
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class TorchBackend(_TorchBackend):
        def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
            worker_group.execute(before_start)
            super().on_start(worker_group, backend_config)

    return TorchBackend


def quiet_train_reports() -> None:
    """Keep Ray Train from logging a line for every report of a worker."""
    import ray.train

    # Ray names this logger by the file of its module.
    context = os.path.join(os.path.dirname(ray.train.__file__), "v2", "_internal", "execution", "context.py")
    for name in (context, "ray.train.v2._internal.execution.storage"):
        logging.getLogger(name).setLevel(logging.WARNING)


def quiet_data_progress() -> None:
    """Keep Ray Data from logging its plans, and its progress besides our own bars."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def quiet_data_errors() -> None:
    """Keep Ray Data from printing the traceback of an error, which is raised in the driver all the same."""
    for name in (
        "exceptions",
        "_internal.execution.streaming_executor",
        "_internal.execution.streaming_executor_state",
    ):
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)


def cluster_to_join(address: str | None) -> str | None:
    """The address of the cluster that `ray.init(address)` would join; None where it would start one on this machine.

    RAY_ADDRESS counts, and a cluster that `ray start` started on this machine.
    """
    from ray._private import services

    if address is not None and "://" in address:  # of Ray's client
        return address
    return services.canonicalize_bootstrap_address(address)


@contextlib.contextmanager
def of_this_machine_alone() -> Iterator[None]:
    """A Ray that starts inside this context listens at 127.0.0.1 alone, and signals to this command do not reach it.

    Each of its processes has a process group of its own: `timeout`, a terminal and some service managers send a signal to the
    whole group of a command, and what is in flight cannot be finished without Ray. They still end with this process.

    Ray has no option for addresses, those of its metrics and control ports included. It listens at the address of its node, and its metrics at all addresses, unless that is
    127.0.0.1; and it takes 127.0.0.1 where clusters are switched off, as they are on Windows and macOS. Whoever sets
    the variable to 1 keeps Ray's default.
    """
    from ray._private import ray_constants, services

    class InGroup(services.ConsolePopen):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, process_group=0)

    process, services.ConsolePopen = services.ConsolePopen, InGroup
    variable = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    is_set, before = variable in os.environ, ray_constants.ENABLE_RAY_CLUSTER
    if not is_set:
        os.environ[variable], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # for Ray's processes, and for this one
    try:
        yield
    finally:
        services.ConsolePopen = process
        if not is_set:
            del os.environ[variable]  # else a `ray start` of this process would refuse to join a cluster
            ray_constants.ENABLE_RAY_CLUSTER = before


def own_processes_live() -> bool:
    """Whether all processes of the Ray that this process has started live; True where it has joined another's cluster."""
    from ray._private import worker

    node = worker._global_node
    return node is None or not node.dead_processes()


def serve_runs() -> bool:
    """Whether Ray Serve runs in the cluster of this process."""
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False) is not None
