"""Search for good options: `python -m tune.sweep --data DATA --out SWEEP`."""

from __future__ import annotations

from ctxrec.core import cli
from tune.sweep_options import load_sweep
from tune.sweep_results import say
from tune.sweeping import sweep


def main() -> None:
    parser = cli.parser("tune.sweep", "Try options, stop bad trials early, train the best; the same command goes on.")
    parser.add_argument("--data", required=True, help="folder that ctxrec.prepare wrote")
    parser.add_argument("--out", required=True, metavar="SWEEP", help="sweep folder")
    args = parser.parse_args()
    print(say(sweep(args.data, args.out, load_sweep(args.config, args.overrides))))


if __name__ == "__main__":
    cli.run(main)
