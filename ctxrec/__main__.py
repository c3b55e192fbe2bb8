"""`ctxrec COMMAND ...`, which is `python -m ctxrec.COMMAND ...`; `ctxrec --help` lists the commands."""

from __future__ import annotations

import importlib
import sys

from ctxrec.core import cli, commands
from ctxrec.core.version import VERSION


def main() -> None:
    """Run the command that the first argument names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(commands.overview())
    elif name == "--version":
        print(f"ctxrec {VERSION}")
    else:
        command = importlib.import_module(commands.module_of(name))
        sys.argv = [f"{cli.CONSOLE} {name}", *rest]
        command.main()


def console() -> None:
    """The console script `ctxrec`."""
    cli.run(main)


if __name__ == "__main__":
    console()
