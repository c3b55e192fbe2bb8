"""What only a tuned encoder can find, it finds: a signal planted where the untuned encoder sees nothing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from shop import WORDS

from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.run_paths import RunPaths
from ctxrec.ingest.pipeline import prepare
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.training.driver import run_outcome, train
from ctxrec.training.encoder_outcome import PairOutcome

SIGNALS, NOISE = WORDS[:8], WORDS[8:]  # one signal word a group of items
WARM, COLD, USERS = 5, 3, 160  # items of a group with training events; without, for validation and test each
KINDS = [*(["warm"] * WARM), *(["valid"] * COLD), *(["test"] * COLD)]
START = 1_600_000_000
TWO_WORKERS = ["train.workers=2", "train.cpus_per_worker=1", "train.zero_stage=2"]  # later options win


@pytest.fixture
def blind_encoder(tiny_encoder, tmp_path) -> str:
    """The tiny encoder, which takes all signal words for one: they have one embedding."""
    from transformers import AutoTokenizer

    folder = tmp_path / "blind"
    folder.mkdir()
    for file in Path(tiny_encoder).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("word_embeddings.weight")]
    ids = AutoTokenizer.from_pretrained(str(folder)).convert_tokens_to_ids(SIGNALS)
    table = weights[name].copy()
    table[ids] = table[ids[0]]
    save_file(weights | {name: table}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture
def planted(ray_cluster, tmp_path) -> str:
    """A log that can teach the encoder which words matter."""
    return planted_log(tmp_path / "planted", USERS)


def planted_log(folder: Path, num_users: int, *, seed: int = 0) -> str:
    """Users take all warm items of one group, then a cold one for validation and a cold one for test.

    Cold items have no event to learn from, so that nothing but their text can say which group they belong to.
    """
    folder.mkdir()
    rng = random.Random(seed)
    ids = [f"{group}-{kind}{n}" for group in range(len(SIGNALS)) for n, kind in enumerate(KINDS)]
    texts = []
    for item in ids:
        words = [SIGNALS[int(item.split("-")[0])], *rng.sample(NOISE, 2)]
        rng.shuffle(words)
        texts.append(" ".join(words))
    pq.write_table(pa.table({"item_id": ids, "title": texts}), folder / "items.parquet")
    rows = []
    for user in range(num_users):
        own = [item for item in ids if item.startswith(f"{user % len(SIGNALS)}-")]
        taken = []
        for kind, count in (("warm", WARM), ("valid", 1), ("test", 1)):
            taken += rng.sample([item for item in own if kind in item], count)
        rows += [(f"u{user}", item, START + 60 * n) for n, item in enumerate(taken)]
    names = ("user_id", "item_id", "timestamp")
    events = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(events), folder / "events.parquet")
    spec = folder / "dataset.toml"
    spec.write_text(
        'name = "planted"\n[events]\npath = "events.parquet"\n[items]\npath = "items.parquet"\ntext = ["title"]\n'
        '[split]\nstrategy = "last"\n'
    )
    data = str(folder / "data")
    prepare(load_spec(str(spec)), data, load_config(None, []))
    return data


def ndcg_of_cold_items(bundle: str) -> float:
    """Mean NDCG@10 over the groups: which cold items come first for a user who has had the group's warm ones?"""
    recommender = load_recommender(bundle)
    cold = [n for n, item in enumerate(recommender.item_ids) if "-test" in item]
    group_of = np.array([int(recommender.item_ids[n].split("-")[0]) for n in cold])
    found = []
    for group in range(len(SIGNALS)):
        history = [RawEvent(item_id=f"{group}-warm{n}", timestamp=START + n) for n in range(WARM)]
        requests, _ = recommender.make_requests([RawRequest(history=history, timestamp=START + 600)])
        best = np.argsort(-recommender.scores(requests)[0][cold], kind="stable")[:10]
        gains = 1 / np.log2(np.arange(2, 12))
        found.append((gains * (group_of[best] == group)).sum() / gains[:COLD].sum())
    return float(np.mean(found))


def test_a_tuned_encoder_finds_what_a_frozen_one_cannot(planted, blind_encoder, tmp_path):
    options = [f"encoder.name={blind_encoder}", "encoder.tune=full", "encoder.max_tokens=16", "model.dim=16"]
    options += [
        "model.history=8",
        "train.workers=0",
        "train.global_batch_size=16",
        "train.tower_epochs=6",
        "train.encoder_epochs=10",
    ]
    options += ["train.encoder_lr=2e-3", "train.encoder_phase_tower_lr=4e-3", "train.patience=100", "train.refit=false"]
    run = train(planted, str(tmp_path / "run"), load_config(None, [*options, "train.precision=fp32"]))
    frozen, tuned = (ndcg_of_cold_items(f"{run}/{folder}") for folder in ("checkpoints/before", "bundle"))
    # 3 of 24 items are right: 0.27 by chance, 1 at best. Two words with one embedding are one word until it is tuned.
    assert tuned > max(0.7, frozen + 0.3), f"tuned {tuned:.3f}, frozen {frozen:.3f}"


def test_a_log_that_is_too_small_learns_words_from_another_log(planted, blind_encoder, tmp_path):
    """One user a group has nothing to teach; 160 users of other items with the same words have."""
    small = planted_log(tmp_path / "small", len(SIGNALS), seed=1)
    options = [f"encoder.name={blind_encoder}", "encoder.tune=full", "encoder.max_tokens=16", "model.dim=16"]
    options += ["model.history=8", "train.workers=0", "train.tower_epochs=2", "train.encoder_epochs=0"]
    options += ["train.encoder_lr=2e-3", "train.refit=false", "train.precision=fp32"]
    alone = train(small, str(tmp_path / "alone"), load_config(None, options))
    both = train(small, str(tmp_path / "both"), load_config(None, [*options, f'train.also=["{planted}"]']))
    before, after = (ndcg_of_cold_items(f"{run}/bundle") for run in (alone, both))
    assert after > max(0.7, before + 0.3), f"with the other log {after:.3f}, alone {before:.3f}"
    outcome = run_outcome(both)
    assert outcome.is_tuned and "pairs of items of 2 logs lifted validation NDCG@10" in outcome.why
    assert read_run_manifest(both)["encoder"] == "tuned"
    two = train(small, str(tmp_path / "two"), load_config(None, [*options, f'train.also=["{planted}"]', *TWO_WORKERS]))
    one, shared = (PairOutcome.read(RunPaths(run).pair_outcome) for run in (both, two))
    assert shared.kept and (shared.pairs, shared.before) == (one.pairs, pytest.approx(one.before, abs=1e-4))
    assert shared.best == pytest.approx(one.best, abs=0.05)  # 100 steps apart in the order of sums
