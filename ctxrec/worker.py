"""What each Ray Train worker runs: towers on frozen text vectors first, then the encoder's adapters.

The state that outlives a process is one checkpoint (weights, optimizer, place in the stream) and the best
weights of each phase; a worker that finds them goes on from there, on any number of workers.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.experimental import tqdm_ray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ctxrec import checkpoint, engine, storage
from ctxrec.batching import Batcher
from ctxrec.bundle import write_bundle
from ctxrec.config import Config
from ctxrec.encoder import TextEncoder, Tokens, plan_encoding, resolve_encoder, tokenise
from ctxrec.features import ItemFeatures, item_features
from ctxrec.model import ItemTensors, ModelShape, TextTable, Towers
from ctxrec.network import Network, choose_loss
from ctxrec.prepared import PreparedData
from ctxrec.runtime import cache_dir
from ctxrec.stream import Step, TrainStream
from ctxrec.texts import has_text, make_text_table
from ctxrec.tracking import Tracker
from ctxrec.validation import Validator, validation_requests

logger = logging.getLogger(__name__)

CHECKPOINTS, BEFORE, TEXT = "checkpoints", "before", "text.safetensors"


@dataclass
class Progress:
    """Where a phase stands; goes into the checkpoint."""

    phase: str
    step: int = 0  # steps done in this phase
    best: float = -1.0  # best validation NDCG@10 of the phase, -1 before the first
    best_step: int = 0
    stale: int = 0  # evaluations since the best one
    done: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to go on from."""

    progress: Progress
    folder: str  # local
    optimizer_step: int


@dataclass
class Setup:
    """What both phases share on one worker."""

    config: Config
    data: PreparedData
    run: str
    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype
    catalogue: ItemFeatures
    shape: ModelShape
    items: ItemTensors
    batcher: Batcher
    validator: Validator | None
    encoder_path: str  # empty without text encoder
    tokens: Tokens | None
    frozen: TextTable | None  # vectors of the un-tuned encoder
    tracker: Tracker | None = None  # rank 0 alone
    scratch: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="ctxrec-worker-"))

    @property
    def checkpoints(self) -> str:
        return storage.join(self.run, CHECKPOINTS)


def train_worker(job: dict[str, Any]) -> None:
    """Train on this worker. `job`: config (plain), data and run (paths or URIs)."""
    setup = _set_up(Config.from_dict(job["config"]), job["data"], job["run"])
    phases = ["towers"] + ["encoder"] * _tunes_encoder(setup)
    resumed = _load_checkpoint(setup)
    towers: dict[str, torch.Tensor] = {}
    for number, phase in enumerate(phases):
        best_path = storage.join(setup.checkpoints, f"best-{phase}.safetensors")
        later = resumed is not None and phases.index(resumed.progress.phase) > number
        if not later:
            _run_phase(
                setup, phase, towers, best_path, resumed if resumed and resumed.progress.phase == phase else None
            )
        dist.barrier()
        best = load_tensors(storage.read_bytes(best_path))
        towers = {n.removeprefix("towers."): w for n, w in best.items() if n.startswith("towers.")}
        if phase == "towers" and len(phases) > 1:
            _export(setup, towers, None, storage.join(setup.checkpoints, BEFORE))
    _export(setup, towers, best if phases[-1] == "encoder" else None, storage.join(setup.run, "bundle"))
    if setup.tracker is not None:
        setup.tracker.close()


def _set_up(config: Config, data_path: str, run: str) -> Setup:
    # A line for every report is ours to write; Ray names that logger by its module's file.
    reports = os.path.join(os.path.dirname(ray.train.__file__), "v2", "_internal", "execution", "context.py")
    logging.getLogger(reports).setLevel(logging.WARNING)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        engine.use_cpu_accelerator()
    torch.set_num_threads(max(int(os.environ.get("OMP_NUM_THREADS", "1")), 1))
    data = PreparedData.open(data_path)
    catalogue = item_features(data.items, data.features)
    encoder_path, tokens, frozen = "", None, None
    if config.encoder.name and config.model.use_text and has_text(catalogue.texts).any():
        encoder_path = resolve_encoder(config.encoder.name, cache_dir())
        tokens = tokenise(encoder_path, catalogue.texts, max_tokens=config.encoder.max_tokens)
        frozen = _frozen_table(config, run, encoder_path, tokens, catalogue, rank, world, device)
    shape = ModelShape.of(
        config.model,
        data.features,
        num_items=len(catalogue),
        text_width=frozen.vectors_IH.shape[1] if frozen is not None else 0,
    )
    batcher = Batcher(data.features, history=config.model.history, action_weights=data.spec.events.actions)
    requests = validation_requests(data, config.train.valid_users)
    validator = None
    if requests is not None:
        validator = Validator(requests, batcher, repeats=data.spec.split.repeats, rank=rank, world=world, device=device)
    return Setup(
        config=config,
        data=data,
        run=run,
        rank=rank,
        world=world,
        device=device,
        dtype=engine.choose_precision(config.train, device),
        catalogue=catalogue,
        shape=shape,
        items=ItemTensors.of(catalogue, shape, device),
        batcher=batcher,
        validator=validator,
        encoder_path=encoder_path,
        tokens=tokens,
        frozen=frozen,
        tracker=Tracker(run, config.to_dict(), config.train.trackers) if rank == 0 else None,
    )


def _tunes_encoder(setup: Setup) -> bool:
    return setup.frozen is not None and setup.config.encoder.tune != "freeze" and setup.config.train.encoder_epochs > 0


def _frozen_table(
    config: Config,
    run: str,
    encoder_path: str,
    tokens: Tokens,
    catalogue: ItemFeatures,
    rank: int,
    world: int,
    device: torch.device,
) -> TextTable:
    """Vectors of the un-tuned encoder, encoded once by all workers together and kept in the run."""
    path = storage.join(run, CHECKPOINTS, TEXT)
    present = has_text(catalogue.texts)
    if not storage.exists(path):
        encoder = TextEncoder(config.encoder, encoder_path, tune=False).to(device).eval()
        table = torch.zeros(len(present), encoder.width)
        network = Network(torch.nn.Identity(), encoder)  # type: ignore[arg-type]
        _encode_table(network, tokens, present, config, table, rank, world, device)
        if rank == 0:
            tensors = {"vectors": table, "present": torch.from_numpy(present.astype(np.uint8))}
            storage.write_bytes(path, save_tensors(tensors))
        dist.barrier()
    vectors = load_tensors(storage.read_bytes(path))["vectors"].numpy()
    return _to(make_text_table(vectors, present), device)


def _to(table: TextTable, device: torch.device) -> TextTable:
    return TextTable(*(value.to(device) for value in vars(table).values()))


@torch.no_grad()
def _encode_table(
    network: torch.nn.Module,
    tokens: Tokens,
    present: np.ndarray,
    config: Config,
    table_IH: torch.Tensor,
    rank: int,
    world: int,
    device: torch.device,
) -> None:
    """Fill the rows of `table_IH` that have a text, each worker encoding its share."""
    was_training = network.training
    network.eval()
    plan = plan_encoding(np.flatnonzero(present), tokens.lengths, budget=config.encoder.token_budget, world=world)
    vectors = network("encode", tokens=tokens, plan=plan, rank=rank, device=device)
    table_IH[torch.from_numpy(plan.order[: plan.num_texts]).to(table_IH.device)] = vectors.to(table_IH)
    network.train(was_training)


def _load_checkpoint(setup: Setup) -> Resumed | None:
    """The checkpoint to go on from, if there is one."""
    found = ray.train.get_checkpoint()
    if found is None:
        return None
    folder = found.to_directory(os.path.join(setup.scratch, "resume"))
    state = storage.read_json(os.path.join(folder, checkpoint.STATE))
    progress = Progress(**state["progress"])
    if setup.rank == 0:
        logger.info("going on from phase %s, step %d", progress.phase, progress.step)
    return Resumed(progress=progress, folder=folder, optimizer_step=state["optimizer_step"])


def _run_phase(
    setup: Setup,
    phase: str,
    towers: dict[str, torch.Tensor],
    best_path: str,
    resumed: Resumed | None,
) -> None:
    """Train one phase to its end or to early stopping; leaves the best weights at `best_path`."""
    if resumed is not None and resumed.progress.done:
        return
    config = setup.config.train
    epochs = config.tower_epochs if phase == "towers" else config.encoder_epochs
    torch.manual_seed(config.seed)
    made = Towers(setup.config.model, setup.shape, temperature=config.temperature)
    if towers:
        made.load_state_dict(towers)
    encoder = TextEncoder(setup.config.encoder, setup.encoder_path, tune=True) if phase == "encoder" else None
    network = Network(made, encoder).to(setup.device)
    stream = TrainStream(
        setup.data,
        setup.batcher,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        rank=setup.rank,
        world=setup.world,
    )
    run = _PhaseRun(setup, phase, network, stream, epochs, best_path)
    run.start(resumed)
    run.train()


class _PhaseRun:
    """One phase's engine and loop."""

    def __init__(
        self, setup: Setup, phase: str, network: Network, stream: TrainStream, epochs: int, best_path: str
    ) -> None:
        self.setup, self.phase, self.stream, self.best_path = setup, phase, stream, best_path
        self.config = setup.config.train
        self.steps_per_epoch = stream.steps_per_epoch
        self.total_steps = max(epochs * self.steps_per_epoch, 1)
        self.eval_every = self.config.eval_every or self.steps_per_epoch
        self.loss_name = choose_loss(self.config, setup.shape.num_items)
        self.text = None if setup.frozen is None else TextTable(**vars(setup.frozen))
        if phase == "encoder" and self.text is not None:
            self.text.vectors_IH = self.text.vectors_IH.clone()
        lr = self.config.tower_lr if phase == "towers" else self.config.encoder_phase_tower_lr
        groups = engine.parameter_groups(network, self.config, tower_lr=lr, encoder_lr=self.config.encoder_lr)
        ds_config = engine.deepspeed_config(
            self.config,
            world=setup.world,
            accumulation=stream.accumulation,
            rows_per_micro_batch=max(stream.rows_at_once // setup.world, 1),
            dtype=setup.dtype,
        )
        self.engine = engine.start_engine(network, groups, self.config, ds_config)
        self.progress = Progress(phase)
        self.table_is_fresh = False  # whether every text vector is the present encoder's
        self.present = np.flatnonzero(has_text(setup.catalogue.texts)) if setup.tokens is not None else None

    def start(self, resumed: Resumed | None) -> None:
        """Go on from a checkpoint, or measure where the phase begins."""
        if resumed is not None:
            self.progress = resumed.progress
            checkpoint.restore(self.engine, resumed.folder, resumed.optimizer_step)
            self._refresh()
        elif self.phase == "encoder":
            self._evaluate(loss=None)  # the phase must beat what it starts from
        if self.setup.tracker is not None:
            self.setup.tracker.forget_after(self.phase, self.progress.step)

    def train(self) -> None:
        progress, begin, losses = self.progress, time.monotonic() - self.progress.seconds, []
        bar = self._bar()
        while progress.step < self.total_steps and progress.stale < self.config.patience:
            epoch, start = divmod(progress.step, self.steps_per_epoch)
            for step in self.stream.epoch(epoch, start=start):
                losses.append(self._step(step))
                progress.step += 1
                progress.seconds = time.monotonic() - begin
                if bar is not None:
                    bar.update(1)
                last = progress.step == self.total_steps
                due = progress.step % self.eval_every == 0 or last
                if due:
                    self._evaluate(loss=float(np.mean(losses)))
                    losses.clear()
                if due or (self.config.checkpoint_every and progress.step % self.config.checkpoint_every == 0):
                    self._checkpoint()
                if last or progress.stale >= self.config.patience:
                    break
        if bar is not None:
            bar.close()
        progress.done = True
        self._checkpoint()
        self.engine.destroy()

    def _step(self, step: Step) -> float:
        """One global batch: forward, backward, update; returns its mean loss on this worker's share."""
        setup, micro = self.setup, step.micro_batches
        total = torch.stack([b.weights_BS.abs().sum() for b in micro]).sum().to(setup.device)
        if setup.world > 1:
            dist.all_reduce(total)
        torch.manual_seed(hash((self.config.seed, self.phase == "encoder", self.progress.step, setup.rank)))
        engine.set_learning_rate(self.engine, self._lr_factor())
        mean = 0.0
        for number, (batch, distinct) in enumerate(zip(micro, step.distinct_items, strict=True)):
            loss = self.engine(
                "loss",
                items=setup.items,
                text=self.text,
                batch=batch.to(setup.device),
                config=self.config,
                loss=self.loss_name,
                negatives=self._negatives(number),
                **self._fresh(distinct, number),
            )
            # DeepSpeed averages over workers and micro-batches; ours is a sum over the global batch.
            loss = loss * (setup.world * len(micro)) / total.clamp(min=1e-9)
            mean += float(loss.detach()) / len(micro)
            self.engine.backward(loss)
            self.engine.step()
        self.table_is_fresh = False
        return mean

    def _lr_factor(self) -> float:
        """Linear warm-up, then a cosine down to `final_lr`."""
        done, config = self.progress.step / self.total_steps, self.config
        warm = min(1.0, (self.progress.step + 1) / max(config.warmup * self.total_steps, 1))
        return warm * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

    def _generator(self, number: int) -> np.random.Generator:
        """Random numbers of a micro-batch that all workers share."""
        return np.random.default_rng([self.config.seed, self.phase == "encoder", self.progress.step, number])

    def _negatives(self, number: int) -> torch.Tensor | None:
        if self.loss_name == "softmax":
            return None
        drawn = self._generator(number).integers(0, self.setup.shape.num_items, self.config.negatives)
        return torch.from_numpy(drawn).to(self.setup.device)

    def _fresh(self, distinct: np.ndarray, number: int) -> dict[str, Any]:
        """In the encoder phase: which items of the micro-batch are encoded with gradient, and how."""
        if self.phase != "encoder":
            return {}
        assert self.setup.tokens is not None and self.present is not None
        which = np.intersect1d(distinct, self.present)
        if len(which) > self.config.fresh_items:
            which = self._generator(number).choice(which, self.config.fresh_items, replace=False)
        if len(which) == 0:
            which = self.present[:1]  # every worker must still pass through the encoder
        budget = self.setup.config.encoder.token_budget
        plan = plan_encoding(which, self.setup.tokens.lengths, budget=budget, world=self.setup.world)
        return {"tokens": self.setup.tokens, "plan": plan, "rank": self.setup.rank}

    def _refresh(self) -> None:
        """Encode the whole table anew with the encoder as it is, unless it is up to date."""
        if self.phase == "encoder" and not self.table_is_fresh:
            self.table_is_fresh = True
            setup = self.setup
            assert setup.tokens is not None and self.text is not None
            present = has_text(setup.catalogue.texts)
            _encode_table(
                self.engine.module, setup.tokens, present, setup.config, self.text.vectors_IH,
                setup.rank, setup.world, setup.device,
            )  # fmt: skip

    def _evaluate(self, *, loss: float | None) -> None:
        """Validate, keep the weights where they are the best so far, log."""
        self._refresh()
        progress, setup = self.progress, self.setup
        values: dict[str, Any] = {"phase": self.phase, "step": progress.step}
        values["epoch"] = progress.step / self.steps_per_epoch
        if loss is not None:
            loss = self._average(loss)
            values["loss"] = loss
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {progress.step}; lower train.{self.phase}_lr")
        better = True  # without validation events the last weights are the best ones
        if setup.validator is not None:
            metric = setup.validator.ndcg(self.engine.module, setup.items, self.text)
            values["valid_ndcg@10"] = metric
            better = metric > progress.best
            progress.stale = 0 if better else progress.stale + 1
            progress.best = max(progress.best, metric)
        if better:
            progress.best_step = progress.step
            weights = checkpoint.full_weights(self.engine)
            if setup.rank == 0:
                storage.write_bytes(self.best_path, save_tensors(weights))
        if setup.tracker is not None:
            values["lr"] = self._lr_factor()
            values["seconds"] = round(progress.seconds, 2)
            if progress.seconds and loss is not None:
                values["events_per_s"] = self.stream.num_events * values["epoch"] / progress.seconds
            setup.tracker.log(values)
            setup.tracker.flush()
            figures = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if k not in ("phase", "step", "lr"))
            logger.info("%s step %d/%d  %s", self.phase, progress.step, self.total_steps, figures)

    def _average(self, value: float) -> float:
        """Mean over the workers."""
        if self.setup.world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=self.setup.device)
        dist.all_reduce(total)
        return float(total) / self.setup.world

    def _checkpoint(self) -> None:
        """Report a checkpoint to Ray Train, which keeps the last ones; every worker takes part."""
        self._refresh()  # so that a resumed run, which must encode anew, sees the same table
        weights, moments = checkpoint.full_weights(self.engine), checkpoint.full_moments(self.engine)
        state = {"progress": self.progress.to_dict(), "optimizer_step": checkpoint.optimizer_step(self.engine)}
        metrics = {"phase": self.phase, "step": self.progress.step, "valid_ndcg@10": self.progress.best}
        if self.setup.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(dir=self.setup.scratch) as folder:
            checkpoint.save(folder, weights, moments, state)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _bar(self) -> Any:
        if self.setup.rank != 0:
            return None
        bar = tqdm_ray.tqdm(total=self.total_steps, desc=f"train {self.phase}", unit="step", flush_interval_s=1.0)
        bar.update(self.progress.step)
        return bar


def _export(setup: Setup, towers: dict[str, torch.Tensor], best: dict[str, torch.Tensor] | None, path: str) -> None:
    """Write a bundle from the best weights; `best` has the encoder's, None where it was not tuned."""
    made = Towers(setup.config.model, setup.shape, temperature=setup.config.train.temperature)
    made.load_state_dict(towers)
    encoder, text = None, setup.frozen
    if best is not None:
        encoder = TextEncoder(setup.config.encoder, setup.encoder_path, tune=True)
        checkpoint.load_weights(
            encoder, {n.removeprefix("encoder."): w for n, w in best.items() if n.startswith("encoder.")}
        )
        assert setup.tokens is not None and text is not None
        text = TextTable(**{**vars(text), "vectors_IH": text.vectors_IH.clone()})
        network = Network(made, encoder).to(setup.device)
        present = has_text(setup.catalogue.texts)
        _encode_table(
            network, setup.tokens, present, setup.config, text.vectors_IH, setup.rank, setup.world, setup.device
        )
    if setup.rank == 0:
        made = made.to(setup.device).eval()
        with torch.inference_mode():
            vectors, _ = made(setup.items, text)
        scale = {} if text is None else {"mean": text.mean_H.cpu().numpy(), "scale": text.scale_H.cpu().numpy()}
        write_bundle(
            path,
            config=setup.config,
            data=setup.data,
            shape=setup.shape,
            towers={n: w.contiguous() for n, w in towers.items()},
            item_vectors=np.ascontiguousarray(vectors.float().cpu().numpy()),
            text_scale=scale,
            encoder=encoder.cpu() if encoder is not None else None,
            scratch=setup.scratch,
        )
    dist.barrier()
