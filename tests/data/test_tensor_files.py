"""Files of tensors are read back as they were, and damage of any kind is one line with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ctxrec.core.errors import UserError
from ctxrec.data.tensor_files import read_tensors, write_tensors

TENSORS = {
    "towers.w": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "share": torch.tensor(0.5),
    "image": torch.ones(2, 3, dtype=torch.float16),
    "present": torch.tensor([1, 0], dtype=torch.uint8),
    "none": torch.zeros(0, 4),
}


def test_what_is_written_is_read(tmp_path):
    path = str(tmp_path / "folder" / "best-towers.safetensors")
    write_tensors(path, TENSORS)
    found = read_tensors(path, remedy="")
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in found)


def test_a_file_of_an_earlier_version_has_no_hash_and_is_read(tmp_path):
    path = str(tmp_path / "text.safetensors")
    save_file(TENSORS, path)
    assert torch.equal(read_tensors(path, remedy="")["towers.w"], TENSORS["towers.w"])


@pytest.mark.parametrize("left", [0, 3, 8, 100, -1])
def test_a_file_that_is_empty_or_cut_off_is_named_with_its_remedy(tmp_path, left):
    path = tmp_path / "text.safetensors"
    write_tensors(str(path), TENSORS)
    path.write_bytes(path.read_bytes()[:left])
    _refused(path)


def test_every_changed_byte_is_found(tmp_path):
    path = tmp_path / "text.safetensors"
    write_tensors(str(path), TENSORS)
    whole = path.read_bytes()
    for place in range(len(whole)):
        if whole[place : place + 1].isspace():
            continue  # padding between the header and the values
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        _refused(path)


def _refused(path: Path) -> None:
    with pytest.raises(UserError) as told:
        read_tensors(str(path), remedy="delete it")
    assert f"{path} is damaged" in str(told.value) and str(told.value).endswith("; delete it"), told.value


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"found nothing at .*x\.safetensors"):
        read_tensors(str(tmp_path / "x.safetensors"), remedy="")
