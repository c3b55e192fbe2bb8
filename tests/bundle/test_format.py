"""A bundle is what was trained, and damage to any of its files is found before anything is scored."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from trainings import assert_bundle_gives_its_item_vectors_again

from ctxrec.bundle import format as bundle_format
from ctxrec.bundle.format import check_bundle, load_encoder, save_encoder, write_bundle
from ctxrec.bundle.history_file import ORDER
from ctxrec.core import schema, storage
from ctxrec.core.config import EncoderConfig, load_config
from ctxrec.core.errors import UserError
from ctxrec.data.features import item_features
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.encode_plan import tokenise
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import encode_catalogue, make_text_table
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.two_tower import Towers
from ctxrec.retrieval.load import load_recommender
from ctxrec.training.driver import train


@pytest.fixture
def copy(tiny_run, tmp_path) -> Path:
    shutil.copytree(Path(tiny_run) / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


def test_files_and_hashes(tiny_run, tiny_config):
    folder, manifest = check_bundle(f"{tiny_run}/bundle", scratch="unused")
    names = storage.local_files(folder)
    assert set(names) == {*manifest["files"], "manifest.json"}
    assert {"config.toml", "data.json", "items.parquet", "histories.arrow", "index.faiss", "towers.safetensors"} < set(
        names
    )
    assert "adapter/adapter_model.safetensors" in names
    assert all(storage.sha256_file(f"{folder}/{name}") == digest for name, digest in manifest["files"].items())
    assert load_config(f"{folder}/config.toml") == tiny_config
    assert not [name for name in names if Path(name).suffix in (".bin", ".pt", ".pkl", ".pth", ".py")]
    check_bundle(f"file://{folder}", scratch="unused")


def test_every_damaged_or_missing_file_is_named(copy):
    for name in storage.local_files(str(copy)):
        whole = (copy / name).read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            flipped = bytearray(whole)
            flipped[place] ^= 1
            (copy / name).write_bytes(flipped)
            if name == "manifest.json" and json_equal(flipped, whole):
                continue  # white space
            with pytest.raises(UserError, match=f"{Path(name).name}"):
                load_recommender(str(copy))
        (copy / name).unlink()
        with pytest.raises(UserError, match=f"{Path(name).name}.* is missing"):
            load_recommender(str(copy))
        (copy / name).write_bytes(whole)
    load_recommender(str(copy))


def json_equal(one: bytes | bytearray, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False


def test_a_manifest_that_was_edited_is_found(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "config.toml").write_text("[model]\n")
    manifest["files"]["config.toml"] = storage.sha256_file(str(copy / "config.toml"))
    early = {k: v for k, v in manifest.items() if k != "sha256"}  # as earlier versions wrote it
    no_files = {k: v for k, v in manifest.items() if k != "files"}
    for wrong in (manifest, early, {**manifest, "files": {}}, no_files):
        (copy / "manifest.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"damaged: manifest\.json"):
            load_recommender(str(copy))
    (copy / "manifest.json").write_text("[1]")
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_recommender(str(copy))


def test_another_format_version_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    for version in (bundle_format.BUNDLE.format_version + 1, None, "1"):
        (copy / "manifest.json").write_text(json.dumps({**manifest, "format_version": version}))
        with pytest.raises(
            UserError, match=f"format version {version}; expected {bundle_format.BUNDLE.format_version}"
        ):
            load_recommender(str(copy))


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json is missing.*ctxrec train"):
        load_recommender(str(tmp_path / "nothing"))


def test_item_vectors_can_be_computed_anew(tiny_run, tiny_data):
    """From the pretrained encoder, the adapter and the towers: of the trained model, and of those before and after the
    encoder's phase where its result was kept."""
    items = PreparedData.open(tiny_data).items
    for place in ("bundle", "checkpoints/before", "checkpoints/tuned"):
        if place == "bundle" or Path(tiny_run, place).exists():
            assert_bundle_gives_its_item_vectors_again(f"{tiny_run}/{place}", items)


@pytest.mark.parametrize("tune", ["lora", "top", "freeze"])
def test_a_bundle_of_any_tuning_gives_its_item_vectors_again(tiny_data, tiny_encoder, tiny_config, tmp_path, tune):
    """Written from an encoder that has surely moved; a frozen one has no adapter in the bundle."""
    options = dataclasses.replace(tiny_config.encoder, tune=tune, top_layers=1)
    config, data = dataclasses.replace(tiny_config, encoder=options), PreparedData.open(tiny_data)
    catalogue = item_features(data.items, data.features)
    torch.manual_seed(0)
    frozen = TextEncoder(options, tiny_encoder, tune=False).eval()
    plain, present = encode_catalogue(frozen, tiny_encoder, catalogue.texts, options)
    encoder = TextEncoder(options, tiny_encoder, tune=True).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    vectors, _ = encode_catalogue(encoder, tiny_encoder, catalogue.texts, options)
    assert (np.abs(vectors - plain).max() > 1e-2) == (tune != "freeze")
    scale = make_text_table(plain, present)
    text = make_text_table(vectors, present, mean=scale.mean_H.numpy(), scale=scale.scale_H.numpy())
    shape = ModelShape.of(config.model, data.features, num_items=len(catalogue), text_width=encoder.width)
    towers = Towers(config.model, shape, temperature=config.train.temperature).eval()
    with torch.inference_mode():
        item_vectors, _ = towers(ItemTensors.of(catalogue, shape), text)
    version = write_bundle(
        str(tmp_path / "bundle"),
        config=config,
        data=data,
        shape=shape,
        towers=dict(towers.state_dict()),
        item_vectors=item_vectors.numpy(),
        text_scale={"mean": text.mean_H.numpy(), "scale": text.scale_H.numpy()},
        encoder=None if tune == "freeze" else encoder,
        scratch=str(tmp_path / "scratch"),
    )
    recommender = load_recommender(str(tmp_path / "bundle"))
    assert recommender.model_version == version
    np.testing.assert_array_equal(recommender.item_vectors, item_vectors.numpy())
    assert_bundle_gives_its_item_vectors_again(str(tmp_path / "bundle"), data.items)


def test_the_bundle_holds_items_histories_and_index(tiny_run, tiny_data):
    data, folder = PreparedData.open(tiny_data), Path(tiny_run) / "bundle"
    items = pq.read_table(folder / "items.parquet")
    assert items.equals(data.items.drop_columns([schema.ITEM_TEXT]))
    with pa.memory_map(str(folder / "histories.arrow")) as source:
        histories = pa.ipc.open_file(source).read_all()
    buckets = pa.concat_tables([data.read_bucket(b) for b in range(len(data.bucket_paths))])
    order = histories.column(ORDER).to_pylist()
    assert sorted(users := histories.column(schema.USER_ID).to_pylist()) == [users[row] for row in order]
    histories = histories.drop_columns([ORDER])
    assert histories.schema.equals(buckets.schema)
    assert str(histories.to_pylist()) == str(buckets.to_pylist())  # as text, in which NaN equals NaN
    num_events = pc.sum(pc.list_value_length(histories.column(schema.EVENT_ITEMS))).as_py()
    assert num_events == sum(data.meta["counts"][s] for s in ("train", "valid", "test"))
    recommender = load_recommender(str(folder))
    assert recommender.item_ids == data.items.column(schema.ITEM_ID).to_pylist()
    assert recommender.item_vectors.dtype == np.float32
    assert recommender.item_vectors.shape == (data.num_items, sum(recommender.widths))
    found = set(load_file(folder / "vectors.safetensors"))
    assert found == {"items", "trained", "mean", "scale", "centre", "axes"}


@pytest.mark.parametrize("tune", ["lora", "dora", "ia3", "top", "full"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_tuned_encoder_survives_saving(tiny_encoder, tiny_gpt2, tmp_path, tune, kind):
    path = tiny_encoder if kind == "bert" else tiny_gpt2
    config = dataclasses.replace(load_config(), encoder=EncoderConfig(name=path, tune=tune, rank=2, top_layers=1))
    encoder = TextEncoder(config.encoder, path, tune=True).eval()
    tokens = tokenise(path, ["red shoe", "large hat soft"], max_tokens=8)
    ids, mask = tokens.padded(np.arange(2), 8)
    with torch.no_grad():
        before = encoder(ids, mask)
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        tuned = encoder(ids, mask)
    save_encoder(encoder, str(tmp_path / "adapter"))
    with torch.no_grad():
        again = load_encoder(config, path, str(tmp_path / "adapter"))(ids, mask)
    assert (tuned - before).abs().max() > 1e-3
    torch.testing.assert_close(again, tuned, atol=1e-5, rtol=0)
    assert all(
        Path(name).suffix in (".safetensors", ".json") for name in storage.local_files(str(tmp_path / "adapter"))
    )


def test_an_encoder_without_trained_weights_is_not_saved(tiny_encoder, tmp_path):
    encoder = TextEncoder(EncoderConfig(name=tiny_encoder, tune="freeze"), tiny_encoder, tune=True)
    with pytest.raises(RuntimeError, match="none is trainable"):
        save_encoder(encoder, str(tmp_path / "adapter"))


def test_a_relative_encoder_folder_is_made_absolute(
    tiny_data, tiny_run, tiny_config, tiny_encoder, monkeypatch, capsys
):
    """Workers run in another folder; and the run is the one that the absolute name made."""
    monkeypatch.chdir(Path(tiny_encoder).parent)
    config = dataclasses.replace(
        tiny_config, encoder=dataclasses.replace(tiny_config.encoder, name=Path(tiny_encoder).name)
    )
    assert train(tiny_data, tiny_run, config) == tiny_run
    assert "reused" in capsys.readouterr().out


def test_a_catalogue_that_lost_a_row_is_found_though_its_hash_fits(copy):
    pq.write_table(pq.read_table(copy / "items.parquet").slice(1), copy / "items.parquet")
    files = bundle_format.hash_files(str(copy))
    bundle_format.write_manifest(str(copy), bundle_format.BUNDLE, files=files, model_version="x")
    with pytest.raises(UserError, match=r"items\.parquet has \d+ rows and vectors\.safetensors \d+ vectors"):
        load_recommender(str(copy))
