"""Images and sounds of items: files, encoders, and a training that has nothing else to go by."""

from __future__ import annotations

import io
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image

from ctxrec.bundle import format as bundle_format
from ctxrec.core.config import Config, load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.data.posted_rows import posted_table
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.cache import Place
from ctxrec.encoder.media import MediaEncoder, Unreadable, media_tables
from ctxrec.ingest.pipeline import prepare
from ctxrec.retrieval.item_encoder import ItemEncoder
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.training.driver import train

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 230)}
PER_COLOUR, COLD = 14, 4  # items of a colour, and those of them that nobody had in training


@pytest.fixture(scope="module")
def image_encoder(tmp_path_factory) -> str:
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    folder = str(tmp_path_factory.mktemp("vit"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def audio_encoder(tmp_path_factory) -> str:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    folder = str(tmp_path_factory.mktemp("wav2vec2"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {
        "conv_dim": (16, 16),
        "conv_stride": (20, 16),
        "conv_kernel": (20, 16),
        "num_feat_extract_layers": 2,
    }
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions, **positions)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def png(colour: tuple[int, int, int], seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(-20, 20, (24, 30, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def wav(pitch: float, *, rate: int = 16_000, seconds: float = 1.5) -> bytes:
    out = io.BytesIO()
    wave = np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)
    soundfile.write(out, np.stack([wave, wave], 1), rate, format="WAV")
    return out.getvalue()


def test_images_become_vectors_of_their_own_whatever_is_encoded_beside_them(image_encoder):
    encoder = MediaEncoder("image", image_encoder)
    decoded = [encoder.decode(png(colour)) for colour in COLOURS.values()]
    together, alone = encoder.encode(decoded), encoder.encode(decoded[1:2])
    assert together.shape == (3, 16) and encoder.width == 16
    np.testing.assert_allclose(together[1], alone[0], atol=1e-6)
    assert np.abs(together[0] - together[2]).max() > 0.01
    for content in (b"", b"no image", png((1, 2, 3))[:60]):
        with pytest.raises(Unreadable):
            encoder.decode(content)


def test_sounds_are_heard_in_one_channel_at_the_encoders_rate(audio_encoder):
    encoder = MediaEncoder("audio", audio_encoder)
    slow, fast = encoder.decode(wav(440)), encoder.decode(wav(440, rate=44_100))
    assert slow.dtype == fast.dtype == np.float32 and slow.shape == fast.shape == (24_000,)
    np.testing.assert_allclose(slow[1000:-1000], fast[1000:-1000], atol=0.02)
    low, high = encoder.encode([slow, encoder.decode(wav(3000))])
    assert np.abs(low - high).max() > 1e-3
    assert len(encoder.decode(wav(440, seconds=40.0))) == 30 * 16_000
    assert len(encoder.decode(wav(440, seconds=0.01))) == 16_000
    with pytest.raises(Unreadable):
        encoder.decode(b"no sound")


def test_an_encoder_that_is_none_is_a_clear_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"the image encoder at .* cannot be loaded"):
        MediaEncoder("image", str(tmp_path))


SPEC = """
name = "posters"
[events]
path = "events.parquet"
user = "user_id"
item = "item_id"
time = "timestamp"
[items]
path = "items.parquet"
image = "poster"
audio = "sound"
[split]
strategy = "last"
"""


def place() -> Place:
    return Place(0, 1, 0, 1, torch.device("cpu"))


def make_posters(folder, posters: list, sounds: list, ids: list[str] | None = None) -> str:
    """Users who keep to items of one colour; the last of each colour nobody has but in the test split."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = ids or [f"{colour}{n}" for colour in COLOURS for n in range(PER_COLOUR)]
    pq.write_table(pa.table({"item_id": ids, "poster": posters, "sound": sounds}), folder / "items.parquet")
    rng, rows = np.random.default_rng(0), []
    for user in range(72):
        colour = list(COLOURS)[user % 3]
        taken = rng.choice(PER_COLOUR - COLD, 7, replace=False)
        rows += [(f"u{user}", f"{colour}{item}", 1_700_000_000 + 60 * n) for n, item in enumerate(taken)]
    names = ("user_id", "item_id", "timestamp")
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), folder / "events.parquet"
    )
    (folder / "dataset.toml").write_text(SPEC)
    return str(folder / "dataset.toml")


@pytest.fixture(scope="module")
def posters(ray_cluster, tmp_path_factory) -> PreparedData:
    folder = tmp_path_factory.mktemp("posters")
    (folder / "posters").mkdir()
    names = []
    for number, colour in enumerate(c for c in COLOURS.values() for _ in range(PER_COLOUR)):
        (folder / "posters" / f"{number}.png").write_bytes(png(colour, seed=number))
        names.append(f"posters/{number}.png")
    names[1], names[2] = "posters/none.png", None  # one file is missing, one item has none
    names[3] = str(folder / "posters" / "3.png")
    prepare(load_spec(make_posters(folder, names, [None] * len(names))), str(folder / "data"), Config())
    return PreparedData.open(str(folder / "data"))


def test_what_cannot_be_read_counts_as_missing_and_is_named(posters, image_encoder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CTXREC_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, logger="ctxrec")
    monkeypatch.setattr(logging.getLogger("ctxrec"), "propagate", True)
    config = load_config(None, [f"encoder.image={image_encoder}"]).encoder
    made = media_tables(config, posters, str(tmp_path / "a"), place())
    assert list(made) == ["image"] and made["image"].shape == (42, 16)
    assert not made["image"][[1, 2]].any() and made["image"][[0, 3, 4]].any(1).all()
    assert "image: 1 cannot be read and count as missing: item 'red1'" in caplog.text and "none.png" in caplog.text
    shown = made["image"].astype(np.float32)[[n for n in range(42) if n not in (1, 2)]]
    assert (shown**2).sum(1).mean() == pytest.approx(1, abs=0.01)
    monkeypatch.setattr(MediaEncoder, "decode", lambda *_: pytest.fail("what is on disk was computed again"))
    again = media_tables(config, posters, str(tmp_path / "b"), place())
    np.testing.assert_array_equal(again["image"], made["image"])


def test_contents_in_the_table_and_rejected_rows(ray_cluster, audio_encoder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CTXREC_CACHE", str(tmp_path / "cache"))
    ids = ["red0", "red1", "red1", "red2", "red3"]
    sounds = [wav(300), wav(900), wav(5000), None, b""]
    posters = [{"bytes": png(c), "path": None} for c in [*COLOURS.values(), (9, 9, 9)]] + [None]
    spec = make_posters(tmp_path / "set", posters, sounds, ids)
    prepare(load_spec(spec), str(tmp_path / "data"), Config())
    data = PreparedData.open(str(tmp_path / "data"))
    assert data.meta["counts"]["rejects"] == {"item table: duplicate id": 1}
    items, contents = data.media("image")
    assert items.tolist() == [0, 1, 2] and contents == [posters[n]["bytes"] for n in (0, 1, 3)]
    made = media_tables(
        load_config(None, [f"encoder.audio={audio_encoder}"]).encoder, data, str(tmp_path / "t"), place()
    )
    assert made["audio"][:2].any(1).all() and not made["audio"][2:].any()
    assert "image column 'poster': 3 items have one" in data.meta["notes"]


def test_nothing_that_can_be_read_is_an_error(ray_cluster, image_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("CTXREC_CACHE", str(tmp_path / "cache"))
    spec = make_posters(tmp_path / "set", ["a.png", "b.png", None], [None] * 3, ["red0", "red1", "red2"])
    prepare(load_spec(spec), str(tmp_path / "data"), Config())
    config = load_config(None, [f"encoder.image={image_encoder}"]).encoder
    with pytest.raises(
        UserError, match=r"none of the 2 files of the image column can be read .*red0.*item file's folder"
    ):
        media_tables(config, PreparedData.open(str(tmp_path / "data")), str(tmp_path / "t"), place())


def test_posters_alone_tell_what_a_user_takes_next(posters, image_encoder, tmp_path):
    options = [
        f"encoder.image={image_encoder}",
        "encoder.name=",
        'model.sources=["text", "media", "features", "context", "user"]',
    ]
    options += ["model.dim=16", "model.history=10", "train.workers=0", "train.global_batch_size=16"]
    options += ["train.tower_epochs=8", "train.refit=false", "train.tower_lr=0.01"]
    run = train(posters.path, str(tmp_path / "run"), load_config(None, options))
    recommender = load_recommender(f"{run}/bundle")
    for colour in COLOURS:
        history = [RawEvent(item_id=f"{colour}{n}", timestamp=1_700_000_000 + n) for n in (4, 5, 6)]
        requests, _ = recommender.make_requests([RawRequest(history=history, timestamp=1_700_000_100)])
        best = np.argsort(-recommender.scores(requests)[0])[: PER_COLOUR - 2]
        names = [recommender.item_ids[item] for item in best]
        assert sum(name.startswith(colour) for name in names) >= PER_COLOUR - 4, names
        assert any(name == f"{colour}{PER_COLOUR - 1 - n}" for name in names for n in range(COLD)), (
            "a new item's poster"
        )

    assert bundle_format.load_media(f"{run}/bundle")["image"].shape == (42, 16)
    rows = posted_table([{"item_id": "green5"}, {"item_id": "new"}], recommender.spec)
    made = ItemEncoder(f"{run}/bundle", recommender).encode(rows)
    known = recommender.item_position["green5"]
    np.testing.assert_allclose(made.vectors[0], recommender.vectors[known], atol=1e-5)
    assert np.abs(made.vectors[1] - recommender.vectors[known]).max() > 0.1
