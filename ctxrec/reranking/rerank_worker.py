"""What each worker of the second stage's training runs: the steps, by DeepSpeed with any ZeRO stage, and the checkpoints.

A step reads `rerank.batch_size` requests. Each has its target and candidates drawn beside it, and the loss is the
cross-entropy of the target among them. Order and draws depend on the seed alone, so the curve is the same on any number
of workers.

Legend: N requests, P pairs of a request and a candidate.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.tensor_files import AGAIN, read_tensors, write_tensors
from ctxrec.encoder.cache import Place
from ctxrec.reranking.fresh_reranker import encoder_path, make_network
from ctxrec.reranking.rerank_candidates import TrainingPairs
from ctxrec.reranking.rerank_params import RERANK_TRAINING, RerankTrainingParams
from ctxrec.retrieval.cross_encoder import retrieved_features
from ctxrec.retrieval.pair_reader import PairReader
from ctxrec.training import checkpoint, deepspeed_engine, faults
from ctxrec.training.phase_setup import Report
from ctxrec.training.phase_trainer import ProgressBar

logger = logging.getLogger(__name__)


def rerank_worker(job: dict[str, Any], place: Place, report: Report) -> None:
    """Train the second stage on this worker.

    A user's mistake is recorded for the driver to report, because another attempt would fail in the same way.

    Args:
        job: config (plain values), run (the folder of the training), pairs (file of `TrainingPairs`), and weights (a file
            for those after each epoch, with {epoch} in its name).
        place: of this process among the workers.
        report: takes the figures and the folder of each checkpoint.
    """
    checkpoints = RunPaths(job["run"]).checkpoints
    if faults.mistake(checkpoints) is not None:
        return  # another worker has recorded one, so the training ends
    try:
        with tempfile.TemporaryDirectory(prefix="ctxrec-worker-") as scratch:
            RerankTraining(job, place, report, scratch).run()
    except UserError as error:
        faults.record_mistake(checkpoints, error)


class RerankTraining:
    """The engine and the loop of the second stage's training on one worker."""

    def __init__(
        self,
        job: dict[str, Any],
        place: Place,
        report: Report,
        scratch: str,
        params: RerankTrainingParams = RERANK_TRAINING,
    ) -> None:
        config = Config.from_dict(job["config"])
        self.config, self.options, self.params = config.train, config.rerank, params
        self.place, self.report, self.scratch = place, report, scratch
        self.weights, self.checkpoints = job["weights"], RunPaths(job["run"]).checkpoints
        self.pairs = TrainingPairs.from_tensors(read_tensors(job["pairs"], remedy=f"delete {job['run']}; {AGAIN}"))
        path, dtype = encoder_path(config), deepspeed_engine.choose_precision(config.train, place.device)
        self.reader = PairReader(path, max_tokens=self.options.max_tokens)
        torch.manual_seed(config.train.seed)
        network = make_network(path, config)
        network.encoder.fit_to(place.device, dtype)
        share = -(-self.options.batch_size // place.world)
        pairs_at_once = max(network.token_budget // self.options.max_tokens, 1)
        self.rows_at_once = min(max(pairs_at_once // (1 + params.negatives), 1), share)
        self.accumulation = -(-share // self.rows_at_once)
        ds_config = deepspeed_engine.deepspeed_config(
            config.train,
            world=place.world,
            accumulation=self.accumulation,
            rows_per_micro_batch=self.rows_at_once,
            dtype=dtype,
        )
        groups = [
            {"params": adapter, "lr": 0.0, "peak_lr": lr, "weight_decay": 0.0}
            for adapter, lr in (
                ([p for p in network.encoder.parameters() if p.requires_grad], self.options.lr),
                (list(network.head.parameters()), params.head_lr),
            )
        ]
        self.engine = deepspeed_engine.start_engine(network.to(place.device), groups, ds_config)
        self.steps_per_epoch = -(-len(self.pairs) // self.options.batch_size)
        self.last_step = self.steps_per_epoch * self.options.epochs
        self.step = 0
        self.losses: list[float] = []
        self.stop = faults.StopWatch(self.checkpoints)

    def run(self) -> None:
        """Run the steps that are left, with the weights written after each epoch, and a checkpoint.

        Raises:
            UserError: a loss is not finite.
        """
        self._resume()
        bar = ProgressBar("second stage", self.step, self.last_step) if self.place.rank == 0 else None
        while self.step < self.last_step:
            loss = self._step()
            self.losses.append(loss)
            self.step += 1
            if bar is not None:
                bar.show(self.step, f"loss {loss:.4g}")
            epoch, rest = divmod(self.step, self.steps_per_epoch)
            stopping = self._stop_asked()
            if not rest:
                self._write_weights(epoch)
            if not rest or stopping or not self.step % (self.config.checkpoint_every or self.step + 1):
                self._checkpoint()
            if stopping:
                break
        if bar is not None:
            bar.close()
        self.engine.destroy()

    def rows(self, step: int) -> np.ndarray:
        """The requests of a step: int64 [at most rerank.batch_size]."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.pairs))
        return order[place * self.options.batch_size :][: self.options.batch_size]

    def drawn(self, row: int, epoch: int) -> np.ndarray:
        """Places of the target of a request and of candidates drawn beside it, the target first: int64 [at
        most 1 + negatives]."""
        others = np.flatnonzero(self.pairs.found_ND[row] >= 0)
        others = others[others != self.pairs.target_N[row]]
        rng = np.random.default_rng([self.config.seed, epoch, row])
        chosen = rng.choice(others, min(len(others), self.params.negatives), replace=False)
        return np.concatenate([[self.pairs.target_N[row]], chosen]).astype(np.int64)

    def _step(self) -> float:
        """One global batch: forward, backward, update; returns its mean loss over all workers."""
        rows = self.rows(self.step)
        mine = rows[self.place.rank :: self.place.world]
        deepspeed_engine.set_learning_rate(self.engine, self._lr_factor())
        self.engine.train()
        total = torch.zeros(1, dtype=torch.float64)
        for micro in range(self.accumulation):
            part = mine[micro * self.rows_at_once :][: self.rows_at_once]
            # DeepSpeed averages over workers and micro-batches, while this is a sum over the step.
            loss = self._loss(part, rows[:1]) * (self.place.world * self.accumulation / len(rows))
            total += float(loss.detach()) / (self.place.world * self.accumulation)
            self.engine.backward(loss)
            self.engine.step()
        if self.place.world > 1:
            dist.all_reduce(total)
        if not math.isfinite(float(total)):
            raise UserError(
                f"the loss is {float(total)} at step {self.step}; lower rerank.lr ({self.options.lr:g} now)"
            )
        return float(total)

    def _loss(self, rows: np.ndarray, stand_in: np.ndarray) -> torch.Tensor:
        """The sum of the requests' cross-entropies. Without a request a stand-in is computed and counts as 0, because
        every worker must take part."""
        weight, rows = (1.0, rows) if len(rows) else (0.0, stand_in)
        epoch = self.step // self.steps_per_epoch
        picked = [self.drawn(row, epoch) for row in rows.tolist()]
        features = [
            retrieved_features(scores[found >= 0], self.options.candidates)[places]
            for found, scores, places in zip(self.pairs.found_ND[rows], self.pairs.scores_ND[rows], picked, strict=True)
        ]
        items = [found[places] for found, places in zip(self.pairs.found_ND[rows], picked, strict=True)]
        row_P = np.repeat(rows, [len(places) for places in picked])
        pairs = self.reader.pairs(self.pairs.asked, self.pairs.items, row_P, np.concatenate(items))
        logits = torch.split(self.engine(pairs, np.concatenate(features)), [len(places) for places in picked])
        target = torch.zeros(1, dtype=torch.long, device=logits[0].device)
        return weight * torch.stack([F.cross_entropy(one[None], target) for one in logits]).sum()

    def _lr_factor(self) -> float:
        """Linear warm-up, then linear to 0."""
        warm = max(self.params.warmup * self.last_step, 1)
        return min((self.step + 1) / warm, (self.last_step - self.step) / max(self.last_step - warm, 1), 1.0)

    def _stop_asked(self) -> bool:
        """Whether the training was asked to end; the same on all workers."""
        asked = torch.tensor(float(self.place.rank == 0 and self.stop.look()))
        if self.place.world > 1:
            dist.all_reduce(asked)
        return bool(asked > 0)

    def _write_weights(self, epoch: int) -> None:
        weights = checkpoint.full_weights(self.engine)
        if self.place.rank == 0:
            write_tensors(self.weights.format(epoch=epoch), weights)
            mean = float(np.mean(self.losses[-self.steps_per_epoch :]))
            logger.info("epoch %d of %d: loss %.4f", epoch, self.options.epochs, mean)

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        found = [checkpoint.newest_whole(self.checkpoints, self.scratch) if self.place.rank == 0 else None]
        dist.broadcast_object_list(found)
        if found[0] is None:
            return
        folder = storage.fetch_dir(found[0], scratch=self.scratch)
        state = storage.read_json(storage.join(folder, checkpoint.STATE))
        checkpoint.restore(self.engine, folder, state["optimizer_step"])
        self.step, self.losses = state["step"], state["losses"]
        if self.place.rank == 0:
            logger.info("going on from step %d of %d", self.step, self.last_step)

    def _checkpoint(self) -> None:
        """Report a checkpoint, of which the latest ones are kept; every worker must call it."""
        weights, moments = checkpoint.full_weights(self.engine), checkpoint.full_moments(self.engine)
        metrics = {"step": self.step, "loss": self.losses[-1]}
        if self.place.rank != 0:
            self.report(metrics, None)
            return
        state = {"step": self.step, "losses": self.losses, "optimizer_step": checkpoint.optimizer_step(self.engine)}
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            checkpoint.save(folder, weights, moments, state)
            self.report(metrics, folder)


def epochs_of(weights: str, epochs: int) -> Iterator[dict[str, torch.Tensor]]:
    """The trained weights after each epoch, by name, each of its own shape."""
    for epoch in range(1, epochs + 1):
        yield read_tensors(weights.format(epoch=epoch), remedy=f"delete it; {AGAIN} trains from the beginning")
