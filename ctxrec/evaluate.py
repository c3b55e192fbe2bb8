"""`python -m ctxrec.evaluate`: full-ranking evaluation of a run, or of the baselines alone."""

from __future__ import annotations

from typing import Any

from ctxrec.core import cli, storage
from ctxrec.core.config import load_config
from ctxrec.core.run_paths import RunPaths
from ctxrec.evaluation.evaluate_flags import add_flags, check_flags


def main() -> None:
    """Read the options, evaluate, print the table."""
    parser = cli.parser("ctxrec.evaluate", "Rank the whole catalogue for every request of a split, next to baselines.")
    add_flags(parser)
    cli.add_rules(parser)
    cli.add_print_effective(parser)
    args = parser.parse_args()
    check_flags(args)
    from ctxrec.evaluation.ablations import parse_names, parse_runs
    from ctxrec.evaluation.diversity_tradeoff import parse_strengths
    from ctxrec.evaluation.evaluation_files import told
    from ctxrec.evaluation.offline import evaluate_data, evaluate_run
    from ctxrec.evaluation.stream_files import evaluate_stream
    from ctxrec.training.effective_options import effective_config

    # A missing run is reported by evaluate_run, in terms of the run and not of one of its files.
    saved = RunPaths(args.run).config if args.run else ""
    known = saved and storage.exists(saved)
    config = cli.config_of_run(args, saved) if known else load_config(args.config, cli.overrides(args))
    if args.print_effective:
        print(effective_config(config, cli.origins(args, saved if known else None), data=args.data, run=args.run))
        return
    out = args.out or (args.run and (RunPaths(args.run).stream if args.stream else args.run))
    common: dict[str, Any] = {"split": args.split, "out": out, "config": config, "oracle": args.oracle}
    if args.stream:
        metrics = evaluate_stream(args.run, data=args.data, delay_s=args.delay, **common)
    elif args.run is None:
        metrics = evaluate_data(args.data, **common)
    else:
        common |= {"ablations": parse_names(args.ablations), "compare": parse_runs(args.compare)}
        metrics = evaluate_run(args.run, data=args.data, diversity=parse_strengths(args.diversity), **common)
    print(told(metrics, out))


if __name__ == "__main__":
    cli.run(main)
