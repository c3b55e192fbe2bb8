"""`python -m ctxrec.datasets NAME --out DIR`: write a public data set's tables and its dataset.toml."""

from __future__ import annotations

import argparse
import os

from ctxrec import cli
from ctxrec.datasets import DATASETS, source_name
from ctxrec.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ctxrec.datasets", description="Write a public data set's tables and its dataset.toml."
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--out", required=True, metavar="DIR", help="local folder to write")
    parser.add_argument("--source", metavar="PATH", help="file, folder or zip that holds the data set's own files")
    args = parser.parse_args()
    if args.name not in DATASETS:
        raise UserError(f"data set {args.name!r} is unknown; expected one of {', '.join(DATASETS)}")
    written = DATASETS[args.name](args.out, args.source)
    state = "written" if written else "reused: nothing changed"
    print(f"{args.name}: {state}; source: {source_name(args.out)}; spec: {os.path.join(args.out, 'dataset.toml')}")


if __name__ == "__main__":
    cli.run(main)
