"""API keys: who may read and who may write. Only their hashes are kept."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping

from starlette.exceptions import HTTPException

from ctxrec.errors import UserError

ENVIRONMENT = "CTXREC_API_KEYS"
READ, WRITE = "read", "write"
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


class Keys:
    """The keys that are taken; without any, everybody is let in.

    Args:
        scopes: what each key may do, by the sha256 of the key in hex.
    """

    def __init__(self, scopes: Mapping[str, frozenset[str]]):
        self._scopes = dict(scopes)

    def check(self, headers: Mapping[str, str], scope: str) -> None:
        """Raise 401 where no valid key was sent, 403 where the key may not do this."""
        if not self._scopes:
            return
        kind, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        # Looked up by its hash, so that the time of an answer says nothing of how near a guess was.
        found = self._scopes.get(_sha256(key))
        if found is None:
            detail = "a valid API key is required: Authorization: Bearer KEY, or X-API-Key: KEY"
            raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})
        if scope not in found:
            raise HTTPException(403, f"this API key may not {scope}; it may {' and '.join(sorted(found))}")


def parse_keys(text: str) -> dict[str, frozenset[str]]:
    """Keys as CTXREC_API_KEYS has them: separated by commas or blanks, each `KEY` or `SCOPE@KEY`.

    A key without scope may read and write. `sha256:HEX` stands for the key that has this hash.

    Raises:
        UserError: an entry has another form; its text is not shown.
    """
    keys = {}
    for number, entry in enumerate(re.split(r"[\s,]+", text.strip()), 1):
        if not entry:
            continue
        scope, at, key = entry.partition("@")
        if not at:
            scope, key = "", entry
        if not key or scope not in ("", READ, WRITE):
            raise UserError(f"entry {number} of {ENVIRONMENT} is no key; expected KEY, {READ}@KEY or {WRITE}@KEY")
        hashed = _HASHED.fullmatch(key)
        if key.startswith("sha256:") and hashed is None:
            raise UserError(f"entry {number} of {ENVIRONMENT} is no sha256; expected sha256: and 64 hex digits")
        digest = hashed[1] if hashed else _sha256(key)
        keys[digest] = keys.get(digest, frozenset()) | frozenset([scope] if scope else [READ, WRITE])
    return keys


def keys_from_environment() -> dict[str, frozenset[str]]:
    return parse_keys(os.environ.get(ENVIRONMENT, ""))


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
