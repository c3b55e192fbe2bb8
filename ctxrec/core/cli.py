"""What every command shares: options, exit codes, logging."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable

from ctxrec.core.config import Config, load_config
from ctxrec.core.errors import Failed, Stopped, UserError

logger = logging.getLogger("ctxrec")


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A command's argument parser with `--config` and `--set`, which every command takes."""
    made = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    made.add_argument("--config", metavar="FILE.toml", help="options; see the README's table")
    made.add_argument(
        "--set",
        dest="overrides",
        metavar="section.key=value",
        action="append",
        default=[],
        help="set one option; may be given many times",
    )
    return made


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The option `--rules`, short for `--set diversity.rules=FILE`."""
    parser.add_argument("--rules", metavar="RULES.toml", help="file of blocks, boosts and pins; path or URI")


def overrides(args: argparse.Namespace) -> list[str]:
    """`--set` options of a command, with those that have a name of their own."""
    return args.overrides + ([f"diversity.rules={json.dumps(args.rules)}"] if args.rules else [])


def config_from(args: argparse.Namespace) -> Config:
    return load_config(args.config, args.overrides)


def run(main: Callable[[], None]) -> None:
    """Call a command's `main` and exit: 0 on success, 2 on a user's mistake (one line), 1 otherwise."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("httpx", "faiss", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (Stopped, Failed) as ended:
        print(ended, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by the user", file=sys.stderr)
        sys.exit(1)
    except Exception:
        logger.exception("failed")
        sys.exit(1)
    sys.exit(0)
