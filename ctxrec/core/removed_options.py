"""Options of earlier versions: files that ctxrec wrote with them still load, and a user who sets one learns what to use."""

from __future__ import annotations

import logging
from typing import Any

from ctxrec.core.errors import UserError

logger = logging.getLogger(__name__)

# Key of a removed option, and what to do instead.
REMOVED = {
    "encoder.compile": "leave it out: the encoder is never compiled, as that gained 10 % at best",
    "train.label_smoothing": "leave it out: the loss has no label smoothing",
    "train.refresh_every": "leave it out: the table of items is encoded before each evaluation and checkpoint",
    "train.warm_start": "leave it out: the item tower always starts from random weights",
    "evaluate.ease_lambda": "leave it out: the weight is chosen on the validation split",
    "evaluate.als_factors": "leave it out: the number of factors is chosen on the validation split",
}


def refuse_removed(raw: dict[str, Any], *, source: str) -> None:
    """Raise a `UserError` that says what to use now where `raw`, which a user wrote, sets a removed option."""
    for section, options in raw.items():
        for key in options if isinstance(options, dict) else ():
            name = f"{section}.{key}"
            if name in REMOVED:
                raise UserError(f"{source}: {name} is no longer an option; {REMOVED[name]}")


def without_removed(raw: dict[str, Any], *, source: str) -> dict[str, Any]:
    """The content of a file that an earlier version of ctxrec wrote, without the options that were removed since.

    Args:
        raw: options by section.
        source: name of the file, for the warning.
    """
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    for section, options in raw.items():
        if not isinstance(options, dict):
            kept[section] = options
            continue
        kept[section] = {key: value for key, value in options.items() if f"{section}.{key}" not in REMOVED}
        dropped += [f"{section}.{key}" for key in options if f"{section}.{key}" in REMOVED]
    if dropped:
        logger.warning("%s: these options were removed and are ignored: %s", source, ", ".join(dropped))
    return kept
