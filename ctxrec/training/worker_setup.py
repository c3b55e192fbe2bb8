"""What the phases of a training share on one worker: data, features, text vectors of the un-tuned encoder."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ctxrec.core import ray_private, storage
from ctxrec.core.config import Config
from ctxrec.data.batching import Batcher
from ctxrec.data.features import ItemFeatures, item_features
from ctxrec.data.log_statistics import LogScan, scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests
from ctxrec.encoder.cache import Place, item_keys, vector_store, with_states
from ctxrec.encoder.media import media_tables
from ctxrec.encoder.text_encoder import TextEncoder, Tokens, plan_encoding, resolve_encoder, tokenise
from ctxrec.encoder.text_table import TextTable, has_text, make_text_table
from ctxrec.memory.item_memory import ItemMemory, fit_memory
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.network import EncodeInputs, Network, choose_loss
from ctxrec.training import deepspeed_engine
from ctxrec.training.trackers import Tracker
from ctxrec.training.validator import Validator

logger = logging.getLogger(__name__)

CHECKPOINTS, BEFORE, TEXT, MEDIA = "checkpoints", "before", "text.safetensors", "media.safetensors"


@dataclass
class Setup:
    """What all phases share on one worker."""

    config: Config
    data: PreparedData
    run: str
    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype
    catalogue: ItemFeatures
    shape: ModelShape
    items: ItemTensors  # with what the training events say of them
    refit_items: ItemTensors  # with the validation events too
    batcher: Batcher
    log: LogScan  # with its events on rank 0 alone, which alone makes memories
    valid: Requests | None
    validator: Validator | None
    encoder_path: str  # empty without text encoder
    tokens: Tokens | None
    present: np.ndarray  # bool [I], which items have a text
    frozen: TextTable | None  # vectors of the un-tuned encoder
    media: dict[str, np.ndarray]  # vectors of images and sounds by kind, float16 [I, V]
    scratch: str  # a local folder for as long as the training lasts
    profile: bool  # trace some steps of each phase
    tracker: Tracker | None = None  # rank 0 alone
    _memories: dict[int, ItemMemory] = field(default_factory=dict)

    def memory(self, before: int) -> ItemMemory:
        """What the events of earlier splits than `before` say of items; fitted when it is first asked for, as it takes
        minutes for a large catalogue."""
        if before not in self._memories:
            parts, repeats = self.log.training_events(before), self.data.spec.split.repeats
            self._memories[before] = fit_memory(parts, self.shape.num_items, repeats=repeats)
        return self._memories[before]

    @property
    def checkpoints(self) -> str:
        return storage.join(self.run, CHECKPOINTS)


def prepare_process() -> Place:
    """Make this process of a Ray Train worker ready to train: its logging, device and threads; returns its place."""
    ray_private.quiet_train_reports()  # the tracker writes a line for every report
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    if device.type == "cpu":
        deepspeed_engine.use_cpu_accelerator()
    else:
        torch.set_float32_matmul_precision("high")  # TF32 in the losses, which are float32 beside bf16
    torch.set_num_threads(max(int(os.environ.get("OMP_NUM_THREADS", "1")), 1))
    return Place(
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
        device,
    )


def set_up(config: Config, data_path: str, run: str, scratch: str, place: Place, *, profile: bool = False) -> Setup:
    """Read and make what all phases share; every worker must call it.

    Args:
        config: all options.
        data_path: folder that `prepare` wrote.
        run: the run, which keeps text vectors for later starts.
        scratch: a local folder for as long as the training lasts.
        place: of this worker.
        profile: trace some steps of each phase.
    """
    rank, world, device = place.rank, place.world, place.device
    data = PreparedData.open(data_path)
    catalogue = item_features(data.items, data.features)
    encoder_path, tokens, frozen = "", None, None
    present = has_text(catalogue.texts)
    if config.encoder.name and config.model.use_text and present.any():
        encoder_path = resolve_encoder(config.encoder.name, storage.cache_dir())
        tokens = tokenise(encoder_path, catalogue.texts, max_tokens=config.encoder.max_tokens)
        if config.train.encoder_epochs:
            tokens = with_states(tokens, present, encoder_path, config.encoder, place)
        frozen = _frozen_table(config, run, encoder_path, tokens, present, place)
    media = {}
    if config.model.use_media:
        media = media_tables(config.encoder, data, storage.join(run, CHECKPOINTS, MEDIA), place)
    shape = ModelShape.of(
        config.model,
        data.features,
        num_items=len(catalogue),
        text_width=frozen.vectors_IH.shape[1] if frozen is not None else 0,
        media_widths={kind: vectors.shape[1] for kind, vectors in media.items()},
    )
    batcher = Batcher(data.features, history=config.model.history, action_weights=data.spec.events.actions)
    history, num_requests = config.model.history, config.train.valid_users
    log = scan_log(data, history=history, num_validation_requests=num_requests, keep_events=rank == 0)
    requests = log.validation
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
        dtype=deepspeed_engine.choose_precision(config.train, device),
        catalogue=catalogue,
        shape=shape,
        items=ItemTensors.of(catalogue, shape, device, trained=log.train.trained_I, media=media),
        refit_items=ItemTensors.of(catalogue, shape, device, trained=log.refit.trained_I, media=media),
        batcher=batcher,
        log=log,
        valid=requests,
        validator=validator,
        encoder_path=encoder_path,
        tokens=tokens,
        present=present,
        frozen=frozen,
        media=media,
        scratch=scratch,
        profile=profile,
        tracker=Tracker(run, config.to_dict(), config.train.trackers) if rank == 0 else None,
    )


def choices(
    config: Config, *, dtype: torch.dtype, device: torch.device, num_items: int, encoded: bool, cut: bool
) -> str:
    """In one line what the options leave to the catalogue and the hardware, and what came of it.

    Args:
        config: all options.
        dtype: what products are computed in.
        device: of the workers.
        num_items: items of the catalogue.
        encoded: whether the encoder is trained.
        cut: whether what the layers below the trained ones make of a text comes from disk.
    """
    loss, most = choose_loss(config.train, num_items), config.train.full_softmax_items
    parts = [f"{'bf16' if dtype == torch.bfloat16 else 'fp32'} on {device.type}, ZeRO-{config.train.zero_stage}"]
    parts.append(
        f"{loss} over {num_items:,} items" + (f" (full up to {most:,})" if config.train.loss == "auto" else "")
    )
    if encoded:
        top = config.encoder.top_layers if config.encoder.tune != "full" else 0
        where = f"in the top {top} layers" if top else "in all layers"
        parts.append(f"{config.encoder.tune} {where}" + (", states below them from disk" if cut else ""))
        parts.append(f"{config.train.fresh_items} items of a step fresh")
    return "; ".join(parts)


def _frozen_table(
    config: Config, run: str, encoder_path: str, tokens: Tokens, present: np.ndarray, place: Place
) -> TextTable:
    """Vectors of the un-tuned encoder: from the run, or from the machine's disk, or encoded by all workers together."""
    path = storage.join(run, CHECKPOINTS, TEXT)
    if not storage.exists(path):
        encoder = TextEncoder(config.encoder, encoder_path, tune=False)
        table = torch.zeros(len(present), encoder.width)
        _encode_new(config, encoder_path, encoder.to(place.device).eval(), tokens, present, place, table)
        if place.rank == 0:
            tensors = {"vectors": table, "present": torch.from_numpy(present.astype(np.uint8))}
            storage.write_bytes(path, save_tensors(tensors))
        dist.barrier()
    vectors = load_tensors(storage.read_bytes(path))["vectors"].numpy()
    return _to(make_text_table(vectors, present), place.device)


def _encode_new(
    config: Config,
    encoder_path: str,
    encoder: TextEncoder,
    tokens: Tokens,
    present: np.ndarray,
    place: Place,
    table_IH: torch.Tensor,
) -> None:
    """Fill the rows of `table_IH` from the machine's disk; those that some machine lacks are encoded by all together."""
    store, keys = vector_store(encoder_path, config.encoder, encoder.width), item_keys(tokens)
    missing = torch.tensor([bool(has) and key not in store for has, key in zip(present, keys, strict=True)])
    missing = missing.to(place.device, torch.int32)
    dist.all_reduce(missing, op=dist.ReduceOp.MAX)
    missing = missing.cpu().numpy() > 0
    for item in np.flatnonzero(present & ~missing).tolist():
        table_IH[item] = torch.from_numpy(store.read(keys[item])[0].copy())
    if not missing.any():
        return
    network = Network(torch.nn.Identity(), encoder)  # type: ignore[arg-type]
    encode_table(network, tokens, missing, config, table_IH, place.rank, place.world, place.device)
    if place.local_rank == 0:
        vectors = table_IH.numpy()
        new = {keys[i]: vectors[i : i + 1] for i in np.flatnonzero(missing).tolist() if keys[i] not in store}
        try:
            store.write(new)
        except OSError as error:  # the disk is full: this training goes on, the next one encodes again
            logger.warning("the text vectors are not kept for later trainings: %s", error)


def _to(table: TextTable, device: torch.device) -> TextTable:
    return TextTable(*(value.to(device) for value in vars(table).values()))


@torch.no_grad()
def encode_table(
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
    vectors = network(EncodeInputs(tokens, plan, rank, device))
    table_IH[torch.from_numpy(plan.order[: plan.num_texts]).to(table_IH.device)] = vectors.to(table_IH)
    network.train(was_training)
