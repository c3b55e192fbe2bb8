"""What every command shares: `--config` and `--set`, exit codes, logging."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import select
import sys
from collections.abc import Callable, Collection
from typing import Any

from ctxrec.core import failures, terminal
from ctxrec.core.config import Config, load_config
from ctxrec.core.errors import Failed, Stopped, UserError
from ctxrec.core.option_origins import option_origins

logger = logging.getLogger("ctxrec")

CONSOLE = "ctxrec"  # name of the console script
LOG_LEVEL = "CTXREC_LOG_LEVEL"  # environment variable: DEBUG shows the traceback of a failure that is told in one line


def called_as(module: str) -> str:
    """How the user called a command, for its help: as `ctxrec train` or as `python -m ctxrec.train`."""
    return sys.argv[0] if sys.argv[0].startswith(f"{CONSOLE} ") else f"python -m {module}"


def parser(prog: str, description: str, *, reads_options: bool = True) -> argparse.ArgumentParser:
    """A command's argument parser with `--config` and `--set`.

    Args:
        prog: module of the command, such as "ctxrec.train".
        description: what `--help` says that the command does.
        reads_options: whether the command reads any option of `ctxrec.core.config`. If not, giving `--config` or
            `--set` is a `UserError` while the arguments are parsed.
    """
    made = argparse.ArgumentParser(prog=called_as(prog), description=description, allow_abbrev=False)
    if not reads_options:
        for flag in ("--config", "--set"):
            made.add_argument(flag, action=_RefusedFlag, help=argparse.SUPPRESS)
        return made
    made.add_argument("--config", metavar="FILE.toml", help="file of options; OPTIONS.md lists them")
    made.add_argument(
        "--set",
        dest="overrides",
        metavar="section.key=value",
        action="append",
        default=[],
        help="set one option; may be given many times",
    )
    return made


class _RefusedFlag(argparse.Action):
    """A flag of other commands that this command would ignore, and therefore refuses."""

    def __call__(self, parser: argparse.ArgumentParser, _namespace: Any, value: Any, flag: str | None = None) -> None:
        raise UserError(f"{flag} {value} has no effect: {parser.prog} reads no options of the model; leave {flag} out")


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--rules FILE`, which is short for `--set diversity.rules=FILE`."""
    parser.add_argument("--rules", metavar="RULES.toml", help="file of blocks, boosts and pins; path or URI")


def add_print_effective(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--print-effective`, with which a command prints its options and ends."""
    what = "print all options as they would be used, with where each value comes from, and do nothing else"
    parser.add_argument("--print-effective", action="store_true", help=what)


def origins(args: argparse.Namespace, saved: str | None = None) -> dict[str, str]:
    """Where the options of a command line come from, by "section.key".

    Args:
        args: of the command.
        saved: `config.toml` of the run that the command uses, if it uses one.
    """
    return option_origins(args.config, overrides(args), base=saved)


def overrides(args: argparse.Namespace) -> list[str]:
    """The `--set` overrides of a command, together with those of flags such as `--rules`."""
    rules = getattr(args, "rules", None)
    also = getattr(args, "also", None)
    made = [f"diversity.rules={json.dumps(rules)}"] * bool(rules) + [f"train.also={json.dumps(also)}"] * bool(also)
    return args.overrides + made


def config_from(args: argparse.Namespace) -> Config:
    """The options of a command line: the defaults, then `--config`, then `--set`.

    Raises:
        UserError: an option is unknown or has a bad value.
    """
    return load_config(args.config, overrides(args))


def config_of_run(args: argparse.Namespace, saved: str, *, free: Collection[str] = ()) -> Config:
    """The options of a finished run, then `--config`, then `--set`.

    Args:
        args: of a command that uses the run and does not train it.
        saved: `config.toml` of the run or its bundle, path or URI.
        free: options, as `section.key`, that the command heeds itself.

    Raises:
        UserError: an option is unknown or has a bad value, or an option of [prepare], [encoder], [model] or [train] has
            another value than in the run, where only another training could heed it.
    """
    config = load_config(args.config, overrides(args), base=saved)
    if args.config or args.overrides:
        trained = load_config(base=saved)
        for section in ("prepare", "encoder", "model", "train"):
            _check_unchanged(section, getattr(config, section), getattr(trained, section), free)
    return config


# Options of [encoder] that say where the encoder lies and how fast it runs here, and not what was trained.
_OF_A_MACHINE = ("name", "image", "audio", "token_budget", "cache_gb")


def _check_unchanged(section: str, given: Any, trained: Any, free: Collection[str]) -> None:
    for field in dataclasses.fields(given):
        wanted, kept = getattr(given, field.name), getattr(trained, field.name)
        if isinstance(wanted, str) and os.path.isdir(wanted):
            wanted = os.path.abspath(wanted)  # as a run saves the folder of a pretrained model
        left_to_the_log = (section, field.name) == ("train", "tower_epochs") and wanted == 0  # a run saves the number
        of_this_machine = section == "encoder" and field.name in _OF_A_MACHINE
        if wanted != kept and not (left_to_the_log or of_this_machine or f"{section}.{field.name}" in free):
            raise UserError(
                f"{section}.{field.name} is {wanted!r}, but the run was trained with {kept!r}, which stays; "
                "leave the option out, or train another run with it"
            )


def run(main: Callable[[], None]) -> None:
    """Call a command's `main` and exit with 0 on success, 2 on a user's mistake (one line on stderr), 1 otherwise."""
    terminal.usable_streams()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    terminal.quiet_libraries()
    if os.environ.get(LOG_LEVEL, "").upper() == "DEBUG":
        logger.setLevel(logging.DEBUG)
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (Stopped, Failed) as ended:
        logger.debug("ended", exc_info=True)
        print(ended, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by the user", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            sys.exit(1)
        if (told := failures.explain(error)) is None:
            logger.exception("failed")
        else:
            logger.debug("failed", exc_info=True)
            print(f"error: {told} ({LOG_LEVEL}=DEBUG shows where it happened)", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _reader_has_gone() -> bool:
    """Whether nobody reads standard output any more, as after `| head`; then what is left is not written."""
    output = sys.stdout.fileno()
    watch = select.poll()
    watch.register(output)
    gone = any(event & select.POLLERR for _, event in watch.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone
