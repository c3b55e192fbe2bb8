"""A benchmark suite: its data sets, options and seeds (`SUITE.toml` of `ctxrec.benchmark`)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from ctxrec.core import storage
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import DatasetSpec, load_spec
from ctxrec.core.errors import UserError
from ctxrec.core.toml import build_dataclass, parse_value, read_toml, toml_value
from ctxrec.datasets import DATASETS
from ctxrec.datasets.simulation import Simulation
from ctxrec.evaluation.ablations import parse_names

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One data set of a suite, from exactly one of `name`, `spec` and `simulate`.

    Attributes:
        label: name of its row in the table and of its folder; by default the name of the data set.
        name: a data set of `ctxrec.datasets`.
        spec: an existing dataset.toml; a relative path starts at the suite's folder.
        simulate: parameters of a simulated log.
        source: the files of the data set; a relative path starts at --sources, or at the suite's folder without it.
        spec_overrides: `section.key=value` for the dataset spec, such as "split.repeats=true".
        overrides: `section.key=value` for the options, applied after those of the suite.
    """

    label: str = ""
    name: str = ""
    spec: str = ""
    simulate: Simulation | None = None
    source: str = ""
    spec_overrides: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [what for what in (self.name, self.spec, self.simulate) if what]
        if len(given) != 1:
            raise UserError(f"dataset {self.title!r} has {len(given)} of name, spec and simulate; expected exactly one")
        if self.name and self.name not in DATASETS:
            raise UserError(f"data set {self.name!r} is unknown; expected one of {', '.join(DATASETS)}")
        if not _LABEL.fullmatch(self.title):
            raise UserError(
                f"dataset label {self.title!r} is no plain name; expected a label of letters, digits, '.', '_', '-'"
            )

    @property
    def title(self) -> str:
        ready = os.path.basename(os.path.dirname(self.spec)) if self.spec else ""
        return self.label or self.name or ready or ("simulated" if self.simulate else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A whole SUITE.toml.

    Attributes:
        seeds: one training for each.
        ablations: names as in `ctxrec.evaluate --ablations`.
        ablation_seeds: seeds whose runs are compared with ablations; empty: all seeds.
        overrides: `section.key=value` for the options of every data set.
        dataset: the data sets.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    ablations: tuple[str, ...] = ()
    ablation_seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    dataset: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        for name in ("seeds", "ablation_seeds"):
            found = getattr(self, name)
            if len(set(found)) < len(found) or min(found, default=0) < 0:
                raise UserError(f"{name} is {list(found)}; expected different whole numbers from 0")
        if not self.seeds or not set(self.ablation_seeds) <= set(self.seeds):
            raise UserError(f"seeds is {list(self.seeds)}; expected at least one, and every one of ablation_seeds")
        parse_names(",".join(self.ablations))
        labels = [entry.title for entry in self.dataset]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if not labels or twice:
            found = f"{', '.join(twice)} more than once" if twice else "no [[dataset]]"
            raise UserError(f"the suite has {found}; expected at least one data set, each with a label of its own")
        for entry in self.dataset:
            load_config(None, (*self.overrides, *entry.overrides))  # a wrong option fails here, not after hours

    def ablations_of(self, seed: int) -> tuple[str, ...]:
        return self.ablations if seed in (self.ablation_seeds or self.seeds) else ()


def load_suite(path: str) -> Suite:
    """Read a suite; its relative spec paths become absolute.

    Raises:
        UserError: the file is missing, is not TOML, or has an unknown key or a wrong value.
    """
    raw = read_toml(path)
    for entry in raw.get("dataset", ()):
        if isinstance(entry, dict) and isinstance(entry.get("spec"), str):
            entry["spec"] = storage.join(storage.parent(path), entry["spec"])
    return build_dataclass(Suite, raw, source=path)


def find_source(entry: Entry, sources: str | None, suite_folder: str) -> str | None:
    """Folder of a named data set's files: the suite's `source`, else the folder of its name in `sources`, else None."""
    if entry.source:
        return os.path.join(sources or suite_folder, entry.source)
    here = os.path.join(sources, entry.name) if sources and entry.name else None
    return here if here and os.path.exists(here) else None


def overridden_spec(path: str, overrides: tuple[str, ...]) -> DatasetSpec:
    """A dataset spec with `section.key=value` overrides; its paths are absolute.

    Raises:
        UserError: an override has no section, or names an unknown key.
    """
    raw = load_spec(path).to_dict()
    for override in overrides:
        key, separator, text = override.partition("=")
        *sections, last = key.strip().split(".")
        table: Any = raw
        for section in sections:
            table = table.get(section) if isinstance(table, dict) else None
        if not separator or not isinstance(table, dict):
            raise UserError(f"spec override {override!r} names no section of {path}; expected section.key=value")
        table[last] = parse_value(text.strip())
    return DatasetSpec.from_dict(_without_none(raw), source=path)


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in table.items() if v is not None}


def spec_toml(spec: DatasetSpec) -> str:
    """A dataset spec as `load_spec` reads it."""
    table = _without_none(spec.to_dict())
    lines = [f"{key} = {toml_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for section, options in table.items():
        if isinstance(options, dict):
            lines += ["", f"[{section}]", *(f"{key} = {toml_value(value)}" for key, value in options.items())]
    return "\n".join(lines) + "\n"
