"""`--print-effective`: what each option comes to, by log, catalogue and hardware, without a cluster."""

from __future__ import annotations

import tomllib

import pytest
from bucket_files import write_shop
from commands import assert_users_mistake, call

from ctxrec.core.config import Config, load_config
from ctxrec.core.option_origins import names_of
from ctxrec.training.effective_options import AvailableHardware, resolve

SMALL, LARGE = AvailableHardware(2, 0, "this machine"), AvailableHardware(64, 4, "the cluster at x")
# A value that leaves something open, for every such option. Whatever is added needs a line in `resolve`.
OPEN = {
    "prepare.buckets": 0, "encoder.pooling": "auto", "encoder.top_layers": 0, "model.id_buckets": 0,
    "train.use_gpu": "auto", "train.cpus_per_worker": 0.0, "train.precision": "auto", "train.micro_batch_size": 0,
    "train.tower_epochs": 0, "train.encoder_epochs": "auto", "train.loss": "auto", "train.eval_every": 0, "train.checkpoint_every": 0,
    "index.kind": "auto", "index.use_gpu": "auto", "index.nprobe": 0, "index.ef_search": 0, "evaluate.actors": 0,
    "rerank.encoder": "",
}  # fmt: skip


@pytest.fixture
def shop(make_world, tmp_path):
    return write_shop(tmp_path / "data", make_world)[0]


def test_every_option_that_leaves_something_open_is_resolved(shop):
    config = load_config(None, [f"{name}={value}" for name, value in OPEN.items()])
    found = resolve(config, SMALL, shop)
    assert found.keys() >= OPEN.keys() and all(made.why for made in found.values())
    autos = {name for name, value in names_of(Config()).items() if value == "auto"}
    assert autos <= OPEN.keys(), "a new option with 'auto' must say what it comes to"
    counts = shop.meta["counts"]
    assert found["train.tower_epochs"].value == config.for_events(counts["train"]).train.tower_epochs
    assert found["model.id_buckets"].value == shop.num_items and found["train.loss"].value == "softmax"
    assert found["index.kind"].value == "flat"


def test_hardware_counts():
    small, large = (resolve(Config(), machine) for machine in (SMALL, LARGE))
    assert (small["train.use_gpu"].value, large["train.use_gpu"].value) == ("no", "yes")
    assert (small["train.cpus_per_worker"].value, large["train.cpus_per_worker"].value) == (2.0, 64.0)
    assert "the cluster at x has 64 CPUs and 4 GPUs" in large["train.use_gpu"].why
    workers = load_config(None, ["train.workers=4"])
    assert resolve(workers, LARGE)["train.cpus_per_worker"].value == 16.0
    assert resolve(workers, LARGE)["train.micro_batch_size"].value == 16


def test_a_quick_training_has_no_workers():
    quick = load_config(None, ["train.preset=quick", "train.workers=2"])
    assert "the command's own process" in resolve(quick, SMALL)["train.workers"].why
    assert "train.workers" not in resolve(load_config(None, ["train.workers=2"]), SMALL)


def test_what_was_given_is_not_resolved(shop):
    given = ["train.tower_epochs=2", "train.loss=bce", "train.use_gpu=no", "train.precision=fp32", "index.kind=hnsw"]
    found = resolve(load_config(None, given), SMALL, shop)
    assert not found.keys() & {override.split("=")[0] for override in given}


def test_the_command_prints_and_does_nothing_else(shop, tmp_path):
    (tmp_path / "c.toml").write_text("[model]\ndim = 32\n")
    arguments = [
        "--data",
        shop.path,
        "--out",
        str(tmp_path / "run"),
        "--config",
        str(tmp_path / "c.toml"),
        "--set",
        "train.seed=3",
    ]
    ended = call("ctxrec.train", *arguments, "--print-effective")
    assert ended.returncode == 0, ended.stderr
    printed = tomllib.loads(ended.stdout)
    assert printed["model"]["dim"] == 32 and printed["train"]["seed"] == 3 and printed["train"]["tower_epochs"] > 0
    comments = {line.split(" = ")[0]: line.partition("  # ")[2] for line in ended.stdout.splitlines()}
    assert (
        comments["dim"] == str(tmp_path / "c.toml") and comments["seed"] == "--set" and comments["layers"] == "default"
    )
    assert comments["tower_epochs"].startswith("size of the log: ")
    assert not (tmp_path / "run").exists()
    assert_users_mistake(call("ctxrec.train", *arguments[:-1], "train.sed=3", "--print-effective"), "train.sed")
    ended = call("ctxrec.evaluate", "--data", shop.path, "--print-effective")
    assert ended.returncode == 0 and tomllib.loads(ended.stdout)["evaluate"]["ks"] == [5, 10, 20]
