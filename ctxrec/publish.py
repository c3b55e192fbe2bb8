"""`python -m ctxrec.publish --run RUN --to MODELS`: put a trained model beside the others and serve it.

A service that was started with run=MODELS takes it over while it serves. `--rollback` goes back.
"""

from __future__ import annotations

from ctxrec import cli, published
from ctxrec.errors import UserError
from ctxrec.retrieval import find_bundle


def main() -> None:
    parser = cli.parser("ctxrec.publish", __doc__)
    parser.add_argument("--run", help="run or bundle to publish; path or URI")
    parser.add_argument("--to", required=True, metavar="MODELS", help="folder of published models; path or URI")
    parser.add_argument("--rollback", nargs="?", const="", metavar="VERSION", help="serve the one before, or VERSION")
    args = parser.parse_args()
    cli.config_from(args)
    if (args.run is None) == (args.rollback is None):
        raise UserError("expected one of --run RUN, to publish it, and --rollback, to go back to an earlier version")
    if args.run is not None:
        now = published.publish(find_bundle(args.run), args.to)
    else:
        now = published.roll_back(args.to, args.rollback or None)
    print(f"{args.to} serves {now.version}" + (f"; before: {', '.join(now.previous)}" if now.previous else ""))


if __name__ == "__main__":
    cli.run(main)
