"""Make what the phases of a training share on one worker: this process, the log, the catalogue."""

from __future__ import annotations

import torch

from ctxrec.core.config import Config
from ctxrec.data.batching import Batcher
from ctxrec.data.log_statistics import scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.cache import Place
from ctxrec.model.network import FULL_SOFTMAX_ITEMS, choose_loss
from ctxrec.training import deepspeed_engine
from ctxrec.training.catalogue_vectors import read_catalogue
from ctxrec.training.phase_setup import Report, Setup, TrainingLog, Worker, keep_nothing
from ctxrec.training.trackers import Tracker
from ctxrec.training.user_texts import read_user_texts
from ctxrec.training.validator import Validator


def set_up(
    config: Config,
    data_path: str,
    run: str,
    scratch: str,
    place: Place,
    *,
    profile: bool = False,
    report: Report = keep_nothing,
) -> Setup:
    """Read and make what all phases share; every worker must call it.

    Args:
        config: all options.
        data_path: folder that `prepare` wrote.
        run: the run, which keeps text vectors for later starts.
        scratch: a local folder for as long as the training lasts.
        place: of this worker.
        profile: trace some steps of each phase.
        report: takes the figures and the folder of each checkpoint.
    """
    data = PreparedData.open(data_path)
    scan = scan_log(
        data,
        history=config.model.history,
        num_validation_requests=config.train.valid_users,
        keep_events=place.rank == 0,
    )
    catalogue = read_catalogue(config, data, scan, run, place)
    user_texts = read_user_texts(config, data, catalogue, run, place)
    batcher = Batcher(
        data.features,
        history=config.model.history,
        kinds=data.kinds,
        user_texts=None if user_texts is None else user_texts.texts,
    )
    validator = None
    if scan.validation is not None:
        repeats, rank, world = data.spec.split.repeats, place.rank, place.world
        validator = Validator(scan.validation, batcher, repeats=repeats, rank=rank, world=world, device=place.device)
    return Setup(
        config=config,
        run=run,
        worker=Worker(
            place=place,
            dtype=deepspeed_engine.choose_precision(config.train, place.device),
            scratch=scratch,
            profile=profile,
            tracker=Tracker(run, config.to_dict(), config.train.trackers) if place.rank == 0 else None,
            report=report,
        ),
        log=TrainingLog(data, scan, batcher, validator),
        catalogue=catalogue,
        user_texts=user_texts,
    )


def describe_choices(
    config: Config, *, dtype: torch.dtype, device: torch.device, num_items: int, encoded: bool, cut: bool
) -> str:
    """One line about the choices that the options leave to the catalogue and the hardware.

    Args:
        config: all options.
        dtype: what products are computed in.
        device: of the workers.
        num_items: items of the catalogue.
        encoded: whether the encoder is tuned.
        cut: whether the states of the layers below the tuned ones come from disk.
    """
    loss = choose_loss(config.train, num_items)
    parts = [f"{'bf16' if dtype == torch.bfloat16 else 'fp32'} on {device.type}, ZeRO-{config.train.zero_stage}"]
    parts.append(
        f"{loss} over {num_items:,} items"
        + (f" (full up to {FULL_SOFTMAX_ITEMS:,})" if config.train.loss == "auto" else "")
    )
    if encoded:
        top = config.encoder.top_layers if config.encoder.tune != "full" else 0
        where = f"in the top {top} layers" if top else "in all layers"
        parts.append(f"{config.encoder.tune} {where}" + (", states below them from disk" if cut else ""))
        parts.append(f"{config.train.fresh_items} items of a step fresh")
    return "; ".join(parts)
