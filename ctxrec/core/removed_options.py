"""Options of earlier versions. Files that ctxrec wrote with them still load; a user who sets one learns what to use now."""

from __future__ import annotations

import logging
from typing import Any

from ctxrec.core.errors import UserError
from ctxrec.core.training_options import SOURCES

logger = logging.getLogger(__name__)

_FIXED = "leave it out: its default is fixed now"
_USE = {f"model.use_{source}": source for source in SOURCES}

# Key of each removed option, and what to do instead.
REMOVED: dict[str, str] = {
    "prepare.max_id_bytes": _FIXED,
    "prepare.max_category_values": _FIXED,
    "encoder.compile": "leave it out: the encoder is never compiled, as that gained 10 % at best",
    **{key: f"list the sources in model.sources, with or without {source!r}" for key, source in _USE.items()},
    "train.label_smoothing": "leave it out: the loss has no label smoothing",
    "train.refresh_every": "leave it out: the table of items is encoded before each evaluation and checkpoint",
    "train.warm_start": "leave it out: the item tower always starts from random weights",
    "train.final_lr": _FIXED,
    "train.clip": _FIXED,
    "train.full_softmax_items": "set train.loss to softmax or sampled_softmax instead",
    "index.refine": "raise index.recall or index.nprobe instead",
    "index.nlist": "leave it out: the number of lists follows the number of items",
    "index.hnsw_links": _FIXED,
    "index.ef_construction": _FIXED,
    "evaluate.ease_lambda": "leave it out: the weight is chosen on the validation split",
    "evaluate.ease_choices": _FIXED,
    "evaluate.als_factors": "leave it out: the number of factors is chosen on the validation split",
    "evaluate.als_choices": _FIXED,
    "evaluate.choice_requests": _FIXED,
    "evaluate.knn_neighbours": _FIXED,
    "evaluate.seed": _FIXED,
    "rerank.history_items": "raise or lower rerank.max_tokens instead",
    "rerank.item_tokens": "raise or lower rerank.max_tokens instead",
    "rerank.head_lr": _FIXED,
    "rerank.negatives": _FIXED,
    "rerank.requests": _FIXED,
    "rerank.seed": "set train.seed instead",
}


def refuse_removed(raw: dict[str, Any], *, source: str) -> None:
    """Check options that a user wrote.

    Args:
        raw: values by section and key.
        source: name of the file, for the message.

    Raises:
        UserError: a removed option is set; the message says what to use now.
    """
    for name in _names(raw):
        if name in REMOVED:
            raise UserError(f"{source}: {name} is no longer an option; {REMOVED[name]}")


def without_removed(raw: dict[str, Any], *, source: str) -> dict[str, Any]:
    """The options of a file that an earlier version of ctxrec wrote, in terms of today.

    The seven `model.use_*` become `model.sources`. Other removed options are dropped, with one warning in the log.

    Args:
        raw: values by section and key; it is not changed.
        source: name of the file, for the warning.
    """
    kept = {
        section: {key: value for key, value in options.items() if f"{section}.{key}" not in REMOVED}
        if isinstance(options, dict)
        else options
        for section, options in raw.items()
    }
    given = set(_names(raw))
    if given & set(_USE):
        model = raw["model"]
        kept["model"]["sources"] = [source for source in SOURCES if model.get(f"use_{source}", True)]
    if dropped := [name for name in REMOVED if name in given and name not in _USE]:
        logger.warning("%s: these options were removed and are ignored: %s", source, ", ".join(dropped))
    return kept


def _names(raw: dict[str, Any]) -> list[str]:
    """All options of `raw`, as "section.key"."""
    return [f"{section}.{key}" for section, options in raw.items() if isinstance(options, dict) for key in options]
