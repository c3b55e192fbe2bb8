"""Drive the training of a second stage: make its examples, run it in this process or on Ray's workers, decide, save.

`RUN/reranking/` holds the examples, the weights after each epoch and the checkpoints, from which the same command goes on.
It is deleted when the second stage is saved, and begun anew where another training lies there.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch

from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.folder_lock import only_here
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests, validation_requests
from ctxrec.data.tensor_files import write_tensors
from ctxrec.encoder.text_table import has_text
from ctxrec.reranking.fresh_reranker import encoder_path, make_reranker
from ctxrec.reranking.held_out import held_out_requests, held_out_retriever
from ctxrec.reranking.rerank_candidates import Examples, TrainingPairs, find_candidates
from ctxrec.reranking.rerank_outcome import Outcome
from ctxrec.reranking.rerank_params import RERANK_TRAINING, RerankTrainingParams
from ctxrec.reranking.rerank_worker import epochs_of, rerank_worker
from ctxrec.retrieval.cross_encoder import Reranker, titles_of
from ctxrec.retrieval.pre_validation import recommender_before_validation
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.request_texts import request_texts
from ctxrec.retrieval.reranker_files import save_reranker
from ctxrec.training.deepspeed_engine import choose_precision
from ctxrec.training.driver import HOW_TO_RUN, with_absolute_paths

logger = logging.getLogger(__name__)

# Options of a run's training that the training of its second stage may have otherwise.
FREE = tuple(f"train.{key}" for key in (*HOW_TO_RUN, "seed", "precision", "use_gpu"))
_JOB = "job.json"


def train_reranker(run: str, data: PreparedData, config: Config, *, out: str | None = None) -> dict[str, Any]:
    """Train the second stage of a finished run and write it to RUN/reranker, or to `out`.

    Args:
        run: path or URI.
        data: the prepared data of the run.
        config: options of the run; `rerank`, and of `train` what says how to run it, matter here.

    Returns:
        What validation requests that chose nothing say: "requests", "ndcg@10" of the "retriever" and "reranked", and the
        paired "gain" with its interval; "weight" 0 where the second stage adds nothing and the retriever's order stays.

    Raises:
        UserError: there is no encoder, no text, no validation request, no training event to hold out, the run lacks its
            checkpoints, or another command trains the same second stage.
        Stopped: SIGTERM came, and a checkpoint is saved.
        Failed: a worker did not answer in time, or the disk is full.
    """
    run = storage.absolute(run)
    path = encoder_path(config)
    if not has_text(data.item_texts).any():
        raise UserError(f"the items of {data.path} have no text; expected some, which the second stage reads")
    params = RERANK_TRAINING
    validation = validation_requests(data, params.choice_requests + params.check_requests)
    if validation is None:
        raise UserError(
            f"the data at {data.path} has no validation request to measure with; set split.valid above 0 in the dataset "
            "spec, prepare and train again"
        )
    with only_here(RunPaths(run).reranking):
        return _train(run, data, config, validation, path, out or RunPaths(run).reranker)


def _train(run: str, data: PreparedData, config: Config, validation: Requests, path: str, out: str) -> dict[str, Any]:
    work = RunPaths(run).reranking
    kept = RunPaths(work).checkpoints
    recommender = recommender_before_validation(run, data)
    torch.manual_seed(config.train.seed)
    reranker = make_reranker(path, data.item_texts, config, model_version=recommender.model_version)
    job: dict[str, Any] = {
        "config": with_absolute_paths(config).to_dict(),
        "run": work,
        "pairs": storage.join(kept, "pairs.safetensors"),
        "weights": storage.join(kept, "epoch-{epoch}.safetensors"),
    }
    if _begins(work, config, data, reranker.model_version):
        pairs = training_pairs(recommender, data, reranker, config)
        write_tensors(job["pairs"], pairs.tensors())
        storage.write_json(storage.join(kept, _JOB), _identity(config, data, reranker.model_version))
    if config.train.workers == 0:
        from ctxrec.training.local_job import run_here

        run_here(job, config, (), worker=rerank_worker)
    else:
        from ctxrec.training.ray_job import run_on_ray

        run_on_ray(job, config, (), worker=rerank_worker)
    logger.info("the retriever ranks %d validation requests", len(validation))
    repeats = data.spec.split.repeats
    examples = find_candidates(recommender, validation, config.rerank.candidates, repeats=repeats)
    choice, check = divided(examples, seed=config.train.seed)
    dtype = choose_precision(config.train, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    titles, seed = titles_of(recommender.items), config.train.seed
    outcome = Outcome(reranker, recommender.features, titles, seed=seed, dtype=dtype)
    gain = outcome.decide(epochs_of(job["weights"], config.rerank.epochs), choice, check)
    save_reranker(out, reranker)
    storage.delete(work)
    return gain


def _identity(config: Config, data: PreparedData, model_version: str) -> dict[str, Any]:
    """What makes two trainings of a second stage the same; how many workers share the work is not part of it."""
    options = dataclasses.asdict(config.rerank) | {"seed": config.train.seed, "encoder.name": config.encoder.name}
    del options["use"]
    return {"options": options, "data": data.fingerprint, "model_version": model_version}


def _begins(work: str, config: Config, data: PreparedData, model_version: str) -> bool:
    """Whether the training begins; what another one has left is deleted."""
    path = storage.join(RunPaths(work).checkpoints, _JOB)
    if storage.exists(path) and storage.read_json_object(path) == _identity(config, data, model_version):
        logger.info("going on with the training in %s", work)
        return False
    storage.delete(RunPaths(work).checkpoints)  # and not the folder around it, which is locked
    return True


def training_pairs(recommender: Recommender, data: PreparedData, reranker: Reranker, config: Config) -> TrainingPairs:
    """What the second stage learns from: held-out training events, with candidates of a retriever that has not seen them.

    A request trains when its target is among the best candidates (deeper ones than are put in a new order later, for more
    to learn from): these alone can be put in another place, and a target that was not retrieved would teach that bad scores
    are good.

    Raises:
        UserError: there is no such request.
    """
    params, blend, texts = RERANK_TRAINING, recommender.blend, recommender.texts
    requests = held_out_requests(data)
    if requests is None:
        raise UserError(f"the data at {data.path} has no user with two training events; expected some, to learn from")
    text_IC = None if blend is None else blend.text_IC
    read = None if texts is None or texts.axes is None or text_IC is None else texts.read_if_there
    scorer = held_out_retriever(data, requests, text_IC, read, seed=config.train.seed)
    requests = with_queries(requests, data.item_texts, seed=config.train.seed)
    depth = config.rerank.candidates * params.depth
    examples = find_candidates(scorer, requests, depth, repeats=data.spec.split.repeats)
    rows = examples.with_hit()
    logger.info("%d of %d held-out training events are among the best %d", len(rows), len(examples), depth)
    if not len(rows):
        raise UserError(
            f"none of {len(examples)} held-out training events is among the best {depth} candidates; raise "
            "rerank.candidates, or leave the second stage out"
        )
    titles = titles_of(recommender.items)
    found = examples.take(rows)
    said = request_texts(found.requests, recommender.features, titles, history_items=reranker.history_items)
    return TrainingPairs.of(found, reranker.reader.plain(said, config.rerank.max_tokens), reranker.items)


def with_queries(
    requests: Requests, texts: list[str], *, seed: int, params: RerankTrainingParams = RERANK_TRAINING
) -> Requests:
    """Requests of which some ask with words of their target, in the order of its text, as no log of behaviour has queries.

    Args:
        requests: with one target each.
        texts: of the catalogue.
        seed: of the draws.
        params: tuned numbers.
    """
    rng = np.random.default_rng([seed, 1])
    query = np.full(len(requests), None, object)
    for n in np.flatnonzero(rng.random(len(requests)) < params.query_share):
        words = texts[int(requests.targets(int(n))[0])].split()[:20]  # of a long text those at its beginning, the title
        if words:
            chosen = rng.choice(
                len(words), min(len(words), int(rng.integers(1, params.query_words + 1))), replace=False
            )
            query[n] = " ".join(words[place] for place in sorted(chosen))
    return dataclasses.replace(requests, query=query)


def divided(examples: Examples, *, seed: int) -> tuple[Examples, Examples]:
    """The validation requests that choose, and those that measure, at random: a quarter and the rest, within the limits."""
    order = np.random.default_rng(seed).permutation(len(examples))
    num = min(-(-len(order) // 4), RERANK_TRAINING.choice_requests)
    return examples.take(order[:num]), examples.take(order[num:])
