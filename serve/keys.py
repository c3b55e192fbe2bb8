"""API keys: who may read, who may write, and who may see what users did. Only their hashes are kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping

from starlette.exceptions import HTTPException

from ctxrec.core.errors import UserError

ENVIRONMENT, FILE = "CTXREC_API_KEYS", "CTXREC_API_KEYS_FILE"
NO_KEY = "a valid API key is required: Authorization: Bearer KEY, or X-API-Key: KEY"
READ, WRITE, ADMIN = "read", "write", "admin"
_SCOPES = {READ: frozenset([READ]), WRITE: frozenset([WRITE]), ADMIN: frozenset([READ, WRITE, ADMIN])}
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


class Keys:
    """The accepted keys; without any key, every call is allowed.

    Args:
        scopes: what each key may do, by the sha256 of the key in hex.
    """

    def __init__(self, scopes: Mapping[str, frozenset[str]]):
        self._scopes = dict(scopes)

    @property
    def are_asked_for(self) -> bool:
        return bool(self._scopes)

    def valid(self, headers: Mapping[str, str]) -> str | None:
        """The sha256 of the key that was sent, in hex, where it is one of those that are taken."""
        kind, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        # Looked up by its hash, so that response times do not reveal how close a guessed key is.
        return next((digest for digest in map(_sha256, _as_sent(key)) if digest in self._scopes), None)

    def check(self, headers: Mapping[str, str], scope: str) -> None:
        """Raise 401 where no valid key was sent, 403 where the key may not do this."""
        if not self._scopes:
            return
        digest = self.valid(headers)
        if digest is None:
            raise HTTPException(401, NO_KEY, headers={"WWW-Authenticate": "Bearer"})
        found = self._scopes[digest]
        if scope not in found:
            raise HTTPException(403, f"this API key may not {scope}; it may {' and '.join(sorted(found))}")


def parse_keys(text: str, source: str = ENVIRONMENT) -> dict[str, frozenset[str]]:
    """Keys as CTXREC_API_KEYS has them: separated by commas or blanks, each `KEY` or `SCOPE@KEY`.

    A key of scope `admin`, or without scope, may do everything. `sha256:HEX` stands for the key that has this hash.

    Raises:
        UserError: an entry has another form; its text is not shown.
    """
    keys: dict[str, frozenset[str]] = {}
    for number, entry in enumerate(re.split(r"[\s,]+", text.strip()), 1):
        if not entry:
            continue
        scope, at, key = entry.partition("@")
        if not at:
            scope, key = ADMIN, entry
        if not key or scope not in _SCOPES:
            names = ", ".join(f"{name}@KEY" for name in _SCOPES)
            raise UserError(f"entry {number} of {source} is no key; expected KEY or one of {names}")
        hashed = _HASHED.fullmatch(key.lower())  # some tools write a hash in capitals
        if key.lower().startswith("sha256:") and hashed is None:
            raise UserError(f"entry {number} of {source} is no sha256; expected sha256: and 64 hex digits")
        digest = hashed[1] if hashed else _sha256(_as_set(key))
        keys[digest] = keys.get(digest, frozenset()) | _SCOPES[scope]
    return keys


def keys_from_environment() -> dict[str, frozenset[str]]:
    """The keys of CTXREC_API_KEYS and of the file that CTXREC_API_KEYS_FILE names (# begins a comment).

    Raises:
        UserError: an entry is no key, or the file cannot be read or has no key, which would let everybody in.
    """
    keys = parse_keys(os.environ.get(ENVIRONMENT, ""))
    path = os.environ.get(FILE)
    if not path:
        return keys
    try:
        with open(path, encoding="utf-8-sig") as file:  # editors of Windows put a mark before the text
            lines = [line.partition("#")[0] for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file {path} of {FILE} cannot be read: {error}") from error
    found = parse_keys("\n".join(lines), path)
    if not found:
        raise UserError(f"the file {path} of {FILE} has no key; expected one a line")
    return {digest: keys.get(digest, frozenset()) | found.get(digest, frozenset()) for digest in keys | found}


def _as_sent(key: str) -> Iterator[bytes]:
    """What a header may mean: servers read its bytes as Latin-1, and clients write UTF-8 or Latin-1."""
    with contextlib.suppress(UnicodeEncodeError):
        yield key.encode("latin-1")
    yield _as_set(key)


def _as_set(key: str) -> bytes:
    """The bytes of a key of the environment or a file."""
    return key.encode("utf-8", "surrogateescape")


def _sha256(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
