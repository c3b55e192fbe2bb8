"""Search for good options: `python -m tune.sweep --data DATA --out SWEEP`."""

from __future__ import annotations

from ctxrec.core import cli
from tune.sweep_options import load_sweep
from tune.sweep_results import say
from tune.sweeping import sweep


def main() -> None:
    """Read the options, run the sweep, print its summary."""
    parser = cli.parser(
        "tune.sweep",
        "Try options, stop bad trials early and train the best. The same command goes on with a sweep that was interrupted.",
    )
    parser.add_argument("--data", required=True, help="the folder that ctxrec prepare wrote")
    parser.add_argument("--out", required=True, metavar="SWEEP", help="the folder of the sweep")
    args = parser.parse_args()
    print(say(sweep(args.data, args.out, load_sweep(args.config, args.overrides))))


if __name__ == "__main__":
    cli.run(main)
