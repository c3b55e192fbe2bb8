"""The best possible ranking of a simulated log with descriptions: by the true tastes, and as far as the log tells them.

Legend: N requests or users, I items, K kinds of taste, P launches (moments when items come).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from ctxrec.data.events import histories_from_table
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests
from ctxrec.datasets.described import WEIGHT, DescribedTruth
from ctxrec.datasets.simulation import NEVER

_ITERATIONS = 100  # of the search for the likeliest tastes


@dataclass(frozen=True)
class DescribedOracle:
    """Ranks by the true probabilities (`Ranker` of `ctxrec.evaluation.rank_requests`); it knows when items are launched."""

    truth: DescribedTruth

    def scores(self, requests: Requests) -> np.ndarray:
        """float32 [N, I] logits; NEVER for items launched later."""
        users = _numbers(requests.users.ids)
        scores = self.truth.taste_NW[users] @ self.truth.has_IW.T + self.truth.log_weight_I
        return np.where(self.truth.launch_us_I > requests.times[:, None], NEVER, scores).astype(np.float32)

    def of_log(self, prepared: PreparedData, before: int) -> DescribedOracle:
        """An upper bound that reads descriptions without a mistake, and learns tastes and weights from the log.

        It takes the likeliest tastes and weights under the distributions that they are drawn from; an average over all
        of them would rank a little better.

        Args:
            prepared: the data with the events.
            before: the events of splits earlier than this one count (`schema.VALID` or `schema.TEST`).
        """
        truth = self.truth
        launches = np.unique(truth.launch_us_I)
        count_PNI = np.zeros((len(launches), len(truth.share_NK), len(truth.value_IA)), np.float32)
        for bucket in range(len(prepared.bucket_paths)):
            histories = histories_from_table(prepared.read_bucket(bucket), prepared.features)
            events = histories.events.keep(histories.split < before)
            user = np.repeat(_numbers(histories.users.ids), events.lengths)
            phase = np.searchsorted(launches, events.times, side="right") - 1
            np.add.at(count_PNI, (phase, user, events.items), 1)
        share_NK, log_weight_I = _likeliest(truth, launches, count_PNI)
        return DescribedOracle(dataclasses.replace(truth, share_NK=share_NK, log_weight_I=log_weight_I))


def _likeliest(truth: DescribedTruth, launches: np.ndarray, count_PNI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of kinds of taste float32 [N, K] and logarithms of weights [I] that are likeliest given who took what when."""
    liked_KI = torch.from_numpy(truth.kind_KW @ truth.has_IW.T)
    share_NK = torch.zeros(truth.share_NK.shape, requires_grad=True)
    weight_I = torch.zeros(len(truth.log_weight_I), requires_grad=True)  # in standard deviations
    there = [torch.from_numpy(truth.launch_us_I <= launch) for launch in launches]
    counts = [torch.from_numpy(count_NI) for count_NI in count_PNI]
    optimizer = torch.optim.LBFGS([share_NK, weight_I], lr=1, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = (share_NK.square().sum() + weight_I.square().sum()).double() / 2
        logits_NI = share_NK @ liked_KI + WEIGHT * weight_I
        for there_I, count_NI in zip(there, counts, strict=True):
            could_N = logits_NI[:, there_I].logsumexp(1)
            # float64, because the line search needs small differences of a sum over all events
            value = value + (count_NI.sum(1) * could_N).double().sum() - (count_NI * logits_NI).sum(1).double().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return share_NK.detach().numpy(), (WEIGHT * weight_I.detach()).numpy()


def _numbers(user_ids: np.ndarray) -> np.ndarray:
    """The users' numbers, int64."""
    return np.array([int(name[1:]) for name in user_ids], np.int64)
