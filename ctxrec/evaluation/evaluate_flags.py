"""The flags of `ctxrec evaluate`, and what may not be given together."""

from __future__ import annotations

import argparse

from ctxrec.core.errors import UserError

_MAX_DELAY_S = 1e10  # longer than any log


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes besides options."""
    add = parser.add_argument
    add("--run", metavar="RUN", help="run folder of ctxrec train; without one only baselines rank")
    add("--split", choices=("valid", "test"), default="test", help="which events are the targets")
    add(
        "--out",
        metavar="DIR",
        help="where metrics.json and report.html go (default: RUN, and RUN/stream with --stream)",
    )
    add("--data", metavar="DATA", help="the prepared data; with --run, when it was moved after training")
    ablations = "text_only, id_only, no_context, frozen_encoder, sasrec (comma-separated) or all"
    add("--ablations", metavar="NAMES", default="", help=f"{ablations}: trains each once into RUN/ablations")
    add("--oracle", metavar="SIM", help="folder of a simulated log: adds the best possible ranking")
    lists = "compares lists re-ranked by MMR, and with the caps, freshness and rules of the options, each alone and all"
    add("--diversity", metavar="STRENGTHS", default="", help=f"such as 0,0.3,0.7: {lists} together, with plain lists")
    compare = "another run on the same data that ranks beside this one, with paired differences; may be repeated"
    add("--compare", metavar="NAME=RUN", action="append", default=[], help=compare)
    add("--stream", action="store_true", help="ask for every event at its own time, after all that came before it")
    add("--delay", metavar="SECONDS", type=float, default=0.0, help="with --stream: how late events become known")


def check_flags(args: argparse.Namespace) -> None:
    """Check what is given together.

    Raises:
        UserError: it has no meaning; says what is expected.
    """
    if args.run is None and args.data is None:
        raise UserError("neither --run nor --data is given; expected a run to evaluate, or data to rank by baselines")
    for flag in ("ablations", "diversity", "compare"):
        if args.run is None and getattr(args, flag):
            raise UserError(f"--{flag} needs --run: it ranks lists or models beside those of a run")
        if args.stream and getattr(args, flag):
            raise UserError(f"--stream is given with --{flag}; expected it without, as it ranks by one model alone")
    if not 0 <= args.delay <= _MAX_DELAY_S:
        raise UserError(f"--delay is {args.delay:g}; expected seconds from 0 to {_MAX_DELAY_S:g}")
    if args.delay and not args.stream:
        raise UserError(
            "--delay is given without --stream; expected both: it is how late the events of a stream are known"
        )
