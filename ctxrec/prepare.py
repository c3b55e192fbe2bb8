"""`python -m ctxrec.prepare SPEC.toml --out DATA`: validate a data set, split it, and write per-user histories."""

from __future__ import annotations

import ray

from ctxrec.core import cli
from ctxrec.core.dataset_spec import load_spec
from ctxrec.ingest.pipeline import prepare
from ctxrec.ingest.prepare_report import summary


def main() -> None:
    """Read the options, prepare, print a summary."""
    parser = cli.parser("ctxrec.prepare", "Validate a behaviour log, split it, and write it as per-user histories.")
    parser.add_argument("spec", metavar="SPEC.toml", help="the data set: which files, which column means what")
    parser.add_argument(
        "--out", required=True, metavar="DATA", help="folder or URI to write; what is there is replaced when it differs"
    )
    args = parser.parse_args()
    config = cli.config_from(args)
    try:
        data = prepare(load_spec(args.spec), args.out, config)
    finally:
        ray.shutdown()
    print(summary(data))


if __name__ == "__main__":
    cli.run(main)
