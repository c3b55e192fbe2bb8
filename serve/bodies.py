"""What a client sent, as a model: the checks of a body's size, of its fields, and the places of its mistakes.

HTTP bodies and the arguments of MCP tools go through here, so that neither holds up the event loop or an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from serve.mistakes import told

MAX_ERRORS = 20  # that an answer lists
MAX_KEYS = 1000  # of an object of a large body
MAX_PARTS = 100_000  # lists and objects of a body
MAX_MESSAGE = 500  # characters of one error, which may name what a client sent
MAX_NAME = 100  # characters of a name in an error's place
_LARGE_BYTES = 64 << 10
_MOST_LISTED = 200  # errors that are made into a list, of which the first are shown
_large_bodies = ThreadPoolExecutor(1, "large bodies")
Body = TypeVar("Body", bound=BaseModel)


async def validated(model: type[Body], body: bytes, part: str = "body") -> Body:
    """JSON as `model`.

    Args:
        model: what it should be.
        body: the JSON.
        part: where its mistakes lie, "body" or "arguments".

    Raises:
        RequestValidationError: it is no JSON object, or breaks a rule of the model; names the field.
    """
    if len(body) <= _LARGE_BYTES:
        return _validated(model, body, part)
    # A large body takes some tenths of a second. The event loop gets a turn between two of them.
    return await asyncio.get_running_loop().run_in_executor(_large_bodies, _validated_large, model, body, part)


def places_of(error: RequestValidationError) -> list[dict[str, Any]]:
    """The first mistakes: where each lies, what it is, and its type; without the input itself, which may be large or private."""
    return [shortened(e["loc"], _message(e), e["type"]) for e in error.errors()[:MAX_ERRORS]]


def shortened(loc: Sequence[str | int], msg: str, kind: str) -> dict[str, Any]:
    """A mistake in the API's shape, cut to a length that can be read."""
    place = [cut(part, MAX_NAME) if isinstance(part, str) else part for part in loc]
    return {"loc": place, "msg": cut(msg, MAX_MESSAGE), "type": kind}


def cut(text: str, length: int) -> str:
    """A text without what goes beyond a length."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def _validated(model: type[Body], body: bytes, part: str) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = [{**e, "loc": (part, *e["loc"]), "msg": told(e, model)} for e in _first(error, model, body)]
        raise RequestValidationError(found) from None


def _validated_large(model: type[Body], body: bytes, part: str) -> Body:
    _check_size(body, part)
    return _validated(model, body, part)


def _check_size(body: bytes, part: str) -> None:
    """Refuse a large body with very many parts, or with an object of very many keys: each may be a mistake of its own."""
    parts = body.count(b"[") + body.count(b"{")
    if parts > MAX_PARTS:
        message = f"the body has {parts} brackets that open; expected at most {MAX_PARTS}"
        raise RequestValidationError([{"type": "value_error", "loc": (part,), "msg": message}])

    def count(pairs: list[tuple[str, Any]]) -> None:
        if len(pairs) > MAX_KEYS:
            message = f"an object has {len(pairs)} keys; expected at most {MAX_KEYS}"
            raise RequestValidationError([{"type": "value_error", "loc": (part,), "msg": message}])

    with contextlib.suppress(ValueError, RecursionError):  # malformed JSON is refused by what follows
        json.loads(body, object_pairs_hook=count)


def _first(error: ValidationError, model: type[BaseModel], body: bytes) -> list[Any]:
    """The first mistakes of a body, without making a list of all of them: 1 MB of mistakes would take seconds."""
    few: dict[str, bool] = {"include_url": False, "include_context": False, "include_input": False}
    if error.error_count() <= _MOST_LISTED:
        return error.errors(**few)[:MAX_ERRORS]
    with contextlib.suppress(ValueError, RecursionError):
        try:
            model.model_validate(_beginning(json.loads(body)))
        except ValidationError as beginning:
            return beginning.errors(**few)[:MAX_ERRORS]
    return [{"type": "value_error", "loc": (), "msg": f"the body has {error.error_count()} mistakes"}]


def _beginning(value: Any) -> Any:
    """A JSON value without what follows the first parts of its lists and objects."""
    if isinstance(value, list):
        return [_beginning(part) for part in value[:3]]
    if isinstance(value, dict):
        return {key: _beginning(part) for key, part in itertools.islice(value.items(), MAX_ERRORS)}
    return value


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"malformed JSON: {error['msg'].removeprefix('Invalid JSON: ')}"
    if error["type"] in ("model_attributes_type", "model_type", "dict_type") and tuple(error["loc"]) == ("body",):
        return "expected a JSON object with Content-Type: application/json"
    return error["msg"].removeprefix("Value error, ")
