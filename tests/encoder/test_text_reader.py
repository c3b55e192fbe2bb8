"""Texts that come one by one: the same vectors as in a catalogue, kept in memory and, for the plain encoder, on disk."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.core import storage
from ctxrec.core.config import EncoderConfig
from ctxrec.encoder.cache import vector_store
from ctxrec.encoder.hub import max_positions
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_reader import TextReader, TextReaderParams
from ctxrec.encoder.text_table import encode_catalogue


@pytest.fixture
def make(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "cache_dir", lambda: str(tmp_path))
    config = EncoderConfig(name=tiny_encoder)

    def made(*, on_disk: bool = False, params: TextReaderParams | None = None) -> TextReader:
        encoder = TextEncoder(config, tiny_encoder, tune=False)
        return TextReader(encoder, tiny_encoder, config, on_disk=on_disk, params=params or TextReaderParams())

    return made


def test_a_text_has_the_vector_that_it_has_in_a_catalogue(make, tiny_encoder):
    config = EncoderConfig(name=tiny_encoder)
    texts = ["red shoe", "large hat soft lamp", "红色 的 鞋", "red shoe"]
    wanted, _ = encode_catalogue(TextEncoder(config, tiny_encoder, tune=False).eval(), tiny_encoder, texts, config)
    reader = make()
    np.testing.assert_allclose(reader.read(texts), wanted, atol=1e-5)
    np.testing.assert_allclose(reader.read(texts[::-1]), wanted[::-1], atol=1e-5)
    assert reader.read([]).shape == (0, wanted.shape[1])


def test_the_latest_vectors_are_kept_and_no_more(make, monkeypatch):
    reader = make(params=TextReaderParams(kept=2))
    encoded = []
    encode = reader._encode
    monkeypatch.setattr(
        reader, "_encode", lambda texts, write: encoded.append(list(texts)) or encode(texts, write=write)
    )
    for texts in (["red", "hat"], ["red"], ["coat"], ["red", "hat"], ["red", "hat", "coat"]):
        assert reader.read(texts).shape[0] == len(texts)
    assert encoded == [["red", "hat"], [], ["coat"], ["hat"], ["coat"]]


def test_a_long_text_and_what_no_tokenizer_takes_are_read(make, tiny_encoder):
    """The tiny encoder has 64 positions; more tokens would be an error of torch."""
    assert max_positions(tiny_encoder) == 64
    reader = make()
    long = reader.read(["red shoe " * 500, "red shoe " * 32, "red shoe"])
    np.testing.assert_allclose(long[0], long[1], atol=1e-5)
    assert not np.allclose(long[0], long[2], atol=1e-3)
    assert np.isfinite(reader.read(["\ud800 hat", "\x00", "?"])).all()


def test_vectors_of_a_log_are_on_disk_and_those_of_users_are_not(make, tiny_encoder, tmp_path):
    config = EncoderConfig(name=tiny_encoder)
    first = make(on_disk=True)
    known = first.read(["red shoe", "hat"], write=True)
    first.read(["what a user asks"])
    store = vector_store(tiny_encoder, config, known.shape[1])
    assert len(store._place) == 2
    again = make(on_disk=True)
    again._encoder = None  # so that nothing but the disk can give them
    np.testing.assert_array_equal(again.read(["hat", "red shoe"]), known[::-1])
