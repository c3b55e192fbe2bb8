"""A service whose metrics change with the version: what tests of watching share. A real HTTP server answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ctxrec.lifecycle.guards import WatchParams

FAST = WatchParams(every_s=0.02, take_over_s=0.5, fewest=50)

METRICS = """\
# TYPE ctxrec_requests_total counter
ctxrec_requests_total{{route="/v1/recommend",status="200"}} {ok}
ctxrec_requests_total{{route="/v1/recommend",status="500"}} {errors}
ctxrec_requests_total{{route="/v1/events",status="500"}} 99
ctxrec_requests_total{{route="/v1/events",status="200"}} {posts}
# TYPE ctxrec_request_seconds histogram
{within}
ctxrec_request_seconds_sum{{route="/v1/recommend"}} {seconds}
ctxrec_request_seconds_count{{route="/v1/recommend"}} {calls}
# TYPE ctxrec_call_requests histogram
ctxrec_call_requests_bucket{{le="+Inf"}} {calls}
ctxrec_call_requests_sum {calls}
ctxrec_call_requests_count {calls}
# TYPE ctxrec_fallbacks_total counter
ctxrec_fallbacks_total {fallbacks}
# TYPE ctxrec_events_total counter
ctxrec_events_total {events}
# TYPE ctxrec_model_swaps_total counter
ctxrec_model_swaps_total{{result="refused"}} {refused}
# TYPE ctxrec_list_events counter
{listed}
# TYPE ctxrec_model_info gauge
ctxrec_model_info{{version="{version}"}} 2.0
ctxrec_model_info{{version="gone"}} 0.0
"""


BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def metrics(version: str, counts: dict[str, float], within: dict[float, float], listed: list[str]) -> str:
    """The text of `/metrics`; `within` has the calls that took so many seconds at most."""
    calls = counts["ok"] + counts["errors"]
    of_bounds = {str(bound): count for bound, count in within.items()} | {"+Inf": calls}
    name = 'ctxrec_request_seconds_bucket{route="/v1/recommend",le='
    lines = [f'{name}"{bound}"}} {count}' for bound, count in of_bounds.items()]
    return METRICS.format(version=version, listed="\n".join(listed), within="\n".join(lines), calls=calls, **counts)


class Service:
    """Answers `/metrics`; each look finds 40 more calls, with the figures of the version that `serves` names."""

    def __init__(self, serves: Callable[[], str], figures: dict[str, dict[str, float]]):
        self.serves, self.figures = serves, figures
        self.totals = dict.fromkeys(("ok", "errors", "seconds", "fallbacks", "posts", "events", "refused"), 0.0)
        self.within = dict.fromkeys(BOUNDS_S, 0.0)
        self.listed: dict[tuple[str, str], float] = {}
        self.silent, self.looks = False, 0

    def text(self) -> str:
        version = self.serves()
        self.looks += 1
        self.count(version)
        return self.told(version)

    def count(self, version: str, share: float = 1.0) -> None:
        """Count that share of 40 calls of a version."""
        now = {"ok": 40.0, "errors": 0.0, "seconds": 0.4, "fallbacks": 2.0, "events": 30.0, "refused": 0.0}
        now |= self.figures.get(version, {})
        now.setdefault("posts", now["events"])
        hits = now.pop("hits", 20.0)  # of 30 first events after a list
        for bound in self.within:
            # All calls take as long.
            self.within[bound] += share * (now["ok"] + now["errors"]) * (now["seconds"] / 40.0 <= bound)
        for name, value in now.items():
            self.totals[name] += share * value
        for listed, value in (("yes", hits), ("no", 30.0 - hits)):
            self.listed[version, listed] = self.listed.get((version, listed), 0.0) + share * value

    def told(self, version: str) -> str:
        """The metrics of what was counted."""
        lines = [f'ctxrec_list_events_total{{version="{v}",listed="{y}"}} {n}' for (v, y), n in self.listed.items()]
        return metrics(version, self.totals, self.within, lines)


@contextmanager
def running(service: Service) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = service.text().encode()
            self.send_response(503 if service.silent else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
