"""The commands of ctxrec in the order of use: what `ctxrec --help` lists, and which module a name means."""

from __future__ import annotations

import difflib

from ctxrec.core.errors import UserError

# Each is `ctxrec NAME`, which is `python -m ctxrec.NAME`.
COMMANDS: dict[str, str] = {
    "init": "look at the files of a log, and write a commented dataset.toml",
    "datasets": "write a public data set, or a simulated one, with its dataset.toml",
    "prepare": "validate a log, split it, and write one history for each user",
    "train": "train on prepared data; an unfinished training is resumed",
    "evaluate": "rank the whole catalogue for each request of a split, next to baselines",
    "recommend": "score a file of requests",
    "rerank": "train the optional second stage, a cross-encoder",
    "publish": "publish a run for a running service, or roll back to an earlier one",
    "refresh": "train again on new data, and publish the result if it passes the gates",
    "ab": "compare the arms of an A/B test",
    "plan": "estimate memory, time and storage of a training before machines are bought",
    "benchmark": "train and evaluate on all data sets of a suite",
    "demo": "run all steps on MovieLens-100K, and serve the result",
}
_ELSEWHERE = {
    "serve": "serve run serve.app:build_app run=RUN",
    "sweep": "python -m tune.sweep --data DATA --out SWEEP",
}


def overview() -> str:
    """What `ctxrec --help` prints: one line a command, in the order of use."""
    width = max(map(len, COMMANDS))
    lines = ["usage: ctxrec COMMAND ...", "", "A context-aware recommender from the log of what users did.", ""]
    lines += [f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items()]
    lines += ["", "The service starts with:        " + _ELSEWHERE["serve"]]
    lines += ["The search for options is:      " + _ELSEWHERE["sweep"]]
    lines += ["All about one command:          ctxrec COMMAND --help"]
    return "\n".join(lines)


def module_of(name: str) -> str:
    """The module that a command runs.

    Raises:
        UserError: there is no such command; names the nearest ones.

    >>> module_of("train"), module_of("datasets")
    ('ctxrec.train', 'ctxrec.datasets.__main__')
    """
    if name in COMMANDS:
        return "ctxrec.datasets.__main__" if name == "datasets" else f"ctxrec.{name}"
    if name in _ELSEWHERE:
        raise UserError(f"{name} is no command of ctxrec; run: {_ELSEWHERE[name]}")
    if name.startswith("-"):
        raise UserError(f"{name} stands before the command; expected ctxrec COMMAND ..., such as ctxrec train --help")
    if near := difflib.get_close_matches(name, COMMANDS, n=3):
        raise UserError(f"{name!r} is no command of ctxrec; did you mean {' or '.join(near)}? ctxrec --help lists all")
    raise UserError(f"{name!r} is no command of ctxrec; expected one of {', '.join(COMMANDS)}")
