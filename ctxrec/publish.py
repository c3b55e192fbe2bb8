"""`python -m ctxrec.publish --run RUN --to MODELS`: put a trained model beside the others and serve it.

A service that was started with run=MODELS takes it over while it serves. `--rollback` goes back. With
`--test NAME --share 0.1` that share of the users gets it, and all others what is served already; `--end-test` ends it.
"""

from __future__ import annotations

import argparse

from ctxrec.bundle import registry
from ctxrec.core import cli
from ctxrec.core.errors import UserError
from ctxrec.experiments import ab_test
from ctxrec.retrieval.retriever import find_bundle


def main() -> None:
    parser = cli.parser("ctxrec.publish", __doc__)
    parser.add_argument("--run", help="run or bundle to publish; path or URI")
    parser.add_argument("--to", required=True, metavar="MODELS", help="folder of published models; path or URI")
    parser.add_argument("--rollback", nargs="?", const="", metavar="VERSION", help="serve the one before, or VERSION")
    parser.add_argument("--test", metavar="NAME", help="an A/B test, in which --share of the users get the model")
    parser.add_argument("--arm", default="treatment", help="its name in the test (default: treatment)")
    parser.add_argument("--share", type=float, help="of the users, above 0 and below 1")
    parser.add_argument("--version", help="a published version for --test, in the place of --run")
    parser.add_argument("--end-test", action="store_true", help="everybody gets what is served again")
    args = parser.parse_args()
    cli.config_from(args)
    if args.test is not None or args.end_test:
        print(_test(args))
        return
    if (args.run is None) == (args.rollback is None):
        raise UserError("expected one of --run RUN, to publish it, and --rollback, to go back to an earlier version")
    if args.run is not None:
        now = registry.publish(find_bundle(args.run), args.to)
    else:
        now = registry.roll_back(args.to, args.rollback or None)
    print(f"{args.to} serves {now.version}" + (f"; before: {', '.join(now.previous)}" if now.previous else ""))


def _test(args: argparse.Namespace) -> str:
    """Start, change or end an A/B test; what to say of it."""
    if args.end_test:
        if args.test or args.run or args.rollback is not None:
            raise UserError("--end-test goes alone with --to; publish the winner with another call")
        return f"the test {ab_test.end(args.to).name} has ended; {args.to} serves {registry.read_published(args.to).version}"
    if args.share is None or args.rollback is not None or (args.run and args.version):
        raise UserError("--test needs --share, and --run RUN or --version VERSION for a new arm; not --rollback")
    bundle = find_bundle(args.run) if args.run else None
    now = ab_test.start(bundle, args.to, name=args.test, arm=args.arm, share=args.share, version=args.version)
    arms = [f"{a.name} {a.version} for {a.share:.1%}" for a in now.arms]
    return (
        f"test {now.name}: {', '.join(arms)}; {ab_test.CONTROL} {registry.read_published(args.to).version} for the rest"
    )


if __name__ == "__main__":
    cli.run(main)
