"""Options that are said to have no effect have none, and all others are read: held by trainings, not by a list of names."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path

import pytest
from here import prepare_here
from shop import make_dataset

from ctxrec.core.config import Config, EncoderConfig, ModelConfig, TrainConfig, load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.option_origins import names_of
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest.pipeline import prepare
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.training.driver import train
from ctxrec.training.effective_options import AvailableHardware, resolve
from ctxrec.training.unused_options import set_in_vain, unused_options, with_defaults_for_unused

SMALL = [
    "encoder.name=ENCODER", "encoder.top_layers=1", "model.dim=8", "model.history=6", "train.workers=0",
    "train.zero_stage=0", "train.global_batch_size=8", "train.tower_epochs=1", "train.precision=fp32", "train.refit=false",
]  # fmt: skip
# Another value of every option that some rule calls unused.
OTHER = {
    "encoder.name": "ENCODER", "encoder.image": "nowhere", "encoder.audio": "nowhere", "encoder.pooling": "cls",
    "encoder.tune": "ia3", "encoder.rank": "2", "encoder.alpha": "64",
    "encoder.top_layers": "2", "encoder.cache_gb": "0", "encoder.gradient_checkpointing": "true",
    "encoder.gradient_caching": "true", "encoder.max_tokens": "3", "encoder.token_budget": "999", "model.dim": "16",
    "model.content_dim": "7", "model.backbone": "gru", "model.backbone_rank": "2", "model.layers": "1", "model.heads": "4",
    "model.dropout": "0.5", "model.history": "2", "model.action_heads": "true", "model.id_buckets": "5",
    "model.id_dropout": "0.8", "model.text_dropout": "0.8", "train.workers": "4", "train.cpus_per_worker": "2",
    "train.gpus_per_worker": "0.5", "train.zero_stage": "3", "train.offload": "true", "train.global_batch_size": "4",
    "train.micro_batch_size": "2", "train.tower_epochs": "3", "train.encoder_epochs": "3", "train.tower_lr": "0.01",
    "train.encoder_lr": "0.02", "train.encoder_phase_tower_lr": "0.02", "train.weight_decay": "0.5", "train.warmup": "0.9",
    "train.fresh_items": "3", "train.also": '["nowhere"]', "train.loss": "bce", "train.negatives": "3", "train.temperature": "0.5",
    "train.eval_every": "1", "train.patience": "1", "train.new_items_cost": "0.9", "train.refit": "true",
    "train.precision": "bf16", "train.max_failures": "9", "train.not_finite": "skip", "train.timeout_s": "99",
    "train.checkpoint_every": "1", "train.keep_checkpoints": "5", "train.trackers": '["wandb"]', "index.latency_ms": "9",
    "index.recall": "0.5", "index.nprobe": "3", "index.ef_search": "7",
}  # fmt: skip
TUNED = ["train.encoder_epochs=1", "train.encoder_lr=0.01"]
CASES = {
    "quick": ["train.preset=quick"],
    "a flat index": ["train.preset=quick", "index.kind=flat"],
    "no encoder": ["encoder.name=", "train.loss=softmax"],
    "no text and no id": ['model.sources=["features", "context", "user", "memory"]', "train.use_gpu=no"],
    "no memory": ['model.sources=["id", "features"]', "encoder.name="],
    "no encoder phase": ["train.encoder_epochs=0"],
    "frozen": ["encoder.tune=freeze"],
    "ia3": [*TUNED, "encoder.tune=ia3"],
    "top": [*TUNED, "encoder.tune=top"],
    "full": [*TUNED, "encoder.tune=full"],
    "a language model": ["model.backbone=GPT2", "encoder.name="],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("vain")
    spec, made = make_dataset(folder / "shop", num_users=24, num_items=12), str(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        prepare_here(patch)
        prepare(load_spec(spec), made, load_config())
    return made


@pytest.fixture(scope="module")
def options_of(tiny_encoder, tiny_gpt2):
    def of(*given: str) -> Config:
        named = [one.replace("ENCODER", tiny_encoder).replace("GPT2", tiny_gpt2) for one in (*SMALL, *given)]
        return load_config(None, named)

    return of


def _left(run: Path) -> dict[str, object]:
    """The weights, vectors and index of a bundle by content, and the scores that it gives."""
    files = [
        path for path in (run / "bundle").rglob("*") if path.suffix in (".safetensors", ".faiss", ".arrow", ".parquet")
    ]
    model = load_recommender(str(run / "bundle"))
    asked = [RawRequest(user_id=f"u{n}", timestamp=1_603_000_000) for n in range(12)]
    scores = model.scores(model.make_requests(asked)[0]).tolist()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} | {"scores": scores}


# The case quick is in the unit tier; those of full trainings take longer, and `make test` leaves most of them out.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if "quick" in CASES[n][0] else pytest.mark.slow) for n in CASES]
)
def test_all_unused_options_together_change_nothing(data, options_of, tmp_path, name, caplog):
    given = CASES[name]
    plain = options_of(*given)
    unused = [one for one in unused_options(plain) if not one.startswith("diversity.")]
    changed = options_of(*given, *(f"{one}={OTHER[one]}" for one in unused))
    before, after = names_of(plain), names_of(changed)
    assert all(before[one] != after[one] for one in unused), "each of them has another value"
    train(data, str(tmp_path / "plain"), plain)
    caplog.clear()
    train(data, str(tmp_path / "changed"), changed)
    assert _left(tmp_path / "changed") == _left(tmp_path / "plain")
    given_anew = [one for one in unused if after[one] != names_of(Config())[one]]
    assert given_anew and all(f"{one} = " in caplog.text for one in given_anew), "the log names what is set in vain"


def test_a_quick_training_reads_all_other_options(data, options_of, tmp_path, monkeypatch):
    plain, read = options_of("train.preset=quick"), set[str]()
    monkeypatch.setenv("CTXREC_CACHE", str(tmp_path / "cache"))  # without text vectors of an earlier training
    for section, kind in (("encoder", EncoderConfig), ("model", ModelConfig), ("train", TrainConfig)):

        def record(self, name, section=section):
            copies = ("dataclasses", "copy", "ctxrec.core.training_options")  # which read all of them
            if sys._getframe(1).f_globals["__name__"] not in copies:
                read.add(f"{section}.{name}")
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", record)
    train(data, str(tmp_path / "run"), plain)
    monkeypatch.undo()
    used = {
        name
        for name in names_of(plain).keys() - unused_options(plain).keys()
        if name.split(".")[0] in ("encoder", "model", "train")
    }
    assert used <= read, f"neither read nor said to be unused: {sorted(used - read)}"
    assert {"encoder.pooling", "model.sources", "train.seed", "train.valid_users", "train.new_items_cost"} <= used


def test_print_effective_marks_them(data, options_of):
    quick = options_of("train.preset=quick", "train.tower_epochs=0")
    found = resolve(quick, AvailableHardware(2, 0, "this machine"), PreparedData.open(data))
    unused = unused_options(quick)
    assert "train.tower_epochs" in unused and found["train.tower_epochs"].value is None
    assert {name: f"not used: {why}" for name, why in unused.items()} == {name: found[name].why for name in unused}


def test_what_is_set_in_vain_is_told_by_reason():
    given = ["train.preset=quick", "train.tower_lr=0.1", "model.dim=32", "train.workers=2", "train.seed=3"]
    assert set_in_vain(load_config(None, given)) == [
        "no effect on this training: train.workers = 2, because a quick training runs in the command's own process",
        "no effect on this training: model.dim = 32, train.tower_lr = 0.1, because a quick training has no towers",
    ]
    assert set_in_vain(Config()) == [] == set_in_vain(with_defaults_for_unused(load_config(None, given)))
    assert with_defaults_for_unused(load_config(None, given)).train.seed == 3


def test_a_training_that_sets_nothing_in_vain_says_nothing_of_it(data, options_of, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(data, str(tmp_path / "run"), with_defaults_for_unused(options_of("train.preset=quick")))
    assert "no effect" not in caplog.text and "NDCG@10" in caplog.text
