"""The main job from end to end on MovieLens-100K, or a refresh of a served model: `make demo`, `make refresh-demo`."""

from __future__ import annotations

from ctxrec.benchmarks.main_job import run_main_job
from ctxrec.benchmarks.refresh_demo import run_refresh_demo
from ctxrec.core import cli
from ctxrec.core.errors import UserError


def main() -> None:
    """Read the options, then run every step and print what it says."""
    parser = cli.parser(
        "ctxrec.demo",
        "Run the whole path on MovieLens-100K: prepare, serve a quick model, train, evaluate, publish, ask.",
    )
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder for everything (default: demo)")
    parser.add_argument("--source", metavar="PATH", help="folder or zip with MovieLens-100K (default: find one)")
    parser.add_argument("--keep", action="store_true", help="leave the service up")
    parser.add_argument("--port", type=int, default=0, help="port of the service (default: a free one)")
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="instead: refresh a served model of a simulated news service, under requests",
    )
    args = parser.parse_args()
    if args.refresh:
        if args.source:
            raise UserError("--source has no effect with --refresh, whose news are simulated; leave it out")
        run_refresh_demo(args.out, config_path=args.config, overrides=args.overrides, port=args.port, keep=args.keep)
        return
    run_main_job(
        args.out,
        source=args.source,
        config_path=args.config,
        overrides=args.overrides,
        port=args.port,
        keep=args.keep,
    )


if __name__ == "__main__":
    cli.run(main)
