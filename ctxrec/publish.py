"""`python -m ctxrec.publish --run RUN --to MODELS`: put a trained model beside the others and serve it.

A service that was started with run=MODELS takes the model over while it serves. `--rollback` goes back to an earlier
version. `--test NAME --share 0.1` gives the model to that share of the users; `--end-test` ends the test.
"""

from __future__ import annotations

from ctxrec.bundle import registry
from ctxrec.core import cli
from ctxrec.core.errors import UserError
from ctxrec.experiments.ab_command import end_test, start_test


def main() -> None:
    """Read the options, publish, roll back or test, and print what is served now."""
    parser = cli.parser("ctxrec.publish", __doc__, reads_options=False)
    parser.add_argument("--run", help="run or bundle to publish; path or URI")
    parser.add_argument("--to", required=True, metavar="MODELS", help="folder of published models; path or URI")
    parser.add_argument(
        "--rollback", nargs="?", const="", metavar="VERSION", help="serve the version before, or VERSION"
    )
    parser.add_argument("--test", metavar="NAME", help="an A/B test, in which --share of the users get the model")
    parser.add_argument("--arm", default="treatment", help="the model's name in the test (default: treatment)")
    parser.add_argument("--share", type=float, help="share of the users, above 0 and below 1")
    parser.add_argument("--version", help="a published version for --test, instead of --run")
    parser.add_argument("--end-test", action="store_true", help="end the test: all users get the served version")
    parser.add_argument("--repair", action="store_true", help="with --run: write a damaged current.json anew")
    args = parser.parse_args()
    if args.repair and (args.run is None or args.test is not None):
        raise UserError("--repair needs --run RUN, the model to serve, and goes without --test")
    if args.end_test:
        if args.test or args.run or args.rollback is not None:
            raise UserError("--end-test goes alone with --to; publish the winner with another call")
        print(end_test(args.to))
    elif args.test is not None:
        if args.rollback is not None:
            raise UserError("--test and --rollback exclude each other; end the test with --end-test first")
        test = {"name": args.test, "arm": args.arm, "share": args.share, "run": args.run, "version": args.version}
        print(start_test(args.to, **test))
    elif (args.run is None) == (args.rollback is None):
        raise UserError("expected one of --run RUN, to publish it, and --rollback, to go back to an earlier version")
    else:
        if args.run is not None:
            now = registry.publish(registry.find_bundle(args.run), args.to, repair=args.repair)
        else:
            now = registry.roll_back(args.to, args.rollback or None)
        print(f"{args.to} serves {now.version}" + (f"; before: {', '.join(now.previous)}" if now.previous else ""))


if __name__ == "__main__":
    cli.run(main)
