"""Seconds from the first bad answer of a published version to the version before being served again, with the default guards.

    python tests/bench/rollback_seconds.py [--run RUN] [--rates 100 10 2] [--faults errors hits ...]

The refresh loop publishes, watches and rolls back as in operation, in a folder of real bundles. The service is a real HTTP
server with the metrics of `tests/watched_services.py`; its calls are counted and not computed. It follows the folder every
two seconds, as replicas do. The seconds in which a replica loads a version come on top. Ten minutes of usual calls come before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from watched_services import Service, running

from ctxrec.bundle import registry
from ctxrec.core import storage
from ctxrec.core.config import load_config
from ctxrec.core.run_paths import RefreshPaths, RunPaths
from ctxrec.lifecycle import rounds
from ctxrec.lifecycle.decision import Decision, write_card
from ctxrec.lifecycle.refresh_loop import Refresh, refresh
from ctxrec.lifecycle.service_look import look
from ctxrec.lifecycle.watch import save_look

CALLS = 40  # that `Service.count` counts at a time
FAULTS = {  # of 40 calls, where the usual ones have 0 errors, 0.4 s, 2 unknown users, 30 events and 20 hits
    "broken": {"ok": 0.0, "errors": 40.0},
    "errors": {"ok": 38.0, "errors": 2.0},
    "seconds": {"seconds": 1.2},
    "fallbacks": {"fallbacks": 10.0},
    "events": {"events": 15.0},
    "hits": {"hits": 10.0},
}
FOLLOWS_S, TICK_S, BEFORE_S, WATCH_S = 2.0, 0.05, 600.0, 600.0


class Replicas(Service):
    """Counts the calls of the version that a models folder names, as they come."""

    def __init__(self, models: str, candidate: str, fault: str, rate: float):
        super().__init__(lambda: self.version, {candidate: FAULTS[fault]})
        self.models, self.candidate, self.rate = models, candidate, rate
        self.version = registry.read_published(models).version
        self.first_bad: float | None = None
        self.back: float | None = None

    def text(self) -> str:
        return self.told(self.version)

    def serve(self, stop: threading.Event) -> None:
        last = followed = time.time()
        while not stop.wait(TICK_S):
            now = time.time()
            self.count(self.version, (now - last) * self.rate / CALLS)
            last = now
            if now - followed >= FOLLOWS_S:
                followed, self.version = now, registry.read_published(self.models).version
                if self.version == self.candidate:
                    self.first_bad = self.first_bad or now + 1 / self.rate
                elif self.first_bad is not None:
                    self.back = self.back or now


def seconds_of(bundle: str, spoilt: str, folder: str, fault: str, rate: float) -> tuple[float | None, str]:
    """Seconds to the version before, None where it did not come back, and the guard that broke."""
    models, work = f"{folder}/models", f"{folder}/work"
    served = registry.publish(bundle, models)
    shutil.copytree(spoilt, RunPaths(RefreshPaths(work).run(1)).bundle)
    candidate = storage.read_json(f"{spoilt}/manifest.json")["model_version"]
    write_card(models, Decision(candidate, served.version, True, "by hand", []), name=candidate, facts={})
    state = {"served": served.version, "served_since": served.since, "started": time.time(), "candidate": candidate}
    rounds.write(work, rounds.Round(number=1, stage="publish", **state))
    replicas, stop = Replicas(models, candidate, fault, rate), threading.Event()
    with running(replicas) as url:
        save_look(RefreshPaths(work).look(1, "begin"), look(url))
        replicas.count(served.version, BEFORE_S * rate / CALLS)
        serving = threading.Thread(target=replicas.serve, args=(stop,))
        serving.start()
        refresh(Refresh(models=models, work=work, spec=None, config=load_config(None, []), watch=url, watch_s=WATCH_S))
        time.sleep(2 * FOLLOWS_S)
        stop.set()
        serving.join()
    guard = storage.read_json(f"{models}/decisions/{candidate}.json").get("guard", "")
    if replicas.back is None or replicas.first_bad is None:
        return None, guard
    return replicas.back - replicas.first_bad, guard


def main() -> None:
    """Read the arguments, publish and watch, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="run or bundle; none: a bundle of random weights")
    parser.add_argument("--rates", type=float, nargs="+", default=[100.0, 10.0, 2.0], help="calls a second")
    parser.add_argument("--faults", choices=list(FAULTS), nargs="+", default=list(FAULTS))
    args = parser.parse_args()
    from refreshes import permute_ids, rewritten
    from serve_bundle import speed_bundle

    made = os.path.join(tempfile.gettempdir(), "ctxrec-speed")
    bundle = registry.find_bundle(args.run) if args.run else speed_bundle(1_000, 32, made)
    with tempfile.TemporaryDirectory() as scratch:
        spoilt = rewritten(bundle, Path(scratch, "spoilt"), permute_ids)
        print("| calls a second | fault | seconds | guard |\n| --- | --- | --- | --- |", flush=True)
        for rate in args.rates:
            for fault in args.faults:
                took, guard = seconds_of(bundle, spoilt, f"{scratch}/{rate:g}-{fault}", fault, rate)
                print(f"| {rate:g} | {fault} | {'never' if took is None else f'{took:.1f}'} | {guard} |", flush=True)


if __name__ == "__main__":
    main()
