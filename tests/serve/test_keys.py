"""API keys: what is taken, what is refused, and that none is kept in the clear."""

from __future__ import annotations

import hashlib

import pytest
from starlette.exceptions import HTTPException

from ctxrec.core.errors import UserError
from serve.keys import READ, WRITE, Keys, keys_from_environment, parse_keys


def status(keys: Keys, scope: str, **headers: str) -> int:
    try:
        keys.check({name.replace("_", "-"): value for name, value in headers.items()}, scope)
    except HTTPException as error:
        assert error.status_code != 401 or error.headers == {"WWW-Authenticate": "Bearer"}
        return error.status_code
    return 200


def test_keys_and_scopes():
    hashed = hashlib.sha256(b"fourth").hexdigest()
    keys = Keys(parse_keys(f" first, read@second\nwrite@third  read@sha256:{hashed},"))
    assert status(keys, READ) == status(keys, WRITE) == 401
    assert status(keys, READ, authorization="Bearer first") == status(keys, WRITE, x_api_key="first") == 200
    assert status(keys, READ, authorization="bearer second") == 200
    assert status(keys, WRITE, authorization="Bearer second") == status(keys, READ, x_api_key="third") == 403
    assert status(keys, READ, x_api_key="fourth") == 200
    in_capitals = Keys(parse_keys(f"read@SHA256:{hashed.upper()}"))
    assert status(in_capitals, READ, x_api_key="fourth") == 200
    assert status(in_capitals, READ, x_api_key=f"SHA256:{hashed.upper()}") == 401, "the hash is no key itself"
    for wrong in ("", "First", "first ", hashed, f"sha256:{hashed}", "read@second", "ключ"):
        assert status(keys, READ, x_api_key=wrong) == 401
    assert status(keys, READ, authorization="Basic first") == 401


def test_without_keys_everybody_is_let_in(monkeypatch):
    monkeypatch.delenv("CTXREC_API_KEYS", raising=False)
    assert keys_from_environment() == {} and status(Keys({}), WRITE) == 200


@pytest.mark.parametrize("key", ["ключ", "clé", "鍵-42", "a\u0308"])
def test_keys_that_are_not_ascii_are_taken_in_utf_8_and_in_latin_1(key, monkeypatch, tmp_path):
    monkeypatch.setenv("CTXREC_API_KEYS", f"read@{key}")
    keys = Keys(keys_from_environment())
    sent = key.encode().decode("latin-1")  # what Starlette makes of the bytes of a header
    assert status(keys, READ, authorization=f"Bearer {sent}") == status(keys, READ, x_api_key=sent) == 200
    assert status(keys, WRITE, x_api_key=sent) == 403 and status(keys, READ, x_api_key=sent[:-1]) == 401
    if key.isascii() or max(key) < "\u0100":
        assert status(keys, READ, x_api_key=key) == 200, "a client that writes Latin-1"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "keys").write_text(key, encoding=encoding)
        monkeypatch.setenv("CTXREC_API_KEYS_FILE", str(tmp_path / "keys"))
        assert status(Keys(keys_from_environment()), WRITE, x_api_key=sent) == 200


def test_only_hashes_are_kept_and_errors_show_no_key(monkeypatch):
    monkeypatch.setenv("CTXREC_API_KEYS", "top-secret")
    assert "top-secret" not in repr(keys_from_environment())
    for text in ("root@top-secret", "read@", "sha256:top-secret"):
        with pytest.raises(UserError, match="entry 1 of CTXREC_API_KEYS is no") as caught:
            parse_keys(text)
        assert "top-secret" not in str(caught.value)
