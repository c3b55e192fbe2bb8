"""The steps from a log to a model as functions: `fit`, and one by one `prepare`, `train`, `evaluate` and `load`."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths, RunPaths
from ctxrec.core.toml import read_toml
from ctxrec.data.prepared import PreparedData
from ctxrec.python_api.argument_names import in_python, says_everything
from ctxrec.python_api.fitted_model import Model, kind_or
from ctxrec.python_api.frames import Kind
from ctxrec.python_api.notebook import Evaluation
from ctxrec.python_api.table_spec import spec_of

_KINDS = ("pandas", "polars", "arrow")


def fit(
    interactions: Any,
    *,
    items: Any = None,
    users: Any = None,
    preset: str = "full",
    out: str | os.PathLike[str] | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    action: str | None = None,
    value: str | None = None,
    time_format: str | None = None,
    decimal: str | None = None,
    timezone: str | None = None,
    context: Sequence[str] | None = None,
    actions: Mapping[str, float] | None = None,
    feedback: Mapping[str, Any] | None = None,
    split: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = True,
) -> Model:
    """Prepare a log and train a model on it, in one call.

    Args:
        interactions: the log, one event a row: a pandas, polars or Arrow table, the path of a file, or a `dataset.toml`.
        items: the catalogue: a table or a path. What its columns are is guessed, as `ctxrec init` does it.
        users: attributes of users: a table or a path.
        preset: "quick" takes seconds and trains no towers; "full" trains everything.
        out: folder of the run; None takes a temporary one, which goes with the model (`Model.save` keeps it).
        user: column of the log with the user; None: `user_id`, or what is guessed.
        item: column of the log with the item; None: `item_id`, or what is guessed.
        time: column of the log with the time, in any form that `prepare` reads (epoch seconds are one); None: `timestamp`,
            or what is guessed.
        action: column of the log with the action; None: `action`, or what is guessed.
        value: column of the log with a rating or a quantity; None: what is guessed.
        time_format: format of times that are texts, in the directives of `strptime`, such as "%d/%m/%Y %H:%M"; None: what is
            guessed, with a warning where the values do not tell the day from the month.
        decimal: decimal sign of numbers that are texts, "," or ".", in all tables; None: what is guessed.
        timezone: IANA name of the zone of the log, such as "Asia/Shanghai": that of times without an offset, and of hour,
            weekday and month; None: UTC.
        context: columns of the log that are known when a recommendation is asked for; None: what is guessed.
        actions: weight of each action as a training target; None: what is guessed.
        feedback: what values mean, by key of [events.feedback] of a `dataset.toml`, such as
            `{"kind": "rating", "positive": 4, "negative": 2}`; None: nothing, every event counts alike.
        split: keys of [split] of a `dataset.toml`, such as `{"strategy": "last"}` or `{"test": 0}`.
        options: options by name, such as `{"train.workers": 2}`; OPTIONS.md lists them.
        verbose: whether to print what the commands print, and what the guess is not sure of. Without it, rows that are
            dropped and what a person must not overlook are warnings.

    Raises:
        UserError: a column is missing, an option is unknown, or the log cannot be used; the same line as of the commands.
    """
    config_of({**(options or {}), "train.preset": preset})  # before anything is read
    kept = None
    if out is None:
        kept = tempfile.TemporaryDirectory(prefix="ctxrec-fit-")
        out = os.path.join(kept.name, "run")
    out = _place(out, "out")
    columns: dict[str, Any] = {"user": user, "item": item, "time": time, "action": action, "value": value}
    columns |= {
        "time_format": time_format,
        "decimal": decimal,
        "timezone": timezone,
        "context": context,
        "actions": actions,
        "feedback": feedback,
        "split": split,
    }
    try:
        data = prepare(
            interactions,
            items=items,
            users=users,
            out=storage.join(out, "data"),
            options=options,
            verbose=verbose,
            **columns,
        )
        model = train(data, out=out, preset=preset, options=options, verbose=verbose)
    except UserError as error:
        if kept is None:
            raise
        with _in_words_of(interactions):
            raise UserError(_without_temporary(str(error), kept.name)) from error
    return Model(model.run, kind_or(interactions, _default_kind()), kept)


def _without_temporary(message: str, folder: str) -> str:
    """A message without the files of a temporary folder, which goes with this process.

    >>> _without_temporary("no time in /tmp/x/run/data/tables/items.parquet; see /tmp/x/run/data/rejects", "/tmp/x")
    'no time in the table items; see a temporary folder (out= keeps it)'
    """
    told = re.sub(rf"{re.escape(folder)}/\S*?tables/(\w+)\.parquet", r"the table \1", message)
    return re.sub(rf"{re.escape(folder)}[\w./-]*[\w/]|{re.escape(folder)}", "a temporary folder (out= keeps it)", told)


def prepare(
    interactions: Any,
    *,
    out: str | os.PathLike[str],
    items: Any = None,
    users: Any = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    action: str | None = None,
    value: str | None = None,
    time_format: str | None = None,
    decimal: str | None = None,
    timezone: str | None = None,
    context: Sequence[str] | None = None,
    actions: Mapping[str, float] | None = None,
    feedback: Mapping[str, Any] | None = None,
    split: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = True,
) -> PreparedData:
    """What `ctxrec prepare` does: validate a log, split it, write one history for each user.

    Args:
        interactions: a `dataset.toml`, or the log as of `fit`.
        out: folder to write, path or URI.
        items: as of `fit`, and so are the arguments below.
        users: see `fit`.
        user: see `fit`.
        item: see `fit`.
        time: see `fit`; epoch seconds are one of its forms.
        action: see `fit`.
        value: see `fit`.
        time_format: see `fit`.
        decimal: see `fit`.
        timezone: see `fit`.
        context: see `fit`.
        actions: see `fit`.
        feedback: see `fit`.
        split: see `fit`.
        options: options by name, such as `{"prepare.buckets": 4}`.
        verbose: whether to print the summary; see `fit`.

    Raises:
        UserError: as of `fit`.
    """
    from ctxrec.ingest.pipeline import prepare as run_prepare
    from ctxrec.ingest.prepare_report import losses, summary

    config, out = config_of(options), _place(out, "out")
    tables = storage.join(out if storage.is_uri(out) else os.path.abspath(out), "tables")
    with _in_words_of(interactions, tables) as spoken:
        spec, unsure = spec_of(
            interactions,
            items,
            users,
            folder=tables,
            columns={"user": user, "item": item, "time": time, "action": action, "value": value},
            time_format=time_format,
            decimal=decimal,
            timezone=timezone,
            context=context,
            actions=actions,
            feedback=feedback,
            split=split,
        )
        data = run_prepare(spec, out, config)
    if verbose:
        print(spoken(summary(data)))
        for text in unsure:
            print(f"  not sure: {text}")
        return data
    # A wrong format gives wrong times without an error.
    doubts = [f"not sure: {text}" for text in unsure if text.startswith("time_format")]
    for text in [*doubts, *map(spoken, losses(data))]:
        warnings.warn(text, stacklevel=_calls_inside())
    return data


@contextlib.contextmanager
def _in_words_of(interactions: Any, tables: str = "") -> Iterator[Callable[[str], str]]:
    """In this context mistakes are told in the words of a caller; gives what does the same for other messages.

    Args:
        interactions: the log as the caller gave it.
        tables: folder where tables in memory are written; "": it is not named.
    """

    def spoken(text: str) -> str:
        if says_everything(interactions):
            return text
        return in_python(re.sub(rf"{re.escape(tables)}/(\w+)\.parquet", r"the table \1", text) if tables else text)

    try:
        yield spoken
    except UserError as error:
        raise UserError(spoken(str(error))) from error


def _calls_inside() -> int:
    """The `stacklevel` of a warning that names the line of the caller, who called `prepare` or `fit`."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame, level = frame.f_back, level + 1
    return level


def train(
    data: PreparedData | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    preset: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = True,
) -> Model:
    """What `ctxrec train` does: train on prepared data, or go on with the training at `out`.

    Args:
        data: what `prepare` gave, or its folder.
        out: folder of the run, path or URI.
        preset: "quick" or "full"; None takes that of the options.
        config: a TOML file of options.
        options: options by name, over those of the file.
        verbose: whether to print one line about the run.

    Raises:
        UserError: there is no prepared data, another training lies at `out`, or an option is wrong.
    """
    from ctxrec.training.driver import describe_run
    from ctxrec.training.driver import train as run_train

    preset_option = {} if preset is None else {"train.preset": preset}
    made = config_of({**(options or {}), **preset_option}, None if config is None else _place(config, "config"))
    folder = data.path if isinstance(data, PreparedData) else _place(data, "data")
    run = run_train(folder, _place(out, "out"), made)
    if verbose:
        print(describe_run(run))
    return Model(run, _default_kind())


def evaluate(run: Model | str | os.PathLike[str], *, split: str = "test") -> Evaluation:
    """What `ctxrec evaluate` does: rank the whole catalogue for every request of a split, next to baselines.

    Args:
        run: a model, or the folder of a run.
        split: "test" or "valid".

    Raises:
        UserError: the run is not finished, or the split has no event.
    """
    return (run if isinstance(run, Model) else load(run)).evaluate(split=split)


def load(run: str | os.PathLike[str], *, kind: str | None = None) -> Model:
    """A finished training.

    Args:
        run: folder of the run, path or URI.
        kind: which tables the model returns: "pandas", "polars" or "arrow"; None takes pandas where it is installed.

    Raises:
        UserError: there is no finished run, or the kind is unknown.
    """
    if kind is not None and kind not in _KINDS:
        raise UserError(f"kind is {kind!r}; expected one of {', '.join(_KINDS)}")
    run = _place(run, "run")
    if not storage.exists(BundlePaths(RunPaths(run).bundle).manifest):
        raise UserError(f"no finished run at {run} (it has no bundle); train one with ctxrec.fit or ctxrec.train")
    made: Kind = _default_kind() if kind is None else kind  # type: ignore[assignment]
    return Model(run, made)


def config_of(options: Mapping[str, Any] | None, file: str | None = None) -> Config:
    """The options of a TOML file with options by name over them.

    Raises:
        UserError: an option is unknown, or has a value of the wrong type or out of range.
    """
    raw = read_toml(file) if file is not None else {}
    for name, value in (options or {}).items():
        section, dot, key = name.partition(".")
        if not dot or not key or not isinstance(raw.setdefault(section, {}), dict):
            raise UserError(f"options has {name!r}; expected section.key, such as train.workers")
        raw[section][key] = list(value) if isinstance(value, tuple) else value
    return Config.from_dict(raw, source="options")


def _place(path: Any, what: str) -> str:
    """A path or URI, which may be a `pathlib.Path`.

    Raises:
        UserError: it is neither; or it is a file where a folder is to be written.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"{what} is a {type(path).__name__}; expected a path or a URI")
    if what == "out" and os.path.isfile(path):
        raise UserError(f"{what}={os.fspath(path)!r} is a file; expected a folder, which need not exist")
    return os.fspath(path)


def _default_kind() -> Kind:
    """Tables of pandas where it is installed, as with Ray Data it is."""
    try:
        import pandas  # noqa: F401
    except ImportError:
        return "arrow"
    return "pandas"
