"""The command `serve`: Ray's own, with what a service of ctxrec needs when `serve run` starts it.

    serve run serve.app:build_app run=RUN port=8000 dashboard_port=8265
    serve run FILE.yaml

`serve run` of an application of `serve.app` refuses a port that is taken, keeps a Ray that it starts to this machine,
finishes what is in flight when it gets SIGTERM, and ends with one line and status 2 for a mistake. All other commands
and applications are Ray's.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from ctxrec.bundle.registry import find_bundle
from ctxrec.core import cli, ray_private
from ctxrec.core.errors import UserError
from serve import ports
from serve.arguments import AppArgs
from serve.effective import effective_service
from serve.port_guard import CONTROLLER_OPTIONS, set_proxy_environment
from serve.stopping import drain_on_sigterm

OWN, NAME = "serve.app:", "build_app"
PORTS, COMMAND_LINE = ("port", "dashboard_port"), "the command line"
# Lines of `serve run`: it joins the Serve that was started before, and would say that options do not count, which do; and it
# says twice that Ctrl-C came, once as a warning.
_NOT_SAID = ("Connecting to existing Serve app", "Got KeyboardInterrupt, exiting")
HOST, PORT = "127.0.0.1", 8000  # where Ray Serve listens if nothing is said


@dataclass
class Start:
    """What a `serve run` of an application of ctxrec asks for."""

    applications: list[AppArgs]
    rest: tuple[str, ...] = ()  # arguments of the application, as `key=value`
    host: str = HOST
    port: int = PORT
    port_option: str = "port="  # how the user sets the port
    is_port_set: bool = False
    is_file: bool = False
    dashboard_port: int | None = None
    claims: list[Any] = field(default_factory=list)  # open files


def main() -> None:
    """Run the command."""
    from ray.serve.scripts import cli as serve

    command = serve.commands["run"]
    rays: Callable[..., Any] = command.callback

    def run(**given: Any) -> Any:
        start = read(given["config_or_import_path"], given["arguments"])
        if start is None:
            return rays(**given)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for args in start.applications:
            if args.print_effective:
                print(effective_service(args))
                return None
        start_ray(start, given)
        return rays(**{**given, "arguments": start.rest})

    command.callback = run
    command.help += (
        "\n\nFor serve.app:build_app, port=8000 is the port of HTTP and dashboard_port=8265 that of the dashboard of a Ray "
        "that starts with it; serve/README.md has the other arguments."
    )
    if sys.argv[1:2] == ["run"]:
        cli.run(serve)
    sys.exit(serve())


def read(target: str, arguments: tuple[str, ...]) -> Start | None:
    """What the arguments of `serve run` ask for; None where they start another application.

    Args:
        target: a config file, or `module:name`.
        arguments: as `key=value`.

    Raises:
        UserError: the file or an argument is wrong.
    """
    if os.path.isfile(target):
        start = _of_file(target)
        if start is not None and arguments:
            raise UserError(f"{arguments[0]} beside a config file; set it in {target}, and give the file alone")
        return start
    if not _is_own(target):
        return None
    found: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise UserError(
                f"{argument!r} is no argument of the application; expected KEY=VALUE, such as run=runs/latest"
            )
        found[key] = value
    numbers = {name: _port(name, found.pop(name)) for name in PORTS if name in found}
    rest = tuple(f"{key}={value}" for key, value in found.items())
    start = Start([checked(found, COMMAND_LINE)], rest, dashboard_port=numbers.get("dashboard_port"))
    if "port" in numbers:
        start.port, start.is_port_set = numbers["port"], True
    return start


def _is_own(target: str) -> bool:
    """Whether an import path is that of the application of ctxrec.

    Raises:
        UserError: it is nearly so, and leads nowhere.
    """
    if target == OWN + NAME:
        return True
    near = target.startswith(OWN) or target == f"{OWN[:-1]}.{NAME}"
    if not near and difflib.get_close_matches(target, [OWN + NAME], cutoff=0.8):
        near = not _can_be_found(target.partition(":")[0])
    if near:
        raise UserError(f"there is no application {target}; did you mean {OWN}{NAME}?")
    return False


def _can_be_found(module: str) -> bool:
    """Whether a module of this name could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def checked(args: Mapping[str, Any], where: str) -> AppArgs:
    """Arguments of the application.

    Raises:
        UserError: one of them is unknown or wrong; names it and where it stands.
    """
    try:
        return AppArgs.model_validate(args)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        told = f"{name} in {where}: {first['msg'].lower()}"
        if first["type"] == "extra_forbidden":
            names = [*AppArgs.model_fields, *(PORTS if where == COMMAND_LINE else ())]
            told = f"{where} has the unknown argument {name}; expected {', '.join(names)}"
        if first["type"] == "missing":
            example = (
                f"run=runs/latest in {where}" if where == COMMAND_LINE else f"args: {{run: runs/latest}} in {where}"
            )
            told = f"run=RUN is missing; give the run, bundle or folder of published models to serve, as {example}"
        if name in PORTS:
            told += (
                "; a file sets the port as http_options.port, and `ray start --dashboard-port` that of the dashboard"
            )
        raise UserError(told) from None


def start_ray(start: Start, given: Mapping[str, Any]) -> None:
    """Start a Ray of this machine alone, or join the cluster that is named, and take SIGTERM from then on.

    Raises:
        UserError: a port is taken, or belongs to a cluster that runs already.
    """
    import ray
    import ray.serve
    from ray.serve.scripts import parse_runtime_env_args

    from ctxrec.core import ray_cluster

    ray_cluster.quiet_processes()
    logging.getLogger("ray.serve").addFilter(lambda record: not record.getMessage().startswith(_NOT_SAID))
    options: dict[str, Any] = {"namespace": "serve"}
    options["runtime_env"] = parse_runtime_env_args(
        runtime_env=given["runtime_env"], runtime_env_json=given["runtime_env_json"], working_dir=given["working_dir"]
    )
    cluster = ray_private.cluster_to_join(given["address"])
    if cluster is None:
        for args in start.applications:
            find_bundle(args.run)  # before Ray starts, which takes seconds
        ports.check_free(start.host, start.port, option=start.port_option)
        # Two that start at one time both find the port free.
        mine = ports.claim(start.port, f"serve run in process {os.getpid()}")
        if mine is None:
            raise UserError(
                f"port {start.port} belongs to a service that is starting; stop it, or set {start.port_option}"
            )
        start.claims.append(mine)
        if start.dashboard_port is not None:
            ports.check_free(HOST, start.dashboard_port, option="dashboard_port=")
            options["dashboard_port"] = start.dashboard_port
        set_proxy_environment()
        with ray_cluster.naming_why_not(None), ray_private.of_this_machine_alone():
            ray.init(address="local", **options)
    else:
        if start.dashboard_port is not None:
            raise UserError(f"dashboard_port: the cluster at {cluster} has its dashboard already; leave it out")
        ray_cluster.check_reachable(cluster)
        with ray_cluster.naming_why_not(cluster):
            ray.init(address=given["address"], **options)
        if not ray_private.serve_runs():
            ports.check_free(start.host, start.port, option=start.port_option)
        elif start.is_port_set:
            raise UserError(
                f"port: Ray Serve runs already in the cluster at {cluster}, at the port it has; leave it out"
            )
    drain_on_sigterm()
    if not (start.is_file or ray_private.serve_runs()):  # a file has its own options
        http = {"host": start.host, "port": start.port}
        ray.serve.start(proxy_location="EveryNode", http_options=http, controller_options=CONTROLLER_OPTIONS)


def _of_file(path: str) -> Start | None:
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the config file {path} cannot be read: {error}") from None
    applications = (config.get("applications") if isinstance(config, dict) else None) or []
    own = [a for a in applications if isinstance(a, dict) and _is_own(str(a.get("import_path", "")))]
    if not own:
        return None
    http = config.get("http_options") or {}
    start = Start(
        [checked(a.get("args") or {}, path) for a in own], port_option=f"http_options.port in {path}", is_file=True
    )
    start.host = str(http.get("host", HOST))
    start.port = _port(f"http_options.port in {path}", http.get("port", PORT))
    return start


def _port(name: str, value: Any) -> int:
    try:
        port = int(value)
    except (TypeError, ValueError):
        port = 0
    if not 0 < port < 1 << 16:
        raise UserError(f"{name} is {value!r}; expected a number from 1 to 65535")
    return port


if __name__ == "__main__":
    main()
