"""Every way to tune under every ZeRO stage, with and without offload, on one and two workers: one curve of losses.

Gradient accumulation is held to the same: with frozen text vectors, micro-batches are one batch.

The phases' own loop (`PhaseRun`) with real DeepSpeed over gloo, without Ray, so that all combinations fit a test:
`python test_zero.py RANK WORLD FOLDER` runs what FOLDER/job.json lists and writes FOLDER/WORLD-RANK.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from paths import REPO, TESTS
from ranks import run_ranks
from safetensors.torch import load_file

from ctxrec.core import storage
from ctxrec.core.config import Config, load_config
from ctxrec.encoder.cache import Place
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.model.network import Network
from ctxrec.model.two_tower import Towers
from ctxrec.training import checkpoint, deepspeed_engine
from ctxrec.training.export import Chosen
from ctxrec.training.phase_setup import Setup
from ctxrec.training.phase_trainer import PhaseRun, Progress, Resumed
from ctxrec.training.window_sampler import TrainStream
from ctxrec.training.worker_setup import set_up

CPU = torch.device("cpu")
PLAIN = [(0, False), (1, False), (2, False), (3, False)]  # ZeRO stage, offload
OFFLOADED = [(1, True), (2, True), (3, True)]
TUNES = ["lora", "dora", "ia3", "top", "full"]
AT_ONCE = 8  # windows of a micro-batch over all workers
RTOL = 1e-4  # of a loss, between ways to compute the same
ATOL = 1e-3  # of a weight of the towers at the end of their phase, whose steps change it by up to 4e-3 each
EPOCHS, HALF = 2, 3  # steps before the checkpoint that others go on from


class Watched(PhaseRun):
    """A phase that keeps its losses, and leaves a checkpoint in a folder instead of with Ray Train."""

    def watch(self, folder: str) -> None:
        self.losses, self.refreshed, self._folder = [], [], folder

    def _step(self, step) -> float:
        loss = super()._step(step)
        self.losses.append(self._average(loss))
        return loss

    def _refresh(self) -> None:
        if not self.table_is_fresh:
            self.refreshed.append(self.progress.step)
        super()._refresh()

    def _checkpoint(self) -> None:
        self._refresh()
        weights, moments = checkpoint.full_weights(self.engine), checkpoint.full_moments(self.engine)
        if self.setup.worker.rank == 0 and self.progress.step == HALF:
            state = {"progress": self.progress.to_dict(), "optimizer_step": checkpoint.optimizer_step(self.engine)}
            os.makedirs(self._folder)
            checkpoint.save(self._folder, weights, moments, state)


def run_phase(setup: Setup, folder: str, best: str, resume: str | None, *, phase: str = "encoder") -> Watched:
    """A phase, run to its end, from the checkpoint in `resume` on if there is one."""
    config = setup.config.train
    torch.manual_seed(config.seed)
    towers = Towers(setup.config.model, setup.catalogue.shape, temperature=config.temperature)
    texts, encoder = setup.catalogue.texts, None
    if phase == "encoder":
        encoder = TextEncoder(setup.config.encoder, texts.encoder_path, tune=True, cut=texts.tokens.states is not None)
    stream = TrainStream(
        setup.log.data, setup.log.scan, setup.log.batcher, global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size, seed=config.seed, rank=setup.worker.rank, world=setup.worker.world,
    )  # fmt: skip
    network = Network(towers, encoder)
    run = Watched(setup, phase, network, stream, EPOCHS, best, Chosen(setup.catalogue.frozen, None, 1.0), None)
    run.validator = None
    run.watch(folder)
    found = None
    if resume is not None:
        state = storage.read_json(os.path.join(resume, checkpoint.STATE))
        found = Resumed(Progress(**state["progress"]), resume, state["optimizer_step"])
    run.start(found)
    run.train()
    return run


def accumulated(base: Config, data: str, folder: str) -> list[list[float]]:
    """Losses of the towers' phase, whose text vectors are frozen, with a step's windows at once and in four parts."""
    found = []
    for at_once in (16, 4):
        options = dataclasses.replace(base.train, workers=1, micro_batch_size=at_once)
        with tempfile.TemporaryDirectory() as scratch:
            config, place = dataclasses.replace(base, train=options), Place(0, 1, 0, 1, CPU)
            setup = set_up(config, data, f"{folder}/accumulated-{at_once}-run", scratch, place)
            best = f"{folder}/accumulated-{at_once}.safetensors"
            found.append(run_phase(setup, f"{scratch}/checkpoint", best, None, phase="towers").losses)
    return found


def towers_stages(stages: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """All stages without offload, as a phase of the towers is short, and those that are asked for."""
    return sorted({*PLAIN, *map(tuple, stages)})


def towers(
    base: Config, data: str, folder: str, stages: list[tuple[int, bool]], rank: int, world: int, prefix: str
) -> dict[str, list[float]]:
    """Losses of the towers' phase under each stage; two workers divide the catalogue. FOLDER/NAME.safetensors: weights."""
    found = {}
    for stage, offload in stages:
        options = dataclasses.replace(
            base.train, zero_stage=stage, offload=offload, workers=world, micro_batch_size=AT_ONCE // world
        )
        name = f"{prefix}-{world}-{stage}-{offload}"
        with tempfile.TemporaryDirectory() as scratch:
            config, place = dataclasses.replace(base, train=options), Place(rank, world, rank, world, CPU)
            setup = set_up(config, data, f"{folder}/{name}-run", scratch, place)
            run = run_phase(setup, f"{folder}/{name}", f"{folder}/{name}.safetensors", None, phase="towers")
            assert (run.share is not None) == (world > 1)
            found[name] = run.losses
    return found


def zero_worker(rank: int, world: int, folder: str) -> None:
    deepspeed_engine.use_cpu_accelerator()
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}  # as Ray Train sets them
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    job = json.loads(Path(folder, "job.json").read_text())
    found = {}
    for kind, tune in job["ways"]:
        base = load_config(None, [f"encoder.name={job['encoders'][kind]}", f"encoder.tune={tune}", *job["options"]])
        for stage, offload in job["stages"]:
            # As many windows at once on all workers together, as the fresh items of these compete.
            options = dataclasses.replace(
                base.train, zero_stage=stage, offload=offload, workers=world, micro_batch_size=AT_ONCE // world
            )
            name, alone = f"{kind}-{tune}-{world}-{stage}-{offload}", f"{kind}-{tune}-1-0-False"
            with tempfile.TemporaryDirectory() as scratch:
                config, place = dataclasses.replace(base, train=options), Place(rank, world, rank, world, CPU)
                setup = set_up(config, job["data"], f"{folder}/{name}-run", scratch, place)
                best = f"{folder}/{name}.safetensors"
                run = run_phase(setup, f"{folder}/{name}", best, None)
                found[name] = {"losses": run.losses, "refreshed": run.refreshed}
                if name != alone and (0, False) in map(tuple, job["stages"]):
                    run = run_phase(setup, f"{folder}/{name}-2", best + ".2", f"{folder}/{alone}")
                    found[name]["resumed"] = run.losses
        found |= towers(base, job["data"], folder, towers_stages(job["stages"]), rank, world, f"{kind}-{tune}-towers")
        if world == 1:
            found[f"{kind}-{tune}-accumulated"] = accumulated(base, job["data"], folder)
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def run_all(
    folder: Path,
    data: str,
    encoders: dict[str, str],
    ways: list[tuple[str, str]],
    stages: list[tuple[int, bool]],
    *overrides: str,
) -> dict[str, dict]:
    """What each way of tuning makes of the phase under each stage on one and on two workers."""
    options = ["model.dim=16", "model.history=10", "model.dropout=0", "model.id_dropout=0", "model.text_dropout=0"]
    options += [
        "encoder.top_layers=1",
        "encoder.token_budget=64",
        "train.global_batch_size=16",
    ]
    options += ["train.precision=fp32"]
    options += [f"train.checkpoint_every={HALF}", "train.fresh_items=24", "train.trackers=[]", *overrides]
    job = {"data": data, "encoders": encoders, "ways": ways, "stages": stages, "options": options}
    (folder / "job.json").write_text(json.dumps(job))
    env = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{TESTS}", "CTXREC_CACHE": str(folder / "cache")}
    env["TORCH_EXTENSIONS_DIR"] = os.environ["TORCH_EXTENSIONS_DIR"]  # compiled once for all tests
    found: dict[str, dict] = {}
    for world in (1, 2):
        found |= run_ranks(__file__, folder, world, env=env, timeout_s=1800)
    return found


@pytest.fixture
def run_here(tiny_data, tiny_encoder, tiny_gpt2, tmp_path):
    deepspeed_engine.use_cpu_accelerator()

    def run(ways: list[tuple[str, str]], stages: list[tuple[int, bool]], *overrides: str) -> dict[str, dict]:
        encoders = {"bert": tiny_encoder, "gpt2": tiny_gpt2}
        for left in tmp_path.glob("*"):  # of a run before
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return run_all(tmp_path, tiny_data, encoders, ways, stages, *overrides)

    return run


@pytest.mark.parametrize(
    ("ways", "stages"),
    [
        pytest.param([("gpt2", "lora")], [PLAIN[0], PLAIN[3]], id="gpt2-lora, stages 0 and 3"),
        *(
            pytest.param([(kind, tune)], PLAIN + OFFLOADED, id=f"{kind}-{tune}", marks=pytest.mark.slow)
            for kind in ("bert", "gpt2")
            for tune in TUNES
        ),
    ],
)
def test_one_curve_under_every_stage_on_one_and_two_workers(run_here, tmp_path, ways, stages):
    """Losses within RTOL, relative, at every step; so are those of a training that goes on from the checkpoint of another
    stage and number of workers. Weights come out whole from all of them."""
    found = run_here(ways, stages)
    for kind, tune in ways:
        alone = f"{kind}-{tune}-1-0-False"
        expected = found[alone]["losses"]
        assert len(expected) > 2 * HALF
        first, last = np.split(np.array(expected), EPOCHS)  # epochs read the same windows, steps do not
        # IA3 has the fewest weights: GPT-2's loss falls by 2.4 % in the second epoch.
        assert last.mean() < 0.98 * first.mean(), "it learns: the mean loss falls by 2% from one epoch to the next"
        whole, parts = found[f"{kind}-{tune}-accumulated"]
        assert len(whole) == len(expected)
        np.testing.assert_allclose(parts, whole, rtol=RTOL, err_msg="four micro-batches are one batch")
        prefix = f"{kind}-{tune}-towers"
        towers_alone, weights = found[f"{prefix}-1-0-False"], load_file(tmp_path / f"{prefix}-1-0-False.safetensors")
        for world in (1, 2):
            for stage, offload in towers_stages(stages):
                name = f"{prefix}-{world}-{stage}-{offload}"
                np.testing.assert_allclose(found[name], towers_alone, rtol=RTOL, err_msg=name)
                for weight, ours in load_file(tmp_path / f"{name}.safetensors").items():
                    torch.testing.assert_close(
                        ours, weights[weight], atol=ATOL, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
                    )
        weights = load_file(tmp_path / f"{alone}.safetensors")
        assert any(name.startswith("encoder.") for name in weights)
        assert all(weight.any() for name, weight in weights.items() if "lora_B" in name), "B starts at zero"
        for world in (1, 2):
            for stage, offload in stages:
                name = f"{kind}-{tune}-{world}-{stage}-{offload}"
                np.testing.assert_allclose(found[name]["losses"], expected, rtol=RTOL, err_msg=name)
                ours = load_file(tmp_path / f"{name}.safetensors")
                assert {n: w.shape for n, w in ours.items()} == {n: w.shape for n, w in weights.items()}, name
                if name != alone:
                    np.testing.assert_allclose(found[name]["resumed"], expected[HALF:], rtol=RTOL, err_msg=name)


@pytest.mark.slow
def test_the_table_is_encoded_before_evaluations_and_checkpoints_alone(run_here):
    """The loss curve is the same on one and two workers, also where most items come from a table that changes fast."""
    found = run_here([("bert", "lora")], [(2, False)], "train.fresh_items=4", "train.encoder_lr=0.01")
    steps = len(found["bert-lora-1-2-False"]["losses"])
    due = {*range(0, steps + 1, HALF), steps // EPOCHS, steps}
    assert set(found["bert-lora-2-2-False"]["refreshed"]) == due
    one, two = (found[f"bert-lora-{world}-2-False"]["losses"] for world in (1, 2))
    np.testing.assert_allclose(two, one, rtol=RTOL)


@pytest.mark.slow  # it compiles DeepSpeed's optimizer for offload, which the quick tests need not
def test_a_build_that_was_cut_off_does_not_hold_up_the_next_training(tmp_path):
    """PyTorch's own mark of a build, which a killed process leaves behind, is waited for without end."""
    deepspeed_engine.use_cpu_accelerator()
    deepspeed_engine.build_cpu_adam()
    folder = tmp_path / "extensions"
    shutil.copytree(os.environ["TORCH_EXTENSIONS_DIR"], folder, ignore=shutil.ignore_patterns("lock"))
    left = folder / "cpu_adam" / "lock"
    left.touch()
    env = os.environ | {"PYTHONPATH": str(REPO), "TORCH_EXTENSIONS_DIR": str(folder)}
    script = "from ctxrec.training import deepspeed_engine as e; e.build_cpu_adam()"
    subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=300)
    assert not left.exists()


if __name__ == "__main__":
    zero_worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
