"""What each Ray Train worker runs: the phases of a training.

First the towers are trained on frozen text vectors, then the encoder's adapters, then the towers once more on training
and validation events. Two things outlive a process: a checkpoint (weights, optimizer, place in the stream), and the best
weights of each phase. A worker that finds them continues from there, whatever the number of workers was.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from typing import Any

import torch
import torch.distributed as dist

from ctxrec.core import schema, storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.tensor_files import AGAIN, read_tensors, write_tensors
from ctxrec.encoder.cache import Place
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import make_text_table
from ctxrec.model.network import Network
from ctxrec.model.two_tower import Towers
from ctxrec.training import checkpoint, faults
from ctxrec.training.export import Chosen, FittedBlend, calibrate, export, tuned_encoder, tuned_text
from ctxrec.training.pair_phase import tune_on_pairs
from ctxrec.training.phase_setup import Report, Setup
from ctxrec.training.phase_trainer import SHARE, PhaseRun, Progress, Resumed
from ctxrec.training.profiler import StepTrace
from ctxrec.training.tuning_rule import why_never_tuned
from ctxrec.training.warm_start import WARM_START, read_earlier, warm_probability, warm_weights, with_warm_options
from ctxrec.training.window_sampler import NewEvents, TrainStream
from ctxrec.training.worker_setup import describe_choices, set_up

logger = logging.getLogger(__name__)


def train_worker(job: dict[str, Any], place: Place, report: Report) -> None:
    """Train on this worker.

    A user's mistake is recorded for the driver to report, because another attempt would fail in the same way.

    Args:
        job: config (plain values), data and run (paths or URIs), start, profile and warm (see
            `ctxrec.training.driver.train`).
        place: of this process among the workers.
        report: takes the figures and the folder of each checkpoint.
    """
    checkpoints = RunPaths(job["run"]).checkpoints
    if faults.mistake(checkpoints) is not None:
        return  # another worker has recorded one, so the training ends
    try:
        with tempfile.TemporaryDirectory(prefix="ctxrec-worker-") as scratch:
            _train(job, scratch, place, report)
    except UserError as error:
        faults.record_mistake(checkpoints, error)


def _train(job: dict[str, Any], scratch: str, place: Place, report: Report) -> None:
    config = Config.from_dict(job["config"])
    if job["warm"]:
        options = with_warm_options(config)
        on = set_up(options, job["data"], job["run"], scratch, place, profile=job["profile"], report=report)
        _train_on(on, config, job)
        return
    setup = set_up(config, job["data"], job["run"], scratch, place, profile=job["profile"], report=report)
    worker, texts = setup.worker, setup.catalogue.texts
    why_not = "no item has a text" if texts is None else texts.why_not_tuned
    phases = ["towers"] + ["encoder"] * (not why_not) + ["refit"] * _refits(setup)
    if worker.rank == 0:
        logger.info("training on %d worker%s", worker.world, "s" * (worker.world > 1))
        encoded, cut = "encoder" in phases, texts is not None and texts.tokens.states is not None
        found = {"dtype": worker.dtype, "device": worker.device, "num_items": setup.catalogue.shape.num_items}
        logger.info("chosen: %s", describe_choices(config, **found, encoded=encoded, cut=cut))
        if config.train.offload and not config.train.zero_stage and worker.dtype != torch.bfloat16:
            logger.warning("train.offload has no effect with train.zero_stage = 0; take stage 1, 2 or 3")
        storage.write_json(RunPaths(setup.run).not_tuned, {"why": why_not})
        if why_not:
            logger.info("the encoder is not tuned, because %s", why_not)
    pooled = None
    if config.train.also and not why_never_tuned(config) and texts is not None:
        pooled = tune_on_pairs(setup)
        if not storage.exists(RunPaths(setup.run).pair_outcome):
            return  # the training was asked to end
        if pooled is not None:
            # The vectors moved far, so they get a centre and a scale of their own.
            vectors_IH = tuned_text(setup, pooled).vectors_IH.cpu().numpy()
            table = make_text_table(vectors_IH, texts.present_I).to(worker.device)
            tuned = dataclasses.replace(texts, frozen=table)
            setup = dataclasses.replace(setup, catalogue=dataclasses.replace(setup.catalogue, texts=tuned))
    resumed = _load_checkpoint(setup, job["start"])
    done: dict[str, dict[str, torch.Tensor]] = {}
    chosen = Chosen(setup.catalogue.frozen, pooled, 1.0)
    for number, phase in enumerate(phases):
        best_path = RunPaths(setup.run).best(phase)
        later = resumed is not None and phases.index(resumed.progress.phase) > number
        if not later:
            begun = resumed if resumed and resumed.progress.phase == phase else None
            start = done["towers"] if phase == "encoder" else {}
            if not _run_phase(setup, phase, start, best_path, begun, chosen):
                return
        dist.barrier()
        best = read_tensors(best_path, remedy=f"delete {setup.checkpoints}, and {AGAIN} trains from the beginning")
        done[phase] = {n.removeprefix("towers."): w for n, w in best.items() if n.startswith("towers.")}
        if phase == "towers":
            chosen = dataclasses.replace(chosen, share=float(best[SHARE]))
            blend = calibrate(setup, done["towers"], chosen)
            of_frozen = chosen, blend
        elif phase == "encoder":
            encoder = tuned_encoder(setup, best)
            chosen = dataclasses.replace(chosen, encoder=encoder)
            if float(best[SHARE]) > 0:
                # Evaluation compares the models before and after this phase, none of them refitted.
                export(setup, done["towers"], *of_frozen, RunPaths(setup.run).before, refitted=False)
                chosen = dataclasses.replace(chosen, text=tuned_text(setup, encoder))
                blend = calibrate(setup, done["encoder"], chosen)
                if "refit" in phases:
                    export(setup, done["encoder"], chosen, blend, RunPaths(setup.run).tuned, refitted=False)
            elif worker.rank == 0:  # the best weights are those that the phase began with
                logger.info("tuning gains nothing on the validation events; the encoder stays as it was")
    last = phases[-1]
    if worker.rank == 0:
        storage.write_json(RunPaths(setup.run).blend_ndcg, {"ndcg@10": None if blend is None else blend.ndcg})
    export(setup, done[last], chosen, blend, RunPaths(setup.run).bundle, refitted=last == "refit")
    if worker.tracker is not None:
        worker.tracker.close()


def _train_on(setup: Setup, config: Config, job: dict[str, Any]) -> None:
    """Train the towers of an earlier bundle on: one phase over the new events and a replay of others.

    Args:
        setup: what a phase needs, with the options of a warm start.
        config: the options as they were given, which the bundle keeps.
        job: see `train_worker`.
    """
    worker, catalogue = setup.worker, setup.catalogue
    texts = catalogue.texts
    earlier = read_earlier(job["warm"], None if texts is None else texts.encoder_path, scratch=worker.scratch)
    text = catalogue.frozen if earlier.encoder is None else tuned_text(setup, earlier.encoder)
    if text is not None:
        scale = {f"{name}_H": torch.from_numpy(value).to(worker.device) for name, value in earlier.text_scale.items()}
        text = dataclasses.replace(text, **scale)
    chosen = Chosen(text, earlier.encoder, 1.0)
    if worker.rank == 0:
        logger.info("training on from %s with %d worker%s", earlier.version, worker.world, "s" * (worker.world > 1))
        storage.write_json(RunPaths(setup.run).not_tuned, {"why": f"it stays as version {earlier.version} has it"})
    torch.manual_seed(config.train.seed)
    fresh = Towers(config.model, catalogue.shape, temperature=config.train.temperature).state_dict()
    ids = setup.log.data.items.column(schema.ITEM_ID).to_pylist()
    start = warm_weights(fresh, earlier, catalogue.shape, ids)
    best_path = RunPaths(setup.run).best("refit")
    new = NewEvents(earlier.trained_until_us, WARM_START.replay)
    if not _run_phase(setup, "refit", start, best_path, _load_checkpoint(setup, job["start"]), chosen, new):
        return
    dist.barrier()
    best = read_tensors(best_path, remedy=f"delete {setup.checkpoints}, and {AGAIN} trains from the beginning")
    towers = {n.removeprefix("towers."): w for n, w in best.items() if n.startswith("towers.")}
    probability = warm_probability(earlier, ids, judged=setup.log.data.kinds.are_judged)
    blend = None
    if earlier.blend is not None:
        blend = FittedBlend(earlier.blend.weights_2K, float("nan"), None, probability)
    if worker.rank == 0:
        storage.write_json(RunPaths(setup.run).blend_ndcg, {"ndcg@10": None})
    as_given = dataclasses.replace(setup, config=config)
    export(as_given, towers, chosen, blend, RunPaths(setup.run).bundle, refitted=True)
    if worker.tracker is not None:
        worker.tracker.close()


def _refits(setup: Setup) -> bool:
    return setup.config.train.refit and setup.log.validator is not None


def _load_checkpoint(setup: Setup, start: str) -> Resumed | None:
    """The checkpoint to continue from: the run's newest undamaged one, else the one at `start`, else None."""
    # One worker looks for it, so that all workers take the same one.
    scratch = setup.worker.scratch
    chosen = [checkpoint.newest_whole(setup.checkpoints, scratch) if setup.worker.rank == 0 else None]
    dist.broadcast_object_list(chosen)
    path = chosen[0] or start
    if not path:
        return None
    folder = storage.fetch_dir(path, scratch=scratch)
    state = storage.read_json(os.path.join(folder, checkpoint.STATE))
    progress = Progress(**state["progress"])
    if setup.worker.rank == 0:
        logger.info("going on from phase %s, step %d", progress.phase, progress.step)
    return Resumed(progress=progress, folder=folder, optimizer_step=state["optimizer_step"])


def _run_phase(
    setup: Setup,
    phase: str,
    towers: dict[str, torch.Tensor],
    best_path: str,
    resumed: Resumed | None,
    chosen: Chosen,
    new: NewEvents | None = None,
) -> bool:
    """Train one phase to its end or to early stopping, and write its best weights to `best_path`.

    Args:
        setup: what all phases share.
        phase: "towers", "encoder" or "refit".
        towers: weights to start from; empty for new ones.
        best_path: where the best weights go.
        resumed: the checkpoint of this phase to continue from.
        chosen: what earlier phases settled.
        new: reads only the windows with new events, and some others.

    Returns:
        False where the training was asked to end before the phase was done.
    """
    if resumed is not None and resumed.progress.done:
        return True
    config, worker, log, catalogue = setup.config.train, setup.worker, setup.log, setup.catalogue
    epochs = config.most_encoder_epochs if phase == "encoder" else config.tower_epochs
    last_split = schema.VALID if phase == "refit" else schema.TRAIN
    torch.manual_seed(config.seed)
    made = Towers(setup.config.model, catalogue.shape, temperature=config.temperature)
    if towers:
        made.load_state_dict(towers)
    elif made.content is not None and catalogue.frozen is not None:
        made.content.start_from(catalogue.frozen)
    encoder = None
    if phase == "encoder":
        texts = catalogue.texts
        assert texts is not None
        cut = texts.tokens.states is not None
        encoder = TextEncoder(setup.config.encoder, texts.encoder_path, tune=True, cut=cut)
        if chosen.encoder is not None:  # it was tuned on pairs before
            checkpoint.load_weights(encoder, checkpoint.trainable(chosen.encoder))
        encoder.fit_to(worker.device, worker.dtype)
    network = Network(made, encoder).to(worker.device)
    stream = TrainStream(
        log.data,
        log.scan,
        log.batcher,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        rank=worker.rank,
        world=worker.world,
        last_split=last_split,
        new=new,
    )
    if not stream.steps_per_epoch:  # no event is new, so the earlier weights stay
        if worker.rank == 0:
            weights = {f"towers.{name}": weight.cpu() for name, weight in towers.items()}
            write_tensors(best_path, {**weights, SHARE: torch.tensor(1.0)})
        return True
    trace = None
    if worker.profile and worker.rank == 0:
        trace = StepTrace(RunPaths(setup.run).profile, phase, worker.scratch)
    run = PhaseRun(setup, phase, network, stream, epochs, best_path, chosen, trace)
    run.start(resumed)
    return run.train()
