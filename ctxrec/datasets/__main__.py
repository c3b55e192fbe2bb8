"""`python -m ctxrec.datasets NAME --out DIR`: write a public data set, or a simulated one, with its dataset.toml."""

from __future__ import annotations

import argparse
import dataclasses
import os

from ctxrec.core import cli
from ctxrec.core.errors import UserError
from ctxrec.datasets import (
    DATASETS,
    SIMULATE,
    SIMULATE_NEWS,
    SIMULATE_SHOP,
    source_name,
    write_news,
    write_shop,
    write_simulated,
)
from ctxrec.datasets.moving_log import MovingPlan
from ctxrec.datasets.news import NewsPlan
from ctxrec.datasets.shop import ShopPlan
from ctxrec.datasets.simulation import Simulation


def main() -> None:
    names = f"{', '.join(DATASETS)}, {SIMULATE}, {SIMULATE_NEWS}, or {SIMULATE_SHOP}"
    parser = argparse.ArgumentParser(
        prog=cli.called_as("ctxrec.datasets"),
        description="Write a public data set's tables and its dataset.toml.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {names}")
    parser.add_argument("--out", required=True, metavar="DIR", help="local folder to write")
    parser.add_argument("--source", metavar="PATH", help="file, folder or zip that holds the data set's own files")
    about = "a log whose true preferences are known; the last two take users, items, events and seed alone"
    simulated = parser.add_argument_group(f"{SIMULATE}, {SIMULATE_NEWS}, {SIMULATE_SHOP}", about)
    fields = {field.name: field for field in dataclasses.fields(Simulation)}
    for name, metavar, what in (
        ("users", "N", "users"),
        ("items", "M", "items"),
        ("events", "E", "events"),
        ("context", "STRENGTH", "how much the context decides, from 0 to 1"),
        ("cold", "SHARE", "share of items that appear only after the temporal cut"),
        ("searches", "SHARE", "share of visits that begin with a search, a text in the context"),
        ("seed", "S", "seed"),
    ):
        default = fields[name].default
        simulated.add_argument(f"--{name}", type=type(default), metavar=metavar, help=f"{what} (default: {default})")
    what = "items have long descriptions, which alone tell what users like; a third of them come late; no context"
    simulated.add_argument("--descriptions", action="store_const", const=True, help=what)
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    if args.name == SIMULATE:
        if args.source is not None:
            raise UserError("--source is given; expected none: a simulated log comes from no file")
        written = write_simulated(args.out, Simulation(**given))
    elif args.name in (SIMULATE_NEWS, SIMULATE_SHOP):
        others = set(given) - {field.name for field in dataclasses.fields(MovingPlan)}
        if args.source is not None or others:
            wrong = "source" if args.source is not None else min(others)
            raise UserError(f"--{wrong} is given; expected none with {args.name}")
        is_news = args.name == SIMULATE_NEWS
        written = write_news(args.out, NewsPlan(**given)) if is_news else write_shop(args.out, ShopPlan(**given))
    elif args.name not in DATASETS:
        raise UserError(f"data set {args.name!r} is unknown; expected one of {names}")
    elif given:
        raise UserError(f"--{next(iter(given))} is given; expected it with a simulated log alone")
    else:
        written = DATASETS[args.name](args.out, args.source)
    state = "written" if written else "reused: nothing changed"
    print(f"{args.name}: {state}; source: {source_name(args.out)}; spec: {os.path.join(args.out, 'dataset.toml')}")


if __name__ == "__main__":
    cli.run(main)
