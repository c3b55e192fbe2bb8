"""The second stage's training under every ZeRO stage, on one and two workers, and resumed: one curve of losses.

The worker's own loop (`RerankTraining`) with real DeepSpeed over gloo, without Ray, so that all combinations fit a test:
`python test_rerank_workers.py RANK WORLD FOLDER` runs what FOLDER/job.json lists and writes FOLDER/WORLD-RANK.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
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

from ctxrec.core.config import load_config
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.tensor_files import write_tensors
from ctxrec.encoder.cache import Place
from ctxrec.encoder.encode_plan import Tokens
from ctxrec.reranking.rerank_candidates import TrainingPairs
from ctxrec.reranking.rerank_worker import RerankTraining
from ctxrec.training import deepspeed_engine

STAGES, HALF, ALONE = (0, 1, 2, 3), 4, "1-0"
RTOL, ATOL = 1e-4, 2e-3  # of a loss and of a weight, between ways to compute the same


def some_pairs(num: int = 23, num_items: int = 30, width: int = 12) -> TrainingPairs:
    """Requests and items of random words; some requests have fewer candidates than are drawn."""
    rng = np.random.default_rng(0)

    def texts(count: int) -> Tokens:
        lengths = rng.integers(1, 12, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Tokens(ids=rng.integers(5, 30, int(offsets[-1])).astype(np.int32), offsets=offsets, pad_id=0)

    found = np.stack([rng.permutation(num_items)[:width] for _ in range(num)]).astype(np.int64)
    found[3, 4:] = -1
    scores = np.sort(rng.normal(size=(num, width)).astype(np.float32), axis=1)[:, ::-1]
    return TrainingPairs(texts(num), texts(num_items), found, scores, rng.integers(0, 4, num))


def worker(rank: int, world: int, folder: str) -> None:
    deepspeed_engine.use_cpu_accelerator()
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}  # as Ray Train sets them
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    job = json.loads(Path(folder, "job.json").read_text())
    base, found = load_config(None, job["options"]), {}
    for stage in STAGES:
        config = dataclasses.replace(base, train=dataclasses.replace(base.train, zero_stage=stage, workers=world))
        for name in (f"{world}-{stage}", f"{world}-{stage}-resumed"):
            run = f"{folder}/{name}"
            if name.endswith("resumed") and rank == 0:
                shutil.copytree(f"{folder}/{ALONE}-half", f"{RunPaths(run).checkpoints}/checkpoint_1")
            dist.barrier()

            def keep(metrics, made, target=f"{folder}/{name}-half") -> None:
                if made is not None and metrics["step"] == HALF:
                    shutil.copytree(made, target)

            task = {"config": config.to_dict(), "run": run, "pairs": f"{folder}/pairs.safetensors"}
            task["weights"] = f"{run}/epoch-{{epoch}}.safetensors"
            with tempfile.TemporaryDirectory() as scratch:
                training = RerankTraining(task, Place(rank, world, rank, world, torch.device("cpu")), keep, scratch)
                training.run()
            found[name] = training.losses
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def test_one_curve_on_any_number_of_workers_and_under_any_stage(tiny_encoder, tmp_path):
    deepspeed_engine.use_cpu_accelerator()
    options = [f"encoder.name={tiny_encoder}", "encoder.token_budget=256", "train.precision=fp32"]
    # Five requests a step are no multiple of two workers, and an encoder's pass holds one request.
    options += ["rerank.batch_size=5", "rerank.epochs=2", "rerank.candidates=6", "rerank.max_tokens=32"]
    options += [f"train.checkpoint_every={HALF}"]
    write_tensors(f"{tmp_path}/pairs.safetensors", some_pairs().tensors())
    (tmp_path / "job.json").write_text(json.dumps({"options": options}))
    env = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{TESTS}"}
    curves: dict[str, list[float]] = {}
    for world in (1, 2):
        curves |= run_ranks(__file__, tmp_path, world, env=env, timeout_s=900)
    assert len(curves) == 2 * 2 * len(STAGES) and len(curves[ALONE]) == 10
    assert curves[ALONE][-1] != pytest.approx(curves[ALONE][4], rel=1e-2), "it learns something"
    expected = load_file(tmp_path / ALONE / "epoch-2.safetensors")
    for name, losses in curves.items():
        assert losses == pytest.approx(curves[ALONE], rel=RTOL), name
        weights = load_file(tmp_path / name / "epoch-2.safetensors")
        assert weights.keys() == expected.keys()
        for key, value in weights.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=ATOL)


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
