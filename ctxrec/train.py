"""`python -m ctxrec.train --data DATA --out RUN`: fine-tune a recommender."""

from __future__ import annotations

from ctxrec.core import cli
from ctxrec.training.driver import describe_run, train
from ctxrec.training.effective_options import effective_config


def main() -> None:
    """Read the options, train, print two lines about the run."""
    parser = cli.parser("ctxrec.train", "Train the towers and fine-tune the encoder. An unfinished run is resumed.")
    parser.add_argument("--data", required=True, help="folder that ctxrec prepare wrote")
    parser.add_argument("--out", required=True, metavar="RUN", help="run folder")
    parser.add_argument("--profile", action="store_true", help="trace some steps of each phase into RUN/profile")
    parser.add_argument(
        "--also", metavar="DATA", action="append", help="prepared log from which the encoder learns too"
    )
    cli.add_print_effective(parser)
    args = parser.parse_args()
    config = cli.config_from(args)
    if args.print_effective:
        print(effective_config(config, cli.origins(args), data=args.data))
    else:
        print(describe_run(train(args.data, args.out, config, profile=args.profile)))


if __name__ == "__main__":
    cli.run(main)
