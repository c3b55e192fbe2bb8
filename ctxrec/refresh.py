"""`python -m ctxrec.refresh --models MODELS`: train again on new data, and publish if the gates let it pass."""

from __future__ import annotations

import ray

from ctxrec.core import cli, storage
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.run_paths import BundlePaths, ModelsPaths


def main() -> None:
    """Read the options, refresh, print the outcome and where its card is."""
    parser = cli.parser(
        "ctxrec.refresh",
        "Prepare the data again, train from the served version, compare both on the newest events, and publish the new "
        "version if all gates let it pass. A killed refresh goes on by the same command.",
    )
    add = parser.add_argument
    add("spec", nargs="?", metavar="SPEC.toml", help="the data set (default: that of the served version)")
    add("--models", required=True, help="folder of published models (ctxrec publish); path or URI")
    add("--work", metavar="DIR", help="folder for data, runs and the state (default: MODELS/refresh)")
    add("--without-evidence", action="store_true", help="publish also where the newest requests are too few to tell")
    add("--full", action="store_true", help="train anew instead of on from the served version")
    add("--without-live", action="store_true", help="leave out events and items that were posted (MODELS/live)")
    add("--watch", metavar="URL", default="", help="watch this service afterwards, and roll back if a guard breaks")
    add("--watch-s", type=float, default=600.0, metavar="SECONDS", help="how long (default: 600)")
    add("--canary", type=float, default=0.0, metavar="SHARE", help="give it to a share of the users first, watched too")
    args = parser.parse_args()
    from ctxrec.bundle.registry import read_published, version_folder
    from ctxrec.lifecycle.refresh_loop import Refresh, refresh

    models = storage.absolute(args.models)
    served = BundlePaths(version_folder(models, read_published(models).version))
    asked = Refresh(
        models=models,
        work=storage.absolute(args.work) if args.work else storage.join(models, "refresh"),
        spec=load_spec(args.spec) if args.spec else None,
        config=load_config(args.config, args.overrides, base=served.config),
        without_evidence=args.without_evidence,
        full=args.full,
        live="" if args.without_live else ModelsPaths(models).live,
        watch=args.watch,
        watch_s=args.watch_s,
        canary=args.canary,
    )
    try:
        done = refresh(asked)
    finally:
        ray.shutdown()
    print(f"round {done.number}: {done.outcome}; {models} serves {read_published(models).version}")
    if done.candidate:
        print(f"card: {ModelsPaths(models).decision(done.candidate).removesuffix('.json')}.html")


if __name__ == "__main__":
    cli.run(main)
