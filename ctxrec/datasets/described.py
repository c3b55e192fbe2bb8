"""A simulated log whose tastes only the words of rich descriptions tell.

Each item has one value of each aspect (`ctxrec.datasets.phrases`), and a user likes or dislikes values:

    P(i | u, t) is proportional to weight_i exp(sum over the aspects of taste_u[value of item i])

over the items launched by t. The tastes of a user are sums of FACTORS kinds of taste that all users share, with normal
shares, so that a history of twenty events tells most of them. There is no context, no category and no attribute, and ids say
nothing. A description has a sentence for each aspect, in random order. Most of its words are those that nobody cares
for, and each value has several phrases. So content decides, and some thirty words of ninety are what matters.

Two waves of items come late: one at the cut before the validation events of the temporal split, one at the cut before its
test events. The first has validation events alone when the test begins, the second has none.

Legend: N users, I items, A aspects, W values of all aspects, K kinds of taste, E events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.numpy

from ctxrec.core import storage
from ctxrec.data.events import US
from ctxrec.datasets.phrases import ASPECTS, FILLERS, KINDS, OPENERS
from ctxrec.datasets.simulation import Simulation
from ctxrec.datasets.visits import TEST_SHARE, VISIT_MEAN, VISIT_STEP_S, Visits, draw_joining, visit_starts, visitors

TASTE = 2.0  # standard deviation of the taste for a value
FACTORS = 4  # kinds of taste
WEIGHT = 0.4  # standard deviation of the logarithm of an item's weight
WAVE = 0.18  # share of the items in each of the two waves
EVENTS_AT_ONCE = 8_192

_SIZES = np.array([len(aspect.values) for aspect in ASPECTS.values()])
_FIRST = np.cumsum(_SIZES) - _SIZES  # column of the first value of each aspect
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class DescribedTruth:
    """The true parameters. Item n has the id i<n>, user n the id u<n>."""

    value_IA: np.ndarray  # int64, which value of each aspect an item has
    log_weight_I: np.ndarray  # float32
    launch_us_I: np.ndarray  # int64, when an item can be taken; 0 = always
    share_NK: np.ndarray  # float32, how much of each kind of taste a user has
    kind_KW: np.ndarray  # float32, what somebody of this kind likes

    @property
    def taste_NW(self) -> np.ndarray:
        """What each user likes: float32 [N, W]."""
        return self.share_NK @ self.kind_KW

    @property
    def has_IW(self) -> np.ndarray:
        """1 where an item has a value: float32 [I, W]."""
        has = np.zeros((len(self.value_IA), int(_SIZES.sum())), np.float32)
        np.put_along_axis(has, self.value_IA + _FIRST, 1, axis=1)
        return has

    def save(self, path: str) -> None:
        """Write all parameters to one file."""
        storage.write_bytes(path, safetensors.numpy.save({n: np.ascontiguousarray(v) for n, v in vars(self).items()}))

    @staticmethod
    def of(arrays: dict[str, np.ndarray]) -> DescribedTruth | None:
        """The parameters from the arrays of a file; None where they are those of another simulation."""
        return DescribedTruth(**arrays) if "value_IA" in arrays else None


def draw_truth(plan: Simulation, visits: Visits, rng: np.random.Generator) -> DescribedTruth:
    """True parameters of a catalogue and of users."""
    values = np.stack([rng.integers(size, size=plan.items) for size in _SIZES], axis=1)
    launch_us, order, wave = np.zeros(plan.items, np.int64), rng.permutation(plan.items), round(plan.items * WAVE)
    for number, share in enumerate((1 - 2 * TEST_SHARE, 1 - TEST_SHARE)):
        launch_us[order[number * wave : (number + 1) * wave]] = visits.start_after(share) * US
    return DescribedTruth(
        value_IA=values,
        log_weight_I=(rng.standard_normal(plan.items) * WEIGHT).astype(np.float32),
        launch_us_I=launch_us,
        share_NK=rng.standard_normal((plan.users, FACTORS)).astype(np.float32),
        kind_KW=(rng.standard_normal((FACTORS, int(_SIZES.sum()))) * TASTE / FACTORS**0.5).astype(np.float32),
    )


@dataclass(frozen=True)
class DescribedLog:
    """A log with descriptions that is drawn chunk by chunk as it is read."""

    plan: Simulation
    truth: DescribedTruth
    visits: Visits
    joined: np.ndarray  # float64 [N] share of all visits after which a user joins

    @staticmethod
    def make(plan: Simulation) -> DescribedLog:
        """The log of a plan; its events are not drawn yet."""
        rng = np.random.default_rng([plan.seed, 10])
        joined = draw_joining(plan.users, rng)
        visits = Visits.draw(plan.events, rng)
        return DescribedLog(plan, draw_truth(plan, visits, rng), visits, joined)

    def chunks(self) -> Iterator[pa.Table]:
        """Tables of about EVENTS_AT_ONCE events, visits in the order of their starts."""
        rng, start = np.random.default_rng([self.plan.seed, 11]), 0
        step, num_visits = max(1, int(EVENTS_AT_ONCE / VISIT_MEAN)), len(self.visits.sizes)
        taste_NW, has_IW = self.truth.taste_NW, self.truth.has_IW
        for users in visitors(self.joined, num_visits, step, rng):
            sizes = self.visits.sizes[start : start + len(users)].astype(np.int64)
            visit = np.repeat(np.arange(len(users)), sizes)
            order = np.arange(len(visit)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            times = visit_starts(np.arange(start, start + len(users)), num_visits)[visit] + order * VISIT_STEP_S
            logits_EI = (taste_NW[users] @ has_IW.T + self.truth.log_weight_I)[visit]
            logits_EI[self.truth.launch_us_I > times[:, None] * US] = -np.inf
            # The largest of the logits plus Gumbel noise is a draw from their softmax.
            items = (logits_EI + rng.gumbel(size=logits_EI.shape)).argmax(axis=1)
            yield pa.table(
                {"user_id": _numbered("u", users[visit]), "item_id": _numbered("i", items), "timestamp": times}
            )
            start += len(users)

    def items_table(self) -> pa.Table:
        """Titles that say nothing of tastes, and descriptions that say all."""
        rng = np.random.default_rng([self.plan.seed, 12])
        both = [_texts(values, rng) for values in self.truth.value_IA]
        titles, descriptions = zip(*both, strict=True)
        ids = _numbered("i", np.arange(self.plan.items))
        return pa.table({"item_id": ids, "title": list(titles), "description": list(descriptions)})

    def users_table(self) -> pa.Table:
        """The users, of whom nothing is known."""
        return pa.table({"user_id": _numbered("u", np.arange(self.plan.users))})


def _texts(value_A: np.ndarray, rng: np.random.Generator) -> tuple[str, str]:
    """Title and description of an item."""

    def one_of(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    kind = one_of(KINDS)

    def filled(sentence: str, phrase: str = "") -> str:
        words = _NAME.sub(lambda found: kind if found[1] == "kind" else one_of(FILLERS[found[1]]), sentence)
        return words.replace("{}", phrase)

    sentences = [
        filled(one_of(aspect.carriers), one_of(aspect.values[value]))
        for aspect, value in zip(ASPECTS.values(), value_A, strict=True)
    ]
    title = filled(one_of(OPENERS))
    return title[0].upper() + title[1:], " ".join(sentences[n] for n in rng.permutation(len(sentences)))


def _numbered(letter: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(letter, pa.array(numbers).cast(pa.string()), "")
