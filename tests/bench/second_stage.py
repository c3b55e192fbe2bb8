"""What the second stage costs a request, and what it gains for requests that ask with words.

    python tests/bench/second_stage.py --run RUN --candidates 10 20 50
    python tests/bench/second_stage.py --run RUN --queries 400

CPU milliseconds of one thread, so that other processes hardly count. Without a trained second stage the time of one that
has learnt nothing is measured, which is the same. Queries are one to three words of the target's text; they ask the model
as it was before it saw the validation events, on validation requests that chose nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time

import numpy as np
import torch

from ctxrec.core.config import load_config
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import validation_requests
from ctxrec.evaluation.offline import open_data
from ctxrec.metrics.intervals import bootstrap_means, percentile_interval
from ctxrec.metrics.ranking import request_metrics
from ctxrec.reranking.fresh_reranker import encoder_path, make_reranker
from ctxrec.reranking.rerank_candidates import find_candidates
from ctxrec.reranking.rerank_driver import divided, with_queries
from ctxrec.reranking.rerank_params import RERANK_TRAINING
from ctxrec.retrieval.cross_encoder import Reranker, merge_adapter, new_order, titles_of
from ctxrec.retrieval.pre_validation import recommender_before_validation
from ctxrec.retrieval.reranker_files import load_reranker

_TIMED = 4  # requests, after one that warms up


def second_stage(run: str, data: PreparedData) -> Reranker:
    """The run's second stage, or one that has learnt nothing."""
    config = load_config(base=RunPaths(run).config)
    path, version = RunPaths(run).reranker, "0" * 12
    if os.path.exists(path):
        from ctxrec.retrieval.load import load_recommender

        return load_reranker(path, model_version=load_recommender(RunPaths(run).bundle).model_version)
    made = make_reranker(encoder_path(config), data.item_texts, config, model_version=version)
    merge_adapter(made.network)
    return made


def speed(run: str, data: PreparedData, sizes: list[int]) -> None:
    """Print the milliseconds of a request by the number of candidates, in fp32 and bf16."""
    torch.set_num_threads(1)
    second, requests = second_stage(run, data), validation_requests(data, _TIMED + 1)
    titles = titles_of(data.items)
    rng = np.random.default_rng(0)
    for dtype in (torch.float32, torch.bfloat16):
        second.network.encoder.to(dtype)
        for size in sizes:
            found = [
                (rng.permutation(data.num_items)[:size], np.linspace(1, 0, size, dtype=np.float32))
                for _ in range(len(requests))
            ]
            taken = []
            for n in range(len(requests)):
                one, begin = requests.take(np.array([n])), time.process_time()
                second.logits(one, [found[n]], features=data.features, titles=titles)
                taken.append(1e3 * (time.process_time() - begin))
            print(f"{str(dtype).removeprefix('torch.')} {size} candidates: {np.median(taken[1:]):.0f} ms", flush=True)


def queries(run: str, data: PreparedData, num: int) -> None:
    """Print NDCG@10 of requests that ask with words, without and with the second stage at several weights."""
    recommender, second = recommender_before_validation(run, data), second_stage(run, data)
    limit = RERANK_TRAINING.choice_requests + RERANK_TRAINING.check_requests
    validation, repeats = validation_requests(data, limit), data.spec.split.repeats
    _, check = divided(find_candidates(recommender, validation, 1, repeats=repeats), seed=recommender.config.train.seed)
    one = check.requests.evenly(num)
    some = dataclasses.replace(
        one,
        target_offsets=np.arange(len(one) + 1),
        target_items=np.array([one.targets(n)[0] for n in range(len(one))], np.int32),
        target_actions=None,
    )
    every = dataclasses.replace(RERANK_TRAINING, query_share=1.0)
    plain, asked = some, with_queries(some, data.item_texts, seed=0, params=every)
    for name, part in (("no words", plain), ("with words", asked)):
        found = find_candidates(recommender, part, second.candidates, repeats=repeats).found
        logits = second.logits(part, found, features=data.features, titles=titles_of(recommender.items))
        before = _ndcg(part, [items for items, _ in found])
        print(f"{name}: {before.mean():.4f} of the retriever, {len(part)} requests", flush=True)
        for weight in (0.1, 0.25, 0.5, 1.0, 2.0, 4.0):
            lists = [
                items[new_order(scores, logit, weight, second.candidates)]
                for (items, scores), logit in zip(found, logits, strict=True)
            ]
            gain = _ndcg(part, lists) - before
            resampled = bootstrap_means(gain[:, None], num=1000, seed=0)[:, 0]
            interval = percentile_interval(float(gain.mean()), resampled)
            print(f"  weight {weight}: {interval['mean']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})")


def _ndcg(part, lists) -> np.ndarray:
    top = np.full((len(part), 10), -1, np.int64)
    for n, items in enumerate(lists):
        top[n, : len(items[:10])] = items[:10]
    return request_metrics(top, part.target_offsets, part.target_items, [10])["ndcg@10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run that ctxrec.train finished")
    parser.add_argument("--candidates", type=int, nargs="+", default=[], help="measure the time of so many candidates")
    parser.add_argument("--queries", type=int, default=0, help="measure the gain on so many requests with words")
    args = parser.parse_args()
    data = open_data(args.run, None)
    if args.candidates:
        speed(args.run, data, args.candidates)
    if args.queries:
        queries(args.run, data, args.queries)


if __name__ == "__main__":
    main()
