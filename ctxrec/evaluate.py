"""`python -m ctxrec.evaluate`: full-ranking evaluation of a run, or of the baselines alone."""

from __future__ import annotations

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
    if args.run is None and args.ablations:
        raise UserError("--ablations needs --run: ablations are trainings of a run with one option changed")
    if args.run is None and args.diversity:
        raise UserError("--diversity needs --run: it re-ranks the lists of a model")
    if args.run is None and args.compare:
        raise UserError("--compare needs --run: another run is compared with it")
    from ctxrec.evaluation.ablations import parse_names, parse_runs
    from ctxrec.evaluation.comparison_table import format_table
    from ctxrec.evaluation.diversity_tradeoff import format_tradeoff, parse_strengths
    from ctxrec.evaluation.offline import evaluate_data, evaluate_run
    from ctxrec.training.effective_options import effective_config

    # A missing run is reported by evaluate_run, in terms of the run and not of one of its files.
    saved = RunPaths(args.run).config if args.run else ""
    known = saved and storage.exists(saved)
    config = cli.config_of_run(args, saved) if known else load_config(args.config, cli.overrides(args))
    if args.print_effective:
        print(effective_config(config, cli.origins(args, saved if known else None), data=args.data, run=args.run))
        return
    common = {"split": args.split, "out": args.out or args.run, "config": config, "oracle": args.oracle}
    if args.run is None:
        metrics = evaluate_data(args.data, **common)
    else:
        ablated, strengths = parse_names(args.ablations), parse_strengths(args.diversity)
        others = parse_runs(args.compare)
        metrics = evaluate_run(
            args.run, data=args.data, ablations=ablated, diversity=strengths, compare=others, **common
        )
    print(format_table(metrics))
    if "diversity" in metrics:
        print(format_tradeoff(metrics["diversity"]))
    if common["out"] is not None:
        print(f"report: {storage.join(common['out'], 'report.html')}")


if __name__ == "__main__":
    cli.run(main)
