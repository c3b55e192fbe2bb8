"""Options of earlier versions. Files that ctxrec wrote with them still load; a user who sets one learns what to use now."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ctxrec.core.errors import UserError
from ctxrec.core.training_options import SOURCES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removed:
    """A removed option.

    Attributes:
        default: what it was by default. ctxrec still does what this value asked for.
        instead: what a user who sets it should do.
    """

    default: Any
    instead: str = "leave it out: its default is fixed now"


_USE = {f"model.use_{source}": source for source in SOURCES}
_CHOSEN = "leave it out: the value is chosen on the validation split"
_SHORTER = "raise or lower rerank.max_tokens instead"

REMOVED: dict[str, Removed] = {
    "prepare.max_id_bytes": Removed(1024),
    "prepare.max_category_values": Removed(100_000),
    "encoder.compile": Removed(False, "leave it out: the encoder is never compiled, as that gained 10 % at best"),
    "encoder.adapter_dropout": Removed(0.0, "leave it out: no measurement supported it"),
    **{
        key: Removed(True, f"list the sources in model.sources, with or without {name!r}") for key, name in _USE.items()
    },
    "train.label_smoothing": Removed(0.0, "leave it out: the loss has no label smoothing"),
    "train.refresh_every": Removed(0, "leave it out: the table of items is encoded before evaluations and checkpoints"),
    "train.warm_start": Removed(False, "leave it out: the item tower always starts from random weights"),
    "train.final_lr": Removed(0.1),
    "train.clip": Removed(1.0),
    "train.full_softmax_items": Removed(50_000, "set train.loss to softmax or sampled_softmax instead"),
    "index.refine": Removed(16, "raise index.recall or index.nprobe instead"),
    "index.nlist": Removed(0, "leave it out: the number of lists follows the number of items"),
    "index.hnsw_links": Removed(32),
    "index.ef_construction": Removed(200),
    "evaluate.ease_lambda": Removed(500.0, _CHOSEN),
    "evaluate.ease_choices": Removed([50.0, 200.0, 500.0]),
    "evaluate.als_factors": Removed(64, _CHOSEN),
    "evaluate.als_choices": Removed([64, 128]),
    "evaluate.choice_requests": Removed(5_000),
    "evaluate.knn_neighbours": Removed(100),
    "evaluate.seed": Removed(0),
    "rerank.history_items": Removed(6, _SHORTER),
    "rerank.item_tokens": Removed(24, _SHORTER),
    "rerank.head_lr": Removed(5e-3),
    "rerank.negatives": Removed(7),
    "rerank.requests": Removed(4_000),
    "rerank.seed": Removed(0, "set train.seed instead"),
}


def refuse_removed(raw: dict[str, Any], *, source: str) -> None:
    """Check options that a user wrote.

    Args:
        raw: values by section and key.
        source: name of the file, for the message.

    Raises:
        UserError: removed options are set; the message names all and says what to use now.
    """
    found = [name for name in _values(raw) if name in REMOVED]
    if len(found) == 1:
        raise UserError(f"{source}: {found[0]} is no longer an option; {REMOVED[found[0]].instead}")
    if found:
        advice = "; ".join(f"{name}: {REMOVED[name].instead}" for name in found)
        raise UserError(f"{source}: {', '.join(found)} are no longer options; {advice}")


def without_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """The options of a user's file without removed ones that ask for what ctxrec does anyway.

    So the complete `config.toml` that an earlier version wrote serves as `--config` where it asks for nothing that is gone.

    Args:
        raw: values by section and key; it is not changed.
    """
    return _without(raw, {name for name, value in _values(raw).items() if name in REMOVED and _is_default(name, value)})


def lost_options(raw: dict[str, Any], sections: Collection[str] | None = None) -> list[str]:
    """Removed options whose values ctxrec no longer follows, as "section.key".

    Args:
        raw: values by section and key of a file that an earlier version of ctxrec wrote.
        sections: which ones are looked at; None looks at all.
    """
    return [
        name
        for name, value in _values(raw).items()
        if name in REMOVED and name not in _USE and not _is_default(name, value)
        if sections is None or name.split(".")[0] in sections
    ]


def without_removed(raw: dict[str, Any], *, source: str) -> dict[str, Any]:
    """The options of a file that an earlier version of ctxrec wrote, in terms of today.

    The seven `model.use_*` become `model.sources`. Other removed options are dropped. One warning in the log names those
    of them that were not at their default.

    Args:
        raw: values by section and key; it is not changed.
        source: name of the file, for the warning.
    """
    kept = _without(raw, REMOVED)
    given = {name: value for name, value in _values(raw).items() if name in REMOVED}
    if _USE.keys() & given.keys():
        kept["model"]["sources"] = [source for key, source in _USE.items() if given.get(key, True)]
    lost = lost_options(raw)
    if lost:
        logger.warning("%s: these options were removed and are ignored: %s", source, ", ".join(lost))
    return kept


def _is_default(name: str, value: Any) -> bool:
    default = REMOVED[name].default
    return isinstance(value, bool) == isinstance(default, bool) and value == default


def _without(raw: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`raw` without these options, each as "section.key"."""
    return {
        section: {key: value for key, value in options.items() if f"{section}.{key}" not in names}
        if isinstance(options, dict)
        else options
        for section, options in raw.items()
    }


def _values(raw: dict[str, Any]) -> dict[str, Any]:
    """All values of `raw`, by "section.key"."""
    return {
        f"{section}.{key}": value
        for section, options in raw.items()
        if isinstance(options, dict)
        for key, value in options.items()
    }
