"""What a wrong field of a body should have been, in words that say what to do."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel

_SECONDS = "epoch seconds, UTC, as a number, such as 1767225600"
_TOO_LATE = ("less_than", "less_than_equal")


def told(error: Any, model: type[BaseModel]) -> str:
    """The message of a mistake.

    Args:
        error: one of `ValidationError.errors()`.
        model: of the whole body.
    """
    place, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        known = ", ".join(_model_at(model, place[:-1]).model_fields)
        return f"unknown field; expected {known or 'none'}"
    if place and place[-1] == "timestamp":
        if kind in _TOO_LATE:
            return f"{error['msg']}; a number as large looks like milliseconds; expected {_SECONDS}"
        if kind == "float_type":
            return f"expected {_SECONDS}"
    return str(error["msg"])


def _model_at(model: type[BaseModel], place: tuple[str | int, ...]) -> type[BaseModel]:
    """The model of the object at a place of a body; numbers and the keys of dictionaries lie between models."""
    for part in place:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model in an annotation such as `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part)) is not None), None)
