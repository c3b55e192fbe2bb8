"""Tuned numbers of the second stage's training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RerankTrainingParams:
    """Tuned numbers of the second stage's training. No measurement supports the values.

    Attributes:
        held_share: share of each user's training events, the latest ones, that are held out and train. The lab book
            (`tests/bench/RESULTS.md`, 2026-12-01) compares the retriever that has not seen them with one that has.
        held_most: number of them at most.
        num_requests: limit of time: number of held-out events that are used at most, at even distances.
        fit_requests: number of them that fit the weights of the retriever, which has not seen them.
        query_share: share of the training requests that ask with words of their target, so that a query means something.
        query_words: number of words of a query at most.
        history_items: number of latest items of the history whose titles are read.
        item_tokens: number of tokens of a candidate, at most; no more than half of `rerank.max_tokens`.
        head_lr: peak learning rate of the head.
        negatives: number of candidates that were not taken, drawn for each one that was.
        depth: the network learns from `depth` times as many candidates as it puts in a new order later.
        choice_requests, check_requests: number of validation requests that choose the epoch and the weight, and of those
            that measure what is gained, at most. They are disjoint.
        weights: weights beside the retriever's score that are tried.
        warmup: share of the steps in which the learning rates rise.
        resamples: number of bootstrap resamples of the measured gain.
        requests_at_once: limit of memory: number of requests that are ranked at once.
    """

    held_share: float = 0.2
    held_most: int = 5
    num_requests: int = 20_000
    fit_requests: int = 2_000
    query_share: float = 0.1
    query_words: int = 3
    history_items: int = 6
    item_tokens: int = 24
    head_lr: float = 5e-3
    negatives: int = 7
    depth: int = 4
    choice_requests: int = 1_000
    check_requests: int = 3_000
    weights: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0)
    warmup: float = 0.1
    resamples: int = 1000
    requests_at_once: int = 64


RERANK_TRAINING = RerankTrainingParams()
