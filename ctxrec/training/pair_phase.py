"""Tune the text encoder on pairs of items of several logs, before the towers are trained (`train.also`).

A log that is too small to teach an encoder has neighbours that are not: another shop, an older year, another country. What
their users had together says which words matter, and that holds for the own catalogue where its texts speak of the same things.
The loss is contrastive: the text of an item, the text of one that came soon after it, and all others of that log as negatives.

Legend: I items, H encoder width, P pairs.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from ctxrec.core import schema, storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.features import item_features
from ctxrec.data.item_pairs import ItemPairs
from ctxrec.data.log_statistics import scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests
from ctxrec.data.tensor_files import AGAIN, read_tensors, write_tensors
from ctxrec.encoder.cache import Place, with_states
from ctxrec.encoder.encode_plan import Tokens, plan_encoding, tokenise
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import has_text
from ctxrec.index.topk import top_k
from ctxrec.metrics.ranking import request_metrics
from ctxrec.model.network import EncodeInputs, Network, PairInputs
from ctxrec.training import checkpoint, deepspeed_engine, faults
from ctxrec.training.catalogue_vectors import encode_table
from ctxrec.training.encoder_outcome import PairOutcome
from ctxrec.training.export import tuned_encoder
from ctxrec.training.phase_setup import Setup
from ctxrec.training.tuning_rule import why_never_tuned
from ctxrec.training.validator import METRIC_K

logger = logging.getLogger(__name__)

PHASE = "pairs"
_HISTORY = 10  # latest items of a request whose texts rank the catalogue, to judge an encoder by its texts alone


@dataclass(frozen=True)
class PairParams:
    """Numbers of the phase. The lab book (`tests/bench/RESULTS.md`, 2026-12-01) says what was measured.

    Attributes:
        steps: of the phase, over all logs together.
        looks: how often the validation events of the own log judge the encoder; the best of these, or the encoder as it
            was, is kept.
        gap: the second item of a pair came at most so many events after the first.
        pairs: of a step, at most.
        candidates: items that the second item of a pair is told from, at most.
    """

    steps: int = 100
    looks: int = 5
    gap: int = 5
    pairs: int = 1024
    candidates: int = 8192


PAIR_PARAMS = PairParams()


class _PairLog:
    """A log as the phase reads it: its texts, the latest vectors of them, and its pairs."""

    def __init__(self, tokens: Tokens, present_I: np.ndarray, pairs: ItemPairs, place: Place, width: int) -> None:
        self.tokens, self.present_I, self.pairs = tokens, present_I, pairs
        self.table_IH = torch.zeros(len(present_I), width, device=place.device)
        self.centre_H = torch.zeros(width, device=place.device)
        has_pair = np.zeros(len(present_I), bool)
        has_pair[pairs.before_P], has_pair[pairs.after_P] = True, True
        self.learnt_from = np.flatnonzero(has_pair & present_I)


def open_other_logs(config: Config, data: PreparedData) -> list[PreparedData]:
    """The logs of `train.also`; none where no phase can change the encoder.

    Raises:
        UserError: one is not there, is the log that is trained on, or has no text or no training event.
    """
    found = []
    for path in () if why_never_tuned(config) else config.train.also:
        other = PreparedData.open(path)
        if other.fingerprint == data.fingerprint:
            raise UserError(
                f"train.also names {path}, which is the log that is trained on; expected other logs; leave it out"
            )
        if not has_text(item_features(other.items, other.features).texts).any() or not other.meta["counts"]["train"]:
            what = "item with a text" if other.meta["counts"]["train"] else "training event"
            raise UserError(
                f"{path} of train.also has no {what}; expected a log from which the encoder can learn; leave it out"
            )
        found.append(other)
    return found


def tune_on_pairs(setup: Setup, params: PairParams = PAIR_PARAMS) -> TextEncoder | None:
    """Tune the encoder on the pairs of the own log and of those of `train.also`; every worker must call it.

    A killed phase begins anew; a finished one is read from the run.

    Args:
        setup: what all phases share.
        params: numbers of the phase.

    Returns:
        The tuned encoder with all of its layers; None where it stays as it was. Where the training was asked to end,
        `faults.stop_asked` says so, and the result is of no use.
    """
    paths = RunPaths(setup.run)
    if not storage.exists(paths.pair_outcome):
        _PairPhase(setup, params).run()
        if dist.is_initialized():
            dist.barrier()
    if not storage.exists(paths.pair_outcome) or not PairOutcome.read(paths.pair_outcome).kept:
        return None
    best = read_tensors(paths.best(PHASE), remedy=f"delete {setup.checkpoints}, and {AGAIN} trains from the beginning")
    return tuned_encoder(setup, best)


class _PairPhase:
    """The engine and the loop of the phase."""

    def __init__(self, setup: Setup, params: PairParams) -> None:
        texts, config = setup.catalogue.texts, setup.config
        assert texts is not None
        self.setup, self.params, self.worker, self.config = setup, params, setup.worker, config
        cut = texts.tokens.states is not None
        torch.manual_seed(config.train.seed)
        encoder = TextEncoder(config.encoder, texts.encoder_path, tune=True, cut=cut)
        encoder.fit_to(self.worker.device, self.worker.dtype)
        # Rank 0 alone has the events of the own log's scan, and every worker draws from the pairs.
        self.logs = [self._log(setup.log.data, texts.tokens, texts.present_I, encoder.width)]
        for other in open_other_logs(config, setup.log.data):
            self.logs.append(self._other(other, texts.encoder_path, encoder.width, cut))
        network = Network(torch.nn.Identity(), encoder).to(self.worker.device)
        groups = deepspeed_engine.parameter_groups(
            network, config.train, tower_lr=0.0, encoder_lr=config.train.encoder_lr
        )
        ds_config = deepspeed_engine.deepspeed_config(
            config.train,
            world=self.worker.world,
            accumulation=1,
            rows_per_micro_batch=max(params.pairs // self.worker.world, 1),
            dtype=self.worker.dtype,
        )
        self.engine = deepspeed_engine.start_engine(network, groups, ds_config)
        self.stop = faults.StopWatch(setup.checkpoints)

    def _log(self, data: PreparedData, tokens: Tokens, present_I: np.ndarray, width: int) -> _PairLog:
        scan = scan_log(data, history=1, keep_events=True)
        pairs = ItemPairs.of(scan.training_events(schema.VALID), data.num_items, steps=self.params.gap)
        return _PairLog(tokens, present_I, pairs, self.worker.place, width)

    def _other(self, data: PreparedData, encoder_path: str, width: int, cut: bool) -> _PairLog:
        config, place = self.config.encoder, self.worker.place
        texts = item_features(data.items, data.features).texts
        present_I, tokens = has_text(texts), tokenise(encoder_path, texts, max_tokens=config.max_tokens)
        if cut:
            tokens = with_states(tokens, present_I, encoder_path, config, place)
            if tokens.states is None:
                raise UserError(
                    f"the states of the texts of {data.path} cannot be kept on disk; set encoder.cache_gb to 0"
                )
        return self._log(data, tokens, present_I, width)

    def run(self) -> None:
        """Run all steps; write the best weights and the outcome, unless the training was asked to end."""
        begin = time.monotonic()
        for log in self.logs:
            self._encode(log)
            log.centre_H = log.table_IH[torch.from_numpy(log.present_I).to(log.table_IH.device)].mean(0)
        before = best = self._ndcg()
        kept = False
        sizes = np.array([len(log.pairs) for log in self.logs], float)
        every = max(self.params.steps // self.params.looks, 1)
        for step in range(self.params.steps):
            rng = np.random.default_rng([self.config.train.seed, step])
            log = self.logs[rng.choice(len(self.logs), p=sizes / sizes.sum())]
            if self._step(step, log, rng):
                self.engine.destroy()
                return
            if (step + 1) % every == 0 or step + 1 == self.params.steps:
                self._encode(self.logs[0])
                found = self._ndcg()
                logger.info(
                    "pairs: step %d of %d, validation NDCG@10 of the texts alone %s", step + 1, self.params.steps, found
                )
                if found is None or best is None or found > best:  # without validation events the last encoder is kept
                    best, kept, weights = found, True, checkpoint.full_weights(self.engine)
                    if self.worker.rank == 0:
                        write_tensors(RunPaths(self.setup.run).best(PHASE), weights)
        self.engine.destroy()
        seconds = round(time.monotonic() - begin, 1)
        outcome = PairOutcome(len(self.logs), int(sizes.sum()), kept, before, best, seconds)
        if self.worker.rank == 0:
            logger.info("pairs: %s", outcome.why)
            outcome.write(RunPaths(self.setup.run).pair_outcome)

    def _step(self, step: int, log: _PairLog, rng: np.random.Generator) -> bool:
        """One update by pairs of one log. Returns whether the training was asked to end."""
        world, device = self.worker.world, self.worker.device
        stop = torch.tensor(float(self.worker.rank == 0 and self.stop.look()), device=device)
        if world > 1:
            dist.all_reduce(stop)
        if stop > 0:
            return True
        few = min(self.config.train.fresh_items, len(log.learnt_from))
        fresh = rng.choice(log.learnt_from, few, replace=False)
        places = log.pairs.near(fresh, self.params.pairs, rng)
        after = log.pairs.after_P[places]
        candidates = log.learnt_from
        if len(candidates) > self.params.candidates:
            candidates = rng.choice(candidates, self.params.candidates, replace=False)
        candidates = np.union1d(candidates, after).astype(np.int64)
        share = places[self.worker.rank :: world]
        budget = self.config.encoder.token_budget
        plan = plan_encoding(fresh, log.tokens.lengths, budget=budget, world=world)
        inputs = PairInputs(
            table_IH=log.table_IH,
            centre_H=log.centre_H,
            fresh=EncodeInputs(log.tokens, plan, self.worker.rank, device),
            before_P=torch.from_numpy(log.pairs.before_P[share].astype(np.int64)).to(device),
            after_P=torch.from_numpy(log.pairs.after_P[share].astype(np.int64)).to(device),
            candidates_C=torch.from_numpy(candidates).to(device),
            not_negative_PC=torch.from_numpy(log.pairs.others_known(share, candidates)).to(device),
        )
        torch.manual_seed(hash((self.config.train.seed, step, self.worker.rank)))
        deepspeed_engine.set_learning_rate(
            self.engine, deepspeed_engine.lr_factor(step, self.params.steps, self.config.train.warmup)
        )
        loss = self.engine(inputs) * world / len(places)  # DeepSpeed averages over workers
        if not math.isfinite(float(loss.detach())):
            raise UserError(f"the loss of the pairs is {float(loss.detach())} at step {step}; lower train.encoder_lr")
        self.engine.backward(loss)
        self.engine.step()
        return False

    def _encode(self, log: _PairLog) -> None:
        """Encode all texts of a log with the encoder as it is now."""
        budget = self.config.encoder.token_budget
        encode_table(
            self.engine.module, log.tokens, log.present_I, log.table_IH, budget=budget, place=self.worker.place
        )

    def _ndcg(self) -> float | None:
        """NDCG@10 of the own validation events by texts alone; None without such events."""
        requests, own = self.setup.log.validation, self.logs[0]
        if requests is None:
            return None
        repeats = self.setup.log.data.spec.split.repeats
        return texts_alone(own.table_IH - own.centre_H, own.present_I, requests, repeats=repeats)


def texts_alone(vectors_IH: torch.Tensor, present_I: np.ndarray, requests: Requests, *, repeats: bool) -> float:
    """Mean NDCG@10 of a ranking by the cosine of an item's text and those of the latest ten items.

    Args:
        vectors_IH: centred text vectors.
        present_I: bool, which items have a text.
        requests: with targets.
        repeats: whether items of the history may be recommended.
    """
    unit_IH = torch.nn.functional.normalize(vectors_IH, dim=1).cpu().numpy() * present_I[:, None]
    values = []
    for start in range(0, len(requests), 256):
        part = requests.take(np.arange(start, min(start + 256, len(requests))))
        seen = part.seen()
        queries = np.stack([unit_IH[items[-_HISTORY:]].sum(0) for items in seen])
        top = top_k((queries @ unit_IH.T).astype(np.float32), METRIC_K, None if repeats else seen)
        assert part.target_offsets is not None and part.target_items is not None
        values.append(request_metrics(top, part.target_offsets, part.target_items, [METRIC_K])[f"ndcg@{METRIC_K}"])
    return float(np.concatenate(values).mean())
