"""Every option does something: with another value a small training leaves other files or another model, or an error says why.

The keys come from the dataclasses of the options, so a new option without a case fails here. Options of other stages have a
case of their own below, or name the test that shows their effect.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from here import prepare_here
from paths import REPO
from shop import make_dataset

from ctxrec.core.config import Config, load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import PreparedData
from ctxrec.index.builder import build_index
from ctxrec.ingest.pipeline import prepare
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.retriever import load_retriever
from ctxrec.training.driver import train

PLAIN = [
    "encoder.name=", "model.dim=8", "model.history=6", "train.workers=0", "train.zero_stage=0", "train.global_batch_size=8",
    "train.tower_epochs=1", "train.precision=fp32", "train.max_failures=0", "train.refit=false", "train.trackers=[]",
]  # fmt: skip
TEXTS = ["encoder.name=ENCODER", "encoder.top_layers=1"]  # the encoder as it is
TUNED = [*TEXTS, "train.encoder_epochs=1", "train.encoder_lr=0.01"]
LANGUAGE = ["model.backbone=GPT2", "train.encoder_lr=0.01"]
SAMPLED = ["train.loss=sampled_softmax"]
LONG = ["train.tower_epochs=8", "train.eval_every=1"]

# Options of a training: what is set in both trainings, and the other value.
TRAININGS: dict[str, tuple[list[str], str]] = {
    "encoder.name": (TEXTS, ""),
    "encoder.pooling": (TEXTS, "cls"),
    "encoder.tune": (TUNED, "ia3"),
    "encoder.rank": (TUNED, "2"),
    "encoder.alpha": (TUNED, "64"),
    "encoder.top_layers": (TUNED, "2"),
    "encoder.max_tokens": (TEXTS, "3"),
    "model.sources": ([], '["id", "memory"]'),
    "model.dim": ([], "16"),
    "model.content_dim": (TEXTS, "0"),
    "model.backbone": ([], "gru"),
    "model.backbone_rank": (LANGUAGE, "2"),
    "model.layers": ([], "1"),
    "model.heads": ([], "1"),
    "model.dropout": ([], "0.5"),
    "model.history": ([], "2"),
    "model.action_heads": ([], "true"),
    "model.id_buckets": ([], "5"),
    "model.id_dropout": ([], "0.8"),
    "model.text_dropout": (TEXTS, "0.8"),
    "train.preset": ([], "quick"),
    "train.use_gpu": ([], "yes"),
    "train.global_batch_size": ([], "4"),
    "train.tower_epochs": ([], "3"),
    "train.encoder_epochs": (TUNED, "0"),
    "train.tower_lr": ([], "0.01"),
    "train.encoder_lr": (TUNED, "0.002"),
    "train.encoder_phase_tower_lr": (TUNED, "0.02"),
    "train.weight_decay": ([], "0.5"),
    "train.warmup": ([], "0.9"),
    "train.fresh_items": (TUNED, "3"),
    "train.loss": ([], "bce"),
    "train.negatives": (SAMPLED, "3"),
    "train.temperature": ([], "0.5"),
    "train.eval_every": (["train.tower_epochs=4"], "1"),
    "train.patience": ([*LONG, "train.tower_lr=0.2"], "1"),
    "train.valid_users": ([], "2"),
    "train.new_items_cost": (TEXTS, "0.9"),
    "train.refit": ([], "true"),
    "train.precision": ([], "bf16"),
    "train.seed": ([], "7"),
    "train.keep_checkpoints": ([*LONG, "train.checkpoint_every=1"], "5"),
    "train.trackers": ([], '["tensorboard"]'),
    "index.kind": ([], "hnsw"),
}

# Options whose effect another test shows, with the file of the test.
ELSEWHERE = {
    "prepare.buckets": "ingest/test_prepare_folder.py",
    "prepare.min_events": "ingest/test_prepare_folder.py",
    "prepare.cold_items": "ingest/test_prepare_folder.py",
    "encoder.image": "encoder/test_media.py",
    "encoder.audio": "encoder/test_media.py",
    "encoder.token_budget": "system/test_zero.py",
    "encoder.cache_gb": "encoder/test_cache.py",
    "encoder.gradient_checkpointing": "training/test_capacity_plan.py",
    "encoder.gradient_caching": "model/test_two_tower.py",
    "train.workers": "system/test_zero.py",
    "train.also": "system/test_tuning.py",
    "train.cpus_per_worker": "training/test_effective_options.py",
    "train.gpus_per_worker": "tune/test_space.py",
    "train.zero_stage": "system/test_zero.py",
    "train.offload": "system/test_zero.py",
    "train.micro_batch_size": "system/test_zero.py",
    "train.max_failures": "system/test_faults.py",
    "train.not_finite": "system/test_faults.py",
    "train.timeout_s": "system/test_faults.py",
    "train.checkpoint_every": "system/test_zero.py",
    "index.latency_ms": "index/test_faiss_index.py",
    "index.use_gpu": "index/test_faiss_index.py",
    "evaluate.ks": "evaluation/test_offline.py",
    "evaluate.bootstrap": "evaluation/test_offline.py",
    "evaluate.max_baseline_items": "evaluation/test_offline.py",
    "evaluate.batch_size": "retrieval/test_batch_scoring.py",
    "evaluate.actors": "retrieval/test_batch_scoring.py",
    "evaluate.knockouts": "evaluation/test_knockouts.py",
    "rerank.use": "serve/test_second_stage.py",
    "rerank.candidates": "retrieval/test_cross_encoder.py",
    "rerank.encoder": "training/test_effective_options.py",
    "rerank.rank": "reranking/test_rerank_training.py",
    "rerank.max_tokens": "retrieval/test_cross_encoder.py",
    "rerank.epochs": "reranking/test_rerank_training.py",
    "rerank.lr": "reranking/test_rerank_training.py",
    "rerank.batch_size": "system/test_rerank_workers.py",
    "diversity.rules": "retrieval/test_batch_scoring.py",
}

# Options of the list, each over others that it needs, by the lists of the plain training.
LISTS: dict[str, tuple[list[str], str]] = {
    "diversity.strength": ([], "0.9"),
    "diversity.pool": (["diversity.strength=0.9"], "1"),
    "diversity.caps": ([], "{maker = 1}"),
    "diversity.freshness": ([], "5"),
    "diversity.half_life_days": (["diversity.freshness=5"], "0.2"),
    "diversity.date_column": (["diversity.freshness=5"], "price"),
}
# Options of an index, as changes of what it is built or searched with.
INDEXES: dict[str, tuple[list[str], str]] = {
    "index.recall": (["index.kind=ivf"], "0.3"),
    "index.nprobe": (["index.kind=ivf"], "3"),
    "index.ef_search": (["index.kind=hnsw"], "1"),
}


def all_keys() -> set[str]:
    return {
        f"{section.name}.{option.name}"
        for section in dataclasses.fields(Config)
        for option in dataclasses.fields(getattr(Config(), section.name))
    }


def test_every_option_has_a_case():
    cases = [*TRAININGS, *ELSEWHERE, *LISTS, *INDEXES]
    assert sorted(cases) == sorted(all_keys()), "a new option needs a case here, and one that is gone needs none"


@pytest.mark.parametrize("key", ELSEWHERE)
def test_the_other_test_names_the_option(key):
    text = (REPO / "tests" / ELSEWHERE[key]).read_text()
    assert key in text or key.split(".")[1] in text


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("walk")
    spec, made = make_dataset(folder / "shop", num_users=24, num_items=12), str(folder / "data")
    items = pq.read_table(folder / "shop" / "items.parquet")
    pq.write_table(
        items.append_column("maker", pa.array([f"m{n % 3}" for n in range(12)])), folder / "shop" / "items.parquet"
    )
    Path(spec).write_text(
        Path(spec).read_text().replace('categorical = ["category"]', 'categorical = ["category", "maker"]')
    )
    with pytest.MonkeyPatch.context() as patch:
        prepare_here(patch)
        prepare(load_spec(spec), made, load_config())
    return made


@pytest.fixture(scope="module")
def made(data, tiny_encoder, tiny_gpt2, tmp_path_factory) -> Any:
    """Trains with options, once with the same; gives the run, or the text of an error."""
    kept: dict[tuple[str, ...], Path | str] = {}

    def run(*options: str) -> Path | str:
        if options not in kept:
            named = [one.replace("ENCODER", tiny_encoder).replace("GPT2", tiny_gpt2) for one in options]
            out = tmp_path_factory.mktemp("run")
            try:
                train(data, str(out), load_config(None, [*PLAIN, *named]))
                kept[options] = out
            except UserError as error:
                kept[options] = str(error)
        return kept[options]

    return run


def left(run: Path | str) -> Any:
    """What a training leaves: its weights and vectors by content, and the names of its files."""
    if isinstance(run, str):
        return run
    files = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    weights = {name: path.read_bytes() for name, path in files.items() if name.startswith("bundle/")}
    kept = {n: hashlib.sha256(w).hexdigest() for n, w in weights.items() if n.endswith((".safetensors", ".faiss"))}
    names = {name.split("events.out")[0] for name in files}  # of TensorBoard, whose names have a time
    return kept, names


def test_the_same_options_leave_the_same(made):
    again = made("train.seed=0")  # the default
    assert left(made())[0] == left(again)[0], "or the cases below would show nothing"


def _cases() -> list[Any]:
    """Trainings of texts and of several epochs take longer; `make test` leaves them out."""
    quick = ([], SAMPLED)
    return [pytest.param(key, marks=() if TRAININGS[key][0] in quick else (pytest.mark.slow,)) for key in TRAININGS]


@pytest.mark.parametrize("key", _cases())
def test_an_option_of_the_training(made, key):
    base, value = TRAININGS[key]
    plain = left(made(*base))
    assert not isinstance(plain, str), plain
    other = left(made(*base, f"{key}={value}"))
    assert other != plain
    if isinstance(other, str):
        assert key in other, "an error names the option"


def test_offload_that_has_no_effect_is_said(made, caplog):
    """Stage 0 of ZeRO has nothing to offload."""
    assert left(made("train.offload=true"))[0] == left(made())[0]
    assert "train.offload has no effect with train.zero_stage = 0" in caplog.text


@pytest.mark.parametrize("key", LISTS)
def test_an_option_of_the_list(made, key):
    base, value = LISTS[key]

    def lists(*options: str) -> list[list[int]]:
        config = load_config(None, [*base, *options])
        retriever = load_retriever(str(made()), config.index, diversity=config.diversity)
        users = [RawRequest(user_id=f"u{n}", timestamp=1_603_000_000) for n in range(12)]
        requests, _ = retriever.recommender.make_requests(users)
        return [positions.tolist() for positions, _ in retriever.top_k(requests, 5)]

    assert lists(f"{key}={value}") != lists()


@pytest.mark.parametrize("key", INDEXES)
def test_an_option_of_the_index(key):
    base, value = INDEXES[key]
    vectors = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)

    def found(*options: str) -> list[list[int]]:
        index = build_index(vectors, load_config(None, [*base, *options]).index, queries=vectors[:50])
        return index.search(vectors[50:150], 10)[0].tolist()

    assert found() == found() != found(f"{key}={value}")


def test_the_data_of_the_walk_have_all_kinds_of_columns(data):
    features = PreparedData.open(data).features
    assert features.actions and features.item_categories and features.item_numbers and features.context_texts
