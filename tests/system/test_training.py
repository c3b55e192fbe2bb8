"""Training on real Ray Train workers with real DeepSpeed: equality, adapters, resume, jobs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bucket_files import write_shop
from safetensors.numpy import load_file
from shop import make_dataset
from test_layers import REFUSE
from trainings import (
    REPO,
    Nodes,
    assert_bundle_gives_its_item_vectors_again,
    assert_same_training,
    command_env,
    done_so_far,
    kill_command,
    read_log,
    same_to_the_digit,
    start,
    submit_job,
    wait_for_silence,
    wait_until,
    with_train,
)

from ctxrec.bundle.format import check_bundle
from ctxrec.core import schema, storage
from ctxrec.core.config import load_config, to_toml
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import Stopped, UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import validation_requests
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.index.topk import top_k
from ctxrec.ingest.pipeline import prepare
from ctxrec.metrics.ranking import request_metrics
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.pre_validation import recommender_before_validation
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.training.driver import describe_run, train
from ctxrec.training.worker_setup import describe_choices

BY_CHANCE = 0.15  # NDCG@10 of one target among the 30 of 40 items, more or less, that a user has not had


def with_workers(config, workers: int, stage: int, **options):
    changed = dataclasses.replace(config.train, workers=workers, zero_stage=stage, **options)
    return dataclasses.replace(config, train=changed)


@dataclasses.dataclass(frozen=True)
class Submitted:
    """A training that was submitted as a job, and what the command printed."""

    run: Path
    ended: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def submitted(tiny_data, tiny_config, tmp_path_factory) -> Submitted:
    """`ray job submit --working-dir . -- python -m ctxrec.train ...` on two workers, ZeRO-3.

    The cluster is the test's own: agents of Ray listen at one port unless told, so another cluster on this machine can
    leave the one of the other tests without an agent that takes jobs.
    """
    folder = tmp_path_factory.mktemp("submitted")
    (folder / "config.toml").write_text(to_toml(with_workers(tiny_config, 2, 3)))
    with Nodes(folder, head_cpus=2) as nodes:
        submit = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--working-dir", str(REPO)]
        submit += ["--address", f"http://127.0.0.1:{nodes.dashboard}", "--"]
        submit += ["python", "-m", "ctxrec.train", "--data", tiny_data, "--out", str(folder / "run")]
        submit += ["--config", str(folder / "config.toml"), "--profile", "--set", "train.workers=[1,2]"]
        ended = submit_job(submit, env=command_env() | nodes.env, timeout_s=900)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return Submitted(folder / "run", ended)


def test_a_training_in_one_process_needs_no_ray(tiny_data, tiny_config, tiny_run, tmp_path):
    """Where Ray cannot be imported, all phases run and make the same model."""
    (tmp_path / "config.toml").write_text(to_toml(tiny_config))
    (tmp_path / "job.py").write_text(
        "from ctxrec.core.config import load_config\nfrom ctxrec.training.driver import train\n"
        f"train({tiny_data!r}, {str(tmp_path / 'run')!r}, load_config({str(tmp_path / 'config.toml')!r}))\n"
    )
    env = command_env() | {"PYTHONPATH": f"{REPO}:{tmp_path}"}
    command = [sys.executable, "-c", REFUSE, "ray", "job"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(str(tmp_path / "run"), tiny_run)


@pytest.mark.slow  # test_zero.py holds every stage to one curve step by step, and ZeRO-3 goes through Ray below
@pytest.mark.parametrize("stage", [1, 2])
def test_two_workers_equal_one_process(tiny_data, tiny_config, tiny_run, tmp_path, stage):
    run = train(tiny_data, str(tmp_path / "run"), with_workers(tiny_config, 2, stage))
    assert_same_training(run, tiny_run)


@pytest.mark.parametrize(
    ("workers", "stage"),
    [(0, 0), *(pytest.param(*ways, marks=pytest.mark.slow) for ways in ((1, 0), (2, 2), (2, 3)))],
)
def test_bfloat16_follows_float32(tiny_data, tiny_config, tiny_run, tmp_path, workers, stage):
    """The same losses but for what is rounded, on any workers; what is kept is float32 either way.

    The refit's number of epochs is chosen by validation, which rounding may turn.
    """
    run = train(tiny_data, str(tmp_path / "run"), with_workers(tiny_config, workers, stage, precision="bf16"))
    ours, theirs = ([line for line in read_log(r) if line["phase"] != "refit"] for r in (run, tiny_run))
    assert [(a["phase"], a["step"]) for a in ours] == [(b["phase"], b["step"]) for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        if "loss" in b:
            assert a["loss"] == pytest.approx(b["loss"], rel=0.02)
    towers = load_file(Path(run) / "bundle" / "towers.safetensors")
    assert {value.dtype.name for value in towers.values()} == {"float32"}


def test_zero3_on_two_workers_equals_one_process(submitted, tiny_run):
    assert_same_training(str(submitted.run), tiny_run)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_gradient_caching_equals_one_process_without(tiny_data, tiny_config, tiny_run, tmp_path, stage):
    encoder = dataclasses.replace(tiny_config.encoder, gradient_caching=True, token_budget=64)  # several passes a step
    config = with_workers(dataclasses.replace(tiny_config, encoder=encoder), 2, stage)
    assert_same_training(train(tiny_data, str(tmp_path / "run"), config), tiny_run)


def test_the_adapter_of_zero3_is_whole_and_reloads_to_the_same_scores(submitted, tiny_data):
    run = str(submitted.run)
    adapter = load_file(Path(run) / "bundle" / "adapter" / "adapter_model.safetensors")
    assert adapter and all(value.size > 0 for value in adapter.values())
    entries = [entry["valid_ndcg@10"] for entry in read_log(run) if entry["phase"] == "encoder"]
    assert max(entries) > entries[0], "else what was tuned is left out, and the rest says nothing"
    moved = {name: np.abs(value).max() for name, value in adapter.items() if "lora_B" in name}  # B starts at zero
    assert moved and min(moved.values()) > 1e-4, moved
    items = PreparedData.open(tiny_data).items
    assert_bundle_gives_its_item_vectors_again(f"{run}/bundle", items)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_a_bundle_keeps_its_action_heads(submitted):
    """Trained under ZeRO-3, loaded again, and asked."""
    bundle = str(submitted.run / "bundle")
    stored = load_file(f"{bundle}/towers.safetensors")["actions.own_ADD"]
    assert stored.shape == (2, 16, 16) and all(head.any() for head in stored)
    recommender = load_recommender(bundle)
    history = [RawEvent("i4", "view", 1_699_990_000), RawEvent("i8", "buy", 1_699_995_000)]
    requests, _ = recommender.make_requests([RawRequest(timestamp=1_700_000_000, history=history)])
    query = recommender.queries(requests)[0, :16]  # the blend scales it by how far the request's scores spread
    # By hand: the shared query and two projections of it, by the weights of the spec (0.5 and 1).
    shares = dict(zip(recommender.features.actions, recommender._batcher.action_mix.tolist(), strict=True))
    assert shares == pytest.approx({"view": 1 / 3, "buy": 2 / 3})
    with torch.no_grad():
        recommender._towers.actions.own_ADD.zero_()
    shared = recommender.queries(requests)[0, :16]
    mixed = sum(share * head for share, head in zip(shares.values(), stored, strict=True))
    expected = shared + shared @ mixed
    np.testing.assert_allclose(unit(query), unit(expected), rtol=1e-4, atol=1e-5)
    assert not np.allclose(unit(query), unit(shared), rtol=1e-3)


def test_run_folder_has_what_the_contract_says(tiny_run):
    names = {path.name for path in Path(tiny_run).iterdir()}
    assert {"config.toml", "manifest.json", "train_log.jsonl", "checkpoints", "bundle"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    manifest = json.loads((Path(tiny_run) / "manifest.json").read_text())
    assert manifest["packages"]["ray"] and manifest["data_fingerprint"] and manifest["files"]
    check_bundle(f"{tiny_run}/bundle", scratch="/tmp")
    # Only a training whose tuned encoder is kept has the models before and after that phase to compare.
    kept = [folder for folder in ("before", "tuned") if (Path(tiny_run) / "checkpoints" / folder).exists()]
    assert kept == (["before", "tuned"] if manifest["encoder"] == "tuned" else []) and manifest["encoder_reason"]
    for folder in kept:
        check_bundle(f"{tiny_run}/checkpoints/{folder}", scratch="/tmp")
    pickles = [p for p in Path(tiny_run).rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl")]
    assert not pickles


def test_the_figure_that_is_told_is_that_of_the_exported_blend(tiny_run, tiny_data):
    """Of the model before the refit, as the validation events judged it; the towers alone have another figure."""
    data = PreparedData.open(tiny_data)
    requests = validation_requests(data, 10_000)
    model = recommender_before_validation(tiny_run, data)
    lists = top_k(model.scores(requests), 10, requests.seen())
    found = request_metrics(lists, requests.target_offsets, requests.target_items, [10])["ndcg@10"].mean()
    told = json.loads((Path(tiny_run) / "manifest.json").read_text())["valid_ndcg@10"]
    assert told == pytest.approx(found, rel=1e-4)
    assert abs(told - max(line["valid_ndcg@10"] for line in read_log(tiny_run) if "valid_ndcg@10" in line)) > 1e-3
    assert f"; validation NDCG@10 {told:.4f}" in describe_run(tiny_run)


def test_a_log_without_validation_events_has_all_sources_too(ray_cluster, tiny_config, tmp_path):
    spec = Path(make_dataset(tmp_path / "shop"))
    spec.write_text(spec.read_text() + "valid = 0\n")
    data = str(tmp_path / "data")
    prepare(load_spec(str(spec)), data, tiny_config)
    run = train(data, str(tmp_path / "run"), with_train(tiny_config, tower_epochs=1, encoder_epochs=0, workers=0))
    assert "valid_ndcg@10" not in read_log(run)[-1]
    blend = load_recommender(f"{run}/bundle").blend
    assert blend.sources[0] == "sequence" and {"text", "popularity", "next"} <= set(blend.sources)


def test_a_tuning_that_gains_nothing_leaves_the_model_as_it_was(ray_cluster, tiny_data, tiny_config, tmp_path):
    still = {"encoder_lr": 1e-12, "encoder_phase_tower_lr": 1e-12}
    config = with_train(tiny_config, tower_epochs=1, encoder_epochs=1, refit=False, workers=0, **still)
    run = train(tiny_data, str(tmp_path / "run"), config)
    began, *later = [line["valid_ndcg@10"] for line in read_log(run) if line["phase"] == "encoder"]
    assert max(later) <= began
    before, after = (load_file(f"{run}/checkpoints/best-{phase}.safetensors") for phase in ("towers", "encoder"))
    for name in [name for name in before if name.startswith("towers.")]:
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=1e-6)
    assert not (Path(run) / "checkpoints" / "before").exists(), "there is nothing to compare"
    manifest = json.loads((Path(run) / "manifest.json").read_text())
    assert manifest["encoder"] == "frozen" and "gained nothing" in manifest["encoder_reason"]


def test_a_log_that_cannot_teach_the_encoder_has_no_phase_for_it(make_world, tiny_encoder, tmp_path):
    """Each item has one training event."""
    data, worlds = write_shop(tmp_path / "data", make_world)
    pq.write_table(worlds[0].table, tmp_path / "data" / schema.ITEMS)
    meta = tmp_path / "data" / schema.META
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"fingerprint": "written by hand"}))
    options = [f"encoder.name={tiny_encoder}", "encoder.top_layers=1", "model.dim=16", "train.workers=0"]
    options += ["train.tower_epochs=1", "train.refit=false", "train.precision=fp32"]
    run = train(data.path, str(tmp_path / "run"), load_config(None, options))
    manifest = json.loads((Path(run) / "manifest.json").read_text())
    why = "the log has 1.0 training events an item, and tuning needs 10 or more"
    assert (manifest["encoder"], manifest["encoder_reason"]) == ("frozen", why)
    assert f"encoder: frozen, because {why}" in describe_run(run)
    assert {line["phase"] for line in read_log(run)} == {"towers"}


def test_finished_run_is_reused_and_another_config_is_refused(tiny_data, tiny_run, tiny_config, capsys):
    assert train(tiny_data, tiny_run, tiny_config) == tiny_run
    assert "reused" in capsys.readouterr().out
    other = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, dim=32))
    with pytest.raises(UserError, match="another configuration"):
        train(tiny_data, tiny_run, other)


def test_too_many_workers_is_a_clear_error(tiny_data, tiny_config, tmp_path):
    greedy = dataclasses.replace(tiny_config.train, workers=8, cpus_per_worker=4.0)
    with pytest.raises(UserError, match="the cluster has"):
        train(tiny_data, str(tmp_path / "run"), dataclasses.replace(tiny_config, train=greedy))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["encoder.name="],  # no text encoder at all
        ["train.loss=bce", "train.negatives=8", "model.backbone=gru", "encoder.tune=freeze"],
        ["train.loss=sampled_softmax", "train.negatives=16", "encoder.tune=top", "encoder.top_layers=1"],
    ],
)
def test_other_configurations_train(ray_cluster, tiny_data, tiny_encoder, tmp_path, overrides):
    base = [f"encoder.name={tiny_encoder}", "model.dim=16", "model.history=10", "train.workers=0"]
    base += ["train.global_batch_size=16", "train.tower_epochs=60", "train.encoder_epochs=1", "train.patience=60"]
    run = train(tiny_data, str(tmp_path / "run"), load_config(None, [*base, *overrides]))
    found = [line["valid_ndcg@10"] for line in read_log(run) if line["phase"] == "towers"]
    assert max(found) > BY_CHANCE + 0.1, "it learns what is planted: users walk through one group of items in order"
    assert np.isfinite(load_recommender(f"{run}/bundle").item_vectors).all()


def test_a_stopped_training_goes_on_and_ends_where_an_undisturbed_one_ends(tiny_data, tiny_config, tiny_run, tmp_path):
    """Stopped as by SIGTERM in the middle of the towers' phase; the same training again; equal to the digits of the log."""
    config, run = with_workers(tiny_config, 0, 0), tmp_path / "run"
    stop = Path(RunPaths(str(run)).checkpoints) / "stop"
    storage.write_text(str(stop), "")  # of an earlier attempt

    def stop_before_the_first_step() -> None:
        while stop.exists():
            time.sleep(0.02)
        storage.write_text(str(stop), "")  # the workers have not yet started

    stopper = threading.Thread(target=stop_before_the_first_step, daemon=True)
    stopper.start()
    with pytest.raises(Stopped, match="stopped as asked, and saved"):
        train(tiny_data, str(run), config)
    assert not (run / "manifest.json").exists()
    assert (0, 0) < done_so_far(run) < (1, 0), "in the middle of the first phase"
    train(tiny_data, str(run), config)
    same_to_the_digit(run, tiny_run)


@pytest.mark.slow  # a stopped training goes on above, and test_zero.py resumes from checkpoints of every stage
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_training_goes_on_and_ends_where_an_undisturbed_one_ends(
    tiny_data, tiny_config, tiny_run, tmp_path, precision
):
    """SIGKILL in the middle of the towers' phase; the same training again; equal to the bit of the log's digits."""
    config = with_workers(tiny_config, 1, 0, precision=precision)
    run, log = tmp_path / "killed", tmp_path / "log"
    # On a cluster of its own: Ray would keep the CPUs of a killed training from elastic ones for three minutes.
    first = start(config, tiny_data, run, log)
    try:
        wait_until(first, run, log, beyond=(0, 0))
    finally:
        kill_command(first)
    assert not (run / "manifest.json").exists()
    wait_for_silence(run)
    *lines, last = (run / "train_log.jsonl").read_text().splitlines()
    last = json.dumps(json.loads(last) | {"seconds": 5000.0})
    (run / "train_log.jsonl").write_text("\n".join([*lines, last]) + "\n")
    gone_on = done_so_far(run)
    assert gone_on > (0, 0)
    train(tiny_data, str(run), config)
    assert json.loads((run / "manifest.json").read_text())["train_seconds"] > 5000, "what came before the kill counts"
    undisturbed = tiny_run if precision == "fp32" else train(tiny_data, str(tmp_path / "undisturbed"), config)
    same_to_the_digit(run, undisturbed)


def test_ray_job_submit(submitted):
    done, run = submitted.ended, submitted.run
    load_recommender(str(run / "bundle"))
    assert "training on 2 workers" in done.stdout, "as many as the cluster has room for"
    assert "chosen: fp32 on cpu, ZeRO-3; softmax over 40 items" in done.stdout
    printed = done.stdout + done.stderr
    for noise in (
        "constructor arguments",
        "Loading faiss",
        "built successfully",
        "FutureWarning",
        "step/s]",
        "Token auth",
    ):
        assert noise not in printed
    for phase in ("towers", "encoder", "refit"):
        assert len([line for line in printed.splitlines() if f"{phase}: " in line and " steps in " in line]) == 1
    lines = read_log(str(run))
    assert lines[-1]["phase"] == "refit" and lines[-1]["eta_s"] == 0
    figures = {"loss", "lr", "events_per_s", "tokens_per_s", "padding", "distinct_items", "utilisation", "eta_s"}
    assert figures <= {name for line in lines if line["phase"] == "encoder" for name in line}
    table = (run / "profile" / "summary.txt").read_text()
    assert all(line in done.stdout for line in table.splitlines())
    assert table.split()[3:6] == ["towers", "encoder", "refit"]
    shares = {
        row.split()[0]: [float(cell.rstrip("%")) for cell in row.split()[2::2]] for row in table.splitlines()[1:-1]
    }
    assert shares["encode"][1] > 0 and shares["encode"][0] == 0 and shares["communication"][0] > 0
    assert (run / "profile" / "encoder.json.gz").exists()


def test_what_was_chosen_is_said(tiny_config):
    small = {"device": torch.device("cpu"), "num_items": 40, "cut": True, "encoded": True}
    assert describe_choices(with_workers(tiny_config, 2, 3), dtype=torch.float32, **small) == (
        "fp32 on cpu, ZeRO-3; softmax over 40 items (full up to 50,000); lora in the top 1 layers, states below them from "
        "disk; 64 items of a step fresh"
    )
    large = {"device": torch.device("cuda"), "num_items": 10**6, "cut": False, "encoded": False}
    assert describe_choices(with_workers(tiny_config, 2, 3), dtype=torch.bfloat16, **large) == (
        "bf16 on cuda, ZeRO-3; sampled_softmax over 1,000,000 items (full up to 50,000)"
    )


def test_missing_encoder_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        resolve_encoder("/no/such/encoder", str(tmp_path))
