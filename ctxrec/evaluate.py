"""`python -m ctxrec.evaluate`: full-ranking evaluation of a run."""

from __future__ import annotations

from ctxrec import cli, storage
from ctxrec.config import load_config


def main() -> None:
    """Read the options, evaluate, print the table."""
    parser = cli.parser("ctxrec.evaluate", "Rank the whole catalogue for every request of a split, next to baselines.")
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder of ctxrec.train; path or URI")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="which events are the targets")
    parser.add_argument("--out", metavar="DIR", help="where metrics.json and report.html go (default: RUN)")
    parser.add_argument("--data", metavar="DATA", help="the prepared data, when it was moved after training")
    args = parser.parse_args()
    from ctxrec.evaluation import evaluate_run  # after the arguments: torch and ray take seconds to import
    from ctxrec.summary import format_table

    out = args.out or args.run
    # A missing run is reported by evaluate_run, in terms of the run and not of one of its files.
    saved = storage.join(args.run, "config.toml")
    config = load_config(args.config, args.overrides, base=saved if storage.exists(saved) else None)
    metrics = evaluate_run(args.run, split=args.split, out=out, config=config, data=args.data)
    print(format_table(metrics))
    print(f"report: {storage.join(out, 'report.html')}")


if __name__ == "__main__":
    cli.run(main)
