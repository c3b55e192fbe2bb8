"""Load from outside: `wrk` where it is installed, else this file as a client process of its own.

    python tests/bench/serve_load.py PORT BODIES CONNECTIONS SECONDS

The client sends the bodies of a file, one JSON object a line, to `POST /v1/recommend` of a service on this machine. Each
connection asks one request after the other. It prints what it found as JSON, with the times of a request in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

_WARM_UP_S = 2
_SCRIPT = """
local bodies, n = {}, 0
for line in io.lines("%s") do bodies[#bodies + 1] = line end
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  n = n %% #bodies + 1
  return wrk.format(nil, "/v1/recommend", nil, bodies[n])
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %%d %%d %%.1f %%.1f %%d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What a load test found; times of a request in milliseconds."""

    p50_ms: float
    p99_ms: float
    per_s: float
    failed: int


def measure(port: int, bodies: list[bytes], concurrency: int, seconds: float) -> Load:
    """`concurrency` connections, each asking one request after the other, after a short warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bodies")
        with open(path, "wb") as stream:
            stream.write(b"\n".join(bodies))
        run = _wrk if shutil.which("wrk") else _python
        run(port, path, concurrency, _WARM_UP_S)
        return run(port, path, concurrency, seconds)


def _wrk(port: int, path: str, concurrency: int, seconds: float) -> Load:
    script = path + ".lua"
    with open(script, "w", encoding="utf-8") as stream:
        stream.write(_SCRIPT % path)
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{round(seconds)}s", "--timeout", "30s", "-s", script]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    num, micros, p50, p99, failed = map(float, re.search(r"RESULT (.*)", done.stdout)[1].split())
    return Load(p50 / 1000, p99 / 1000, num / micros * 1e6, int(failed))


def _python(port: int, path: str, concurrency: int, seconds: float) -> Load:
    command = [sys.executable, __file__, str(port), path, str(concurrency), str(seconds)]
    return Load(**json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


async def _ask(port: int, bodies: list[bytes], concurrency: int, seconds: float) -> Load:
    """Plain sockets, as a client library would take more of the shared cores than the service."""
    took, failed, place = [], 0, 0
    start = time.perf_counter()

    async def connection() -> None:
        nonlocal failed, place
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < start + seconds:
            body, place = bodies[place % len(bodies)], place + 1
            head = f"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines if line)
            await reader.readexactly(int(fields["content-length"]))
            failed += " 200 " not in status
            took.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(concurrency)))
    took.sort()
    p50, p99 = (1000 * took[min(len(took) - 1, int(share * len(took)))] for share in (0.5, 0.99))
    return Load(p50, p99, len(took) / (time.perf_counter() - start), failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int, help="where the service listens on 127.0.0.1")
    parser.add_argument("bodies", help="file of request bodies, one JSON object a line")
    parser.add_argument("connections", type=int, help="how many ask at the same time")
    parser.add_argument("seconds", type=float, help="how long they ask")
    args = parser.parse_args()
    with open(args.bodies, "rb") as file:
        bodies = file.read().splitlines()
    print(json.dumps(vars(asyncio.run(_ask(args.port, bodies, args.connections, args.seconds)))))


if __name__ == "__main__":
    main()
