"""Where pretrained models are found, and what is said where they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ctxrec.core.config import EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.encoder.hub import check_max_tokens, resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder


@pytest.fixture(params=["bert", "gpt2"])
def path(request, tiny_encoder, tiny_gpt2) -> str:
    return tiny_encoder if request.param == "bert" else tiny_gpt2


def test_an_unknown_name_offline_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"nobody/no-such-model.*HF_HUB_OFFLINE.*local folder"):
        resolve_encoder("nobody/no-such-model", str(tmp_path))
    for name in ("/no/such/folder", "./no-such-folder", "~/model", "a/b/c"):
        with pytest.raises(UserError, match="no such folder"):
            resolve_encoder(name, str(tmp_path))
    with pytest.raises(UserError, match="no valid Hugging Face id"):
        resolve_encoder("not a valid id!", str(tmp_path))


def test_folders_that_hold_no_model(tiny_encoder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"without config\.json; it has nothing"):
        resolve_encoder(str(tmp_path / "empty"), str(tmp_path))
    half = tmp_path / "half"
    shutil.copytree(tiny_encoder, half)
    (half / "model.safetensors").rename(half / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"without \.safetensors; it has config\.json, pytorch_model\.bin"):
        resolve_encoder(str(half), str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        TextEncoder(EncoderConfig(name=str(half)), str(half), tune=False)
    assert "\n" not in str(caught.value)
    monkeypatch.chdir(Path(tiny_encoder).parent)
    assert resolve_encoder(Path(tiny_encoder).name, str(tmp_path)) == tiny_encoder
    assert resolve_encoder(f"file://{tiny_encoder}", str(tmp_path)) == tiny_encoder


def test_more_tokens_than_positions_is_an_error(path):
    check_max_tokens(path, EncoderConfig(name=path, max_tokens=64))
    with pytest.raises(UserError, match=r"max_tokens is 65.*at most 64"):
        check_max_tokens(path, EncoderConfig(name=path, max_tokens=65))


def test_an_unknown_architecture_is_one_clear_error(tiny_encoder, tmp_path):
    broken = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, broken)
    (broken / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(UserError, match=r"cannot be loaded.*no-such-model"):
        check_max_tokens(str(broken), EncoderConfig(name=str(broken)))
