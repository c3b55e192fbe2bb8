"""One phase of a training on one worker: its engine, its steps, its evaluations and its checkpoints."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ctxrec.core import terminal
from ctxrec.core.errors import UserError
from ctxrec.core.terminal import QUIET_S
from ctxrec.core.tracing import section
from ctxrec.data.tensor_files import write_tensors
from ctxrec.encoder.encode_plan import plan_encoding
from ctxrec.encoder.text_table import TextTable
from ctxrec.model.catalogue_shares import CatalogueShare, DividedStep
from ctxrec.model.network import EncodeInputs, LossInputs, Network, choose_loss
from ctxrec.training import checkpoint, deepspeed_engine, faults
from ctxrec.training.catalogue_vectors import encode_table
from ctxrec.training.export import Chosen
from ctxrec.training.phase_setup import Setup
from ctxrec.training.profiler import StepTrace, in_section
from ctxrec.training.throughput import Meter
from ctxrec.training.window_sampler import Step, TrainStream

logger = logging.getLogger(__name__)

SHARE = "share"  # key in a phase's best weights: the share of its schedule that was done when they were best


@dataclass
class Progress:
    """How far a phase is; it is part of the checkpoint."""

    phase: str
    step: int = 0  # steps done in this phase
    best: float = -1.0  # best validation NDCG@10 of the phase, -1 before the first
    stale: int = 0  # evaluations since the best one
    done: bool = False
    seconds: float = 0.0
    loss_sum: float = 0.0  # since the last evaluation, over `num_losses` steps
    num_losses: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to continue from."""

    progress: Progress
    folder: str  # local
    optimizer_step: int


class PhaseRun:
    """The engine and the loop of one phase.

    Args:
        setup: what all phases share.
        phase: "towers", "encoder" or "refit".
        network: what is trained.
        stream: the training windows.
        epochs: passes over the windows at most.
        best_path: where the best weights go.
        chosen: what earlier phases settled.
        trace: traces some steps; None: no trace.
    """

    def __init__(
        self,
        setup: Setup,
        phase: str,
        network: Network,
        stream: TrainStream,
        epochs: int,
        best_path: str,
        chosen: Chosen,
        trace: StepTrace | None,
    ) -> None:
        self.setup, self.phase, self.stream, self.best_path = setup, phase, stream, best_path
        self.config, self.worker = setup.config.train, setup.worker
        self.steps_per_epoch = stream.steps_per_epoch
        self.total_steps = max(epochs * self.steps_per_epoch, 1)
        # A refit has no events left to validate on, so it stops where the first phase was best, on the same schedule.
        self.last_step = max(round(chosen.share * self.total_steps), 1) if phase == "refit" else self.total_steps
        self.items = setup.catalogue.refit_items if phase == "refit" else setup.catalogue.items
        self.num_negatives_from = setup.catalogue.shape.num_items if self.items.pool is None else len(self.items.pool)
        self.validator = None if phase == "refit" else setup.log.validator
        self.eval_every = self.config.eval_every or self.steps_per_epoch
        self.loss_name = choose_loss(self.config, setup.catalogue.shape.num_items)
        table = chosen.text if phase == "refit" else setup.catalogue.frozen
        self.table = None if table is None else TextTable(**vars(table))
        if phase == "encoder" and self.table is not None:
            self.table.vectors_IH = self.table.vectors_IH.clone()
        self.share = self._share()
        lr = self.config.encoder_phase_tower_lr if phase == "encoder" else self.config.tower_lr
        self.peak_lr = self.config.encoder_lr if phase == "encoder" else lr  # the rate that the log shows
        groups = deepspeed_engine.parameter_groups(network, self.config, tower_lr=lr, encoder_lr=self.config.encoder_lr)
        ds_config = deepspeed_engine.deepspeed_config(
            self.config,
            world=self.worker.world,
            accumulation=stream.accumulation,
            rows_per_micro_batch=max(stream.rows_at_once // self.worker.world, 1),
            dtype=self.worker.dtype,
        )
        self.engine = deepspeed_engine.start_engine(network, groups, ds_config)
        self.progress = Progress(phase)
        self.stopping = False
        self.table_is_fresh = False  # whether all text vectors are by the encoder as it is now
        self.texts = setup.catalogue.texts
        self.present = None if self.texts is None else np.flatnonzero(self.texts.present_I)
        self.trace = trace
        self.meter = Meter(self.worker.world, self.worker.device, self.worker.dtype)
        self.said = time.monotonic()  # when the log last had a line of this phase
        self.skipped = faults.skipped(setup.checkpoints)
        self.stop = faults.StopWatch(setup.checkpoints)

    def start(self, resumed: Resumed | None) -> None:
        """Restore a checkpoint, or validate the weights that an encoder phase begins with."""
        if self.worker.tracker is not None:  # drop the log's lines of steps that are done again
            self.worker.tracker.forget_after(self.phase, resumed.progress.step if resumed is not None else -1)
        if resumed is not None:
            self.progress = resumed.progress
            checkpoint.restore(self.engine, resumed.folder, resumed.optimizer_step)
            self._refresh()
        elif self.phase == "encoder":
            self._evaluate(loss=None)  # tuning must beat these weights

    def train(self) -> bool:
        """Run the steps to the end of the phase or to early stopping.

        Returns:
            False where the training was asked to end; a checkpoint is then saved.

        Raises:
            UserError: a loss is not finite, and `train.not_finite` is not "skip".
            FloatingPointError: a loss is not finite; the next attempt leaves the step out.
        """
        progress, begin = self.progress, time.monotonic() - self.progress.seconds
        bar = ProgressBar(self.phase, progress.step, self.last_step) if self.worker.rank == 0 else None
        while progress.step < self.last_step and progress.stale < self.config.patience:
            epoch, start = divmod(progress.step, self.steps_per_epoch)
            self.meter.begin()
            for step in in_section("data", self.stream.epoch(epoch, start=start)):
                if (self.phase, progress.step) not in self.skipped:
                    loss = self.meter.measured(self._step, step)
                    progress.loss_sum += loss
                    progress.num_losses += 1
                    if bar is not None:
                        lr = self.peak_lr * self._lr_factor()
                        bar.show(progress.step + 1, f"loss {loss:.4g}  lr {lr:.2g}  {self.meter.pace()}")
                progress.step += 1
                progress.seconds = time.monotonic() - begin
                if self.trace is not None:
                    self.trace.step_done()
                last = progress.step == self.last_step
                due = progress.step % self.eval_every == 0 or last
                if due:
                    self._evaluate(loss=progress.loss_sum / progress.num_losses if progress.num_losses else None)
                    progress.loss_sum, progress.num_losses = 0.0, 0
                if due or self.stopping or progress.step % (self.config.checkpoint_every or progress.step + 1) == 0:
                    self._checkpoint()
                if last or self.stopping or progress.stale >= self.config.patience:
                    break
                self.meter.begin()
            if self.stopping:
                break
        if bar is not None:
            bar.close()
        if self.trace is not None:
            self.trace.close()
        if not self.stopping:
            progress.done = True
            if self.worker.rank == 0:
                logger.info("%s", self._result())
            self._checkpoint()
        self.engine.destroy()
        return not self.stopping

    def _result(self) -> str:
        """One line about the phase at its end."""
        progress, lines = self.progress, self.worker.tracker.lines if self.worker.tracker is not None else []
        done = (
            f"{progress.step:,} of {self.last_step:,} steps"
            if progress.step < self.last_step
            else f"{progress.step:,} steps"
        )
        losses = [line["loss"] for line in lines if line["phase"] == self.phase and "loss" in line]
        result = f"loss {losses[-1]:.4g}" if losses else "no loss"
        if self.validator is not None:
            result += f", best validation NDCG@10 of the towers alone {progress.best:.4f}"
        return f"{self.phase}: {done} in {progress.seconds:.0f} s, {result}"

    def _step(self, step: Step) -> float:
        """One global batch: forward, backward, update; returns its mean loss on this worker's share."""
        micro = step.micro_batches
        weight = torch.stack([b.weights_BS.abs().sum() for b in micro]).sum()
        # All workers must stop after the same step, so rank 0 adds its word to a sum that is needed anyway.
        stop = self.worker.rank == 0 and self.stop.look()
        both = torch.stack([weight, torch.tensor(float(stop))]).to(self.worker.device)
        if self.worker.world > 1:
            dist.all_reduce(both)
        total, self.stopping = both[0], bool(both[1] > 0)
        torch.manual_seed(hash((self.config.seed, self.phase == "encoder", self.progress.step, self.worker.rank)))
        deepspeed_engine.set_learning_rate(self.engine, self._lr_factor())
        mean = 0.0
        for number, (batch, distinct) in enumerate(zip(micro, step.distinct_items, strict=True)):
            with section("data"):
                batch, negatives_N = batch.to(self.worker.device), self._negatives(number)
                fresh = self._fresh(distinct, number)
                divided = None if self.share is None else DividedStep.of(self.share, distinct, step.asked[number])
                inputs = LossInputs(self.items, self.table, batch, self.loss_name, negatives_N, fresh, divided)
            with section("loss"):  # the profile subtracts the sections inside it
                loss = self.engine(inputs)
            # DeepSpeed averages over workers and micro-batches, while our loss is a sum over the global batch.
            loss = loss * (self.worker.world * len(micro)) / total.clamp(min=1e-9)
            value = float(loss.detach())
            if not math.isfinite(value):
                self._not_finite(step, value)
            mean += value / len(micro)
            with section("backward"):
                self.engine.backward(loss)
            with section("optimizer"):
                self.engine.step()
        self.table_is_fresh = False
        return mean

    def _not_finite(self, step: Step, loss: float) -> None:
        """Stop before the loss spoils the weights, or go back to the last checkpoint and leave this step out."""
        users = self.stream.users(step.epoch, step.step_in_epoch)
        shown = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
        text = f"the loss is {loss} at step {self.progress.step} of phase {self.phase}, with histories of users {shown}"
        if self.config.not_finite == "skip":
            faults.skip(self.setup.checkpoints, self.phase, self.progress.step)
            raise FloatingPointError(f"{text}; going on from the last checkpoint without this step")
        rate = "encoder_lr" if self.phase == "encoder" else "tower_lr"
        raise UserError(f"{text}; look at their events, lower train.{rate}, or set train.not_finite = skip")

    def _lr_factor(self) -> float:
        return deepspeed_engine.lr_factor(self.progress.step, self.total_steps, self.config.warmup)

    def _generator(self, number: int) -> np.random.Generator:
        """A generator of random numbers for a micro-batch, the same on all workers."""
        return np.random.default_rng([self.config.seed, self.phase == "encoder", self.progress.step, number])

    def _negatives(self, number: int) -> torch.Tensor | None:
        if self.loss_name == "softmax":
            return None
        drawn = self._generator(number).integers(0, self.num_negatives_from, self.config.negatives)
        return torch.from_numpy(drawn).to(self.worker.device)

    def _share(self) -> CatalogueShare | None:
        """This worker's share of the catalogue where several workers score all items; the encoder phase does not divide them."""
        world = self.worker.world
        divides = world > 1 and self.loss_name == "softmax" and self.phase != "encoder"
        if not divides or self.num_negatives_from < world:
            return None
        return CatalogueShare.of(self.items, self.table, rank=self.worker.rank, world=world)

    def _fresh(self, distinct: np.ndarray, number: int) -> EncodeInputs | None:
        """The items of a micro-batch that are encoded with gradient; None outside of the encoder phase."""
        if self.phase != "encoder":
            return None
        assert self.texts is not None and self.present is not None
        which = np.intersect1d(distinct, self.present)
        if len(which) > self.config.fresh_items:
            which = self._generator(number).choice(which, self.config.fresh_items, replace=False)
        if len(which) == 0:
            which = self.present[:1]  # every worker must call the encoder
        budget = self.setup.config.encoder.token_budget
        plan = plan_encoding(which, self.texts.tokens.lengths, budget=budget, world=self.worker.world)
        self.meter.encoded(self.texts.tokens, plan)
        return EncodeInputs(self.texts.tokens, plan, self.worker.rank, self.worker.device)

    def _refresh(self) -> None:
        """Encode the whole table with the encoder as it is now, unless that was done since the last step."""
        if self.phase == "encoder" and not self.table_is_fresh:
            self.table_is_fresh = True
            assert self.texts is not None and self.table is not None
            encode_table(
                self.engine.module,
                self.texts.tokens,
                self.texts.present_I,
                self.table.vectors_IH,
                budget=self.setup.config.encoder.token_budget,
                place=self.worker.place,
            )

    def _evaluate(self, *, loss: float | None) -> None:
        """Validate, save the weights where they are the best so far, and log."""
        self._refresh()
        progress = self.progress
        values: dict[str, Any] = {"phase": self.phase, "step": progress.step}
        values["epoch"] = progress.step / self.steps_per_epoch
        if loss is not None:
            loss = self._average(loss)
            values["loss"] = loss
        better = progress.step == self.last_step  # without validation events the last weights count as best
        if self.validator is not None:
            metric = self.validator.ndcg(self.engine.module, self.items, self.table)
            values["valid_ndcg@10"] = metric
            better = metric > progress.best
            progress.stale = 0 if better else progress.stale + 1
            progress.best = max(progress.best, metric)
        if better:
            weights = checkpoint.full_weights(self.engine)
            weights[SHARE] = torch.tensor(progress.step / self.total_steps)
            if self.worker.rank == 0:
                write_tensors(self.best_path, weights)
        if self.worker.tracker is not None:
            values["lr"] = self.peak_lr * self._lr_factor()
            values["seconds"] = round(progress.seconds, 2)
            values |= self.meter.read()
            if progress.step:
                values["eta_s"] = progress.seconds / progress.step * (self.last_step - progress.step)
            self.worker.tracker.log(values)
            self.worker.tracker.flush()
            if time.monotonic() - self.said >= QUIET_S:  # a short phase says its result alone
                shown = ("epoch", "loss", "valid_ndcg@10", "events_per_s", "eta_s")
                figures = "  ".join(f"{k} {values[k]:.4g}" for k in shown if k in values)
                logger.info("%s step %d/%d  %s", self.phase, progress.step, self.last_step, figures)
                self.said = time.monotonic()

    def _average(self, value: float) -> float:
        """Mean over the workers."""
        if self.worker.world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=self.worker.device)
        dist.all_reduce(total)
        return float(total) / self.worker.world

    def _checkpoint(self) -> None:
        """Report a checkpoint, of which the latest ones are kept; every worker must call it."""
        self._refresh()  # a resumed training encodes the table anew, so this one goes on with the same table
        self.progress.loss_sum = self._average(self.progress.loss_sum)  # another number of workers may resume it
        weights, moments = checkpoint.full_weights(self.engine), checkpoint.full_moments(self.engine)
        state = {"progress": self.progress.to_dict(), "optimizer_step": checkpoint.optimizer_step(self.engine)}
        progress = self.progress
        metrics = {"phase": self.phase, "step": progress.step, "valid_ndcg@10": progress.best}
        metrics |= {"epoch": progress.step / self.steps_per_epoch, "seconds": progress.seconds}
        if self.worker.rank != 0:
            self.worker.report(metrics, None)
            return
        with tempfile.TemporaryDirectory(dir=self.worker.scratch) as folder:
            checkpoint.save(folder, weights, moments, state)
            self.worker.report(metrics, folder)


class ProgressBar:
    """The progress bar of a phase on the driver's terminal."""

    def __init__(self, phase: str, step: int, last_step: int) -> None:
        self._name, self._step = f"train {phase}", step
        self._bar = terminal.step_bar(last_step, self._name)
        self._bar.update(step)

    def show(self, step: int, figures: str) -> None:
        """Show that so many steps are done, with some figures."""
        self._bar.set_description(f"{self._name}  {figures}")
        self._bar.update(step - self._step)
        self._step = step

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
