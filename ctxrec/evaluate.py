"""`python -m ctxrec.evaluate`: full-ranking evaluation of a run, or of the baselines alone."""

from __future__ import annotations

from typing import Any

from ctxrec.core import cli, storage
from ctxrec.core.config import load_config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths


def main() -> None:
    """Read the options, evaluate, print the table."""
    parser = cli.parser("ctxrec.evaluate", "Rank the whole catalogue for every request of a split, next to baselines.")
    add = parser.add_argument
    add("--run", metavar="RUN", help="run folder of ctxrec.train; without one only baselines rank")
    add("--split", choices=("valid", "test"), default="test", help="which events are the targets")
    add("--out", metavar="DIR", help="where metrics.json and report.html go (default: RUN)")
    add("--data", metavar="DATA", help="the prepared data; with --run, when it was moved after training")
    ablations = "text_only, id_only, no_context, frozen_encoder, sasrec (comma-separated) or all"
    add("--ablations", metavar="NAMES", default="", help=f"{ablations}: trains each once into RUN/ablations")
    add("--oracle", metavar="SIM", help="folder of a simulated log: adds the best possible ranking")
    lists = "compares lists re-ranked by MMR, and with the caps, freshness and rules of the options, each alone and all"
    add("--diversity", metavar="STRENGTHS", default="", help=f"such as 0,0.3,0.7: {lists} together, with plain lists")
    compare = "another run on the same data that ranks beside this one, with paired differences; may be repeated"
    add("--compare", metavar="NAME=RUN", action="append", default=[], help=compare)
    cli.add_rules(parser)
    cli.add_print_effective(parser)
    args = parser.parse_args()
    if args.run is None and args.data is None:
        raise UserError("neither --run nor --data is given; expected a run to evaluate, or data to rank by baselines")
    for flag in ("ablations", "diversity", "compare"):
        if args.run is None and getattr(args, flag):
            raise UserError(f"--{flag} needs --run: it ranks lists or models beside those of a run")
    from ctxrec.evaluation.ablations import parse_names, parse_runs
    from ctxrec.evaluation.diversity_tradeoff import parse_strengths
    from ctxrec.evaluation.evaluation_files import told
    from ctxrec.evaluation.offline import evaluate_data, evaluate_run
    from ctxrec.training.effective_options import effective_config

    # A missing run is reported by evaluate_run, in terms of the run and not of one of its files.
    saved = RunPaths(args.run).config if args.run else ""
    known = saved and storage.exists(saved)
    config = cli.config_of_run(args, saved) if known else load_config(args.config, cli.overrides(args))
    if args.print_effective:
        print(effective_config(config, cli.origins(args, saved if known else None), data=args.data, run=args.run))
        return
    out = args.out or args.run
    common: dict[str, Any] = {"split": args.split, "out": out, "config": config, "oracle": args.oracle}
    if args.run is None:
        metrics = evaluate_data(args.data, **common)
    else:
        common |= {"ablations": parse_names(args.ablations), "compare": parse_runs(args.compare)}
        metrics = evaluate_run(args.run, data=args.data, diversity=parse_strengths(args.diversity), **common)
    print(told(metrics, out))


if __name__ == "__main__":
    cli.run(main)
