"""Ray Serve's proxy has the guard of its port from `controller_options` alone, as `serve/config.yaml` and KubeRay set it."""

from __future__ import annotations

import subprocess
import sys

from trainings import command_env, free_ports

from serve.port_guard import PROXY_ENVIRONMENT

# Starts Serve without an application, and sends its proxy a head that does not end; prints how many bytes it took.
SCRIPT = """
import contextlib, socket, sys
import ray, ray.serve
from serve.port_guard import CONTROLLER_OPTIONS

port, sent = int(sys.argv[1]), 0
ray.init(address="local", include_dashboard=False, num_cpus=2)
ray.serve.start(http_options={"host": "127.0.0.1", "port": port}, controller_options=CONTROLLER_OPTIONS)
with socket.create_connection(("127.0.0.1", port)) as client, contextlib.suppress(ConnectionError):
    client.sendall(b"GET / HTTP/1.1\\r\\nX: ")
    while sent < 64 << 20:
        client.sendall(b"a" * 65536)
        sent += 65536
print("bytes sent:", sent, flush=True)
ray.serve.shutdown()
ray.shutdown()
"""


def test_the_proxy_is_guarded_by_the_options_of_its_controller():
    leave_out = {"RAY_ADDRESS", *PROXY_ENVIRONMENT}
    env = {name: value for name, value in command_env().items() if name not in leave_out}
    command = [sys.executable, "-c", SCRIPT, str(free_ports(1)[0])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("bytes sent:")] or [done.stderr[-2000:]]
    assert int(line.rpartition(" ")[2]) < 32 << 20, "the proxy read all of it"
