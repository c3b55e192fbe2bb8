"""How good a list can be in the simulated shop for somebody who is not told of campaigns, but has to see them in the log.

    ctxrec datasets simulate-shop --out ds --users 1000 --items 600 --events 20000
    python tests/bench/shop_ceiling.py --dataset ds

`ctxrec evaluate --oracle` knows each campaign from its first second. Here tastes, appeals and the law of campaigns are known,
and which items are in a campaign is inferred from the events so far: a forward filter over hidden states of each item (Rabiner,
"A tutorial on hidden Markov models", 1989). States are the lift of a running campaign and steps of its decay; an event is a draw
from the softmax over all items, whose normaliser is taken at the expected demand of the others. Prints NDCG@10 of the last
tenth of the events.

Legend: N users, I items, S states, L lifts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from ctxrec.data.events import US
from ctxrec.datasets import shop
from ctxrec.metrics.intervals import bootstrap_means, percentile_interval

LIFTS = np.log(np.geomspace(shop.LEAST_FACTOR, shop.MOST_FACTOR, 4))
DECAY_STEPS, STEPS_A_HALF = 12, 2  # of a lift after its end, until it counts as gone
MEAN_S = (shop.MOST_S - shop.LEAST_S) / np.log(shop.MOST_S / shop.LEAST_S)  # of a log-uniform length


class Filter:
    """Posterior of the hidden states of all items: [I, S], state 0 is no campaign."""

    def __init__(self, num_items: int) -> None:
        count = len(LIFTS)
        steps = 0.5 ** (np.arange(DECAY_STEPS + 1) / STEPS_A_HALF)  # 0: it runs
        self.factor_S = np.exp(np.concatenate([[0.0], np.outer(LIFTS, steps).ravel()]))
        self.starts = shop.CAMPAIGNS_A_DAY * shop.CAMPAIGN_ITEMS / num_items / 86_400  # of an item, a second
        rate = np.zeros((len(self.factor_S),) * 2)
        step_s = shop.AFTER_HALVES_S / STEPS_A_HALF
        for lift in range(count):
            first = 1 + lift * (DECAY_STEPS + 1)
            rate[0, first] = self.starts / count
            rate[first, first + 1] = 1 / MEAN_S
            for n in range(1, DECAY_STEPS):
                rate[first + n, first + n + 1] = 1 / step_s
            rate[first + DECAY_STEPS, 0] = 1 / step_s
        self.rate_SS = rate - np.diag(rate.sum(1))
        self.state_IS = np.tile(np.eye(len(self.factor_S))[0], (num_items, 1))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, in steps that are short beside every stay in a state."""
        steps = max(1, int(np.ceil(seconds / 900)))
        move = np.eye(len(self.rate_SS)) + self.rate_SS * (seconds / steps)
        for _ in range(steps):
            self.state_IS = self.state_IS @ move

    @property
    def demand_I(self) -> np.ndarray:
        """The expected factor of the demand for each item."""
        return self.state_IS @ self.factor_S

    def learn(self, item: int, want_I: np.ndarray) -> None:
        """Take in that `item` was drawn by somebody who wants the items like `want_I` without campaigns."""
        demand_I = self.demand_I
        others_I = (want_I * demand_I).sum() - want_I * demand_I
        weight_IS = want_I[:, None] * self.factor_S
        chance_IS = weight_IS / (weight_IS + others_I[:, None])  # that this item is the one drawn, by state
        likely_IS = 1 - chance_IS
        likely_IS[item] = chance_IS[item]
        self.state_IS *= likely_IS
        self.state_IS /= self.state_IS.sum(1, keepdims=True)


def ndcg(rank: int) -> float:
    """NDCG@10 of one target at a rank from 0."""
    return 1 / np.log2(rank + 2) if rank < 10 else 0.0


def main() -> None:
    """Read the log and the truth, filter, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder that `ctxrec datasets simulate-shop` wrote")
    args = parser.parse_args()
    folder = Path(args.dataset)
    truth = shop.ShopTruth.of(load_file(next(folder.glob("*.safetensors"))))
    events = pq.read_table(folder / "events.parquet")
    events = events.take(pc.sort_indices(events["timestamp"]))
    users, items = (np.array([int(name[1:]) for name in events[f"{k}_id"].to_pylist()]) for k in ("user", "item"))
    times = events["timestamp"].to_numpy()
    num_items = len(truth.item_appeal)
    base_NI = np.exp(truth.taste_NC[:, truth.item_category] + truth.item_appeal)
    seen_NI = np.zeros(base_NI.shape, bool)
    hidden, found = Filter(num_items), {"told": [], "inferred": [], "without campaigns": []}
    test = int(len(users) * 0.9)
    for n, (user, item, at) in enumerate(zip(users.tolist(), items.tolist(), times.tolist(), strict=True)):
        if n:
            hidden.pass_time(at - times[n - 1])
        want_I = np.where(seen_NI[user], 0, base_NI[user])
        if n >= test:
            told = np.exp(truth.campaigns(np.array([at * US]))[0])
            for name, factor in (
                ("told", told),
                ("inferred", hidden.demand_I),
                ("without campaigns", np.ones(num_items)),
            ):
                scores = want_I * factor
                found[name].append(ndcg(int((scores > scores[item]).sum())))
        hidden.learn(item, want_I)
        seen_NI[user, item] = True
    print("| campaigns are | NDCG@10 | 95 % interval |\n| --- | --- | --- |")
    for name, values in found.items():
        means = bootstrap_means(np.array(values)[:, None], num=1000, seed=0)
        found_in = percentile_interval(float(np.mean(values)), means)
        print(f"| {name} | {found_in['mean']:.4f} | {found_in['low']:.4f} to {found_in['high']:.4f} |")


if __name__ == "__main__":
    main()
