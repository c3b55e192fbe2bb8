"""Options of the stages around the training: preparing, indexing, evaluating, the second stage and the final list.

Each default is here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ctxrec.core.errors import require


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """`ctxrec.prepare` turns a log into one history for each user.

    Attributes:
        buckets: Number of user buckets. 0 takes one bucket for every 2 million events, and at least 2.
        min_events: Users with fewer events than this have no validation and no test event under the split `last`.
        cold_items: Share of the items, chosen by a hash of their ID, that lose all training and validation events. The test
            then shows how well items are ranked that nobody has taken yet.
    """

    buckets: int = 0
    min_events: int = 3
    cold_items: float = 0.0

    def __post_init__(self) -> None:
        require(self.buckets >= 0, "prepare.buckets", self.buckets, "0 (automatic) or more")
        require(self.min_events >= 2, "prepare.min_events", self.min_events, "at least 2")
        require(0 <= self.cold_items < 1, "prepare.cold_items", self.cold_items, "a share from 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """The retrieval index finds the best items of a request in a bundle's item vectors.

    Attributes:
        kind: `flat` is exact. `hnsw` is a graph. `ivf` has inverted lists. `ivfpq` has inverted lists of compressed vectors
            and ranks the best of them exactly. `cagra` is a graph that a GPU builds and searches; without a GPU it is
            `hnsw`. `auto` decides by the size of the catalogue, the hardware and `index.latency_ms`, and logs why.
        latency_ms: Goal in milliseconds for the search of one query, used by `auto`: it ranks all items exactly if this
            machine does so in time, and takes an approximate index if not. 0 means that the size of the catalogue decides.
        recall: Recall@10 on validation requests that an approximate index must reach. Where `nprobe` or `ef_search` is 0,
            the smallest number that reaches it is taken.
        nprobe: Inverted lists that a search of `ivf` and `ivfpq` reads. 0 means as many as `index.recall` needs.
        ef_search: Nodes that a search of `hnsw` and `cagra` visits. 0 means as many as `index.recall` needs.
        use_gpu: Whether to build and search on a GPU. `auto` does so where there is one.
    """

    kind: Literal["auto", "flat", "hnsw", "ivf", "ivfpq", "cagra"] = "auto"
    latency_ms: float = 0.0
    recall: float = 0.99
    nprobe: int = 0
    ef_search: int = 0
    use_gpu: Literal["auto", "yes", "no"] = "auto"

    def __post_init__(self) -> None:
        require(0 < self.recall <= 1, "index.recall", self.recall, "above 0, at most 1")
        require(self.latency_ms >= 0, "index.latency_ms", self.latency_ms, "0 (no goal) or more")
        for key in ("nprobe", "ef_search"):
            require(getattr(self, key) >= 0, f"index.{key}", getattr(self, key), "0 (automatic) or more")


FEW_REQUESTS = 5000  # so many take less time than the start of Ray and of the actors (tests/bench/RESULTS.md)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """`ctxrec.evaluate` ranks the whole catalogue for each request of a split, next to baselines.

    Attributes:
        ks: Cut-offs of the metrics. One of them must be 10.
        bootstrap: Bootstrap resamples of the intervals.
        max_baseline_items: Catalogues with more items than this leave out EASE, ItemKNN and the linear ensemble, whose
            matrix of items by items would not fit into memory.
        batch_size: Requests that are scored at once.
        actors: Ray actors that score. 0 takes one for each CPU of the cluster; up to 5,000 requests are then scored in the
            command's own process, which starts sooner.
        knockouts: Ranks the requests again with each source of information hidden, which shows what each carries.
    """

    ks: tuple[int, ...] = (5, 10, 20)
    bootstrap: int = 1000
    max_baseline_items: int = 20_000
    batch_size: int = 256
    actors: int = 0
    knockouts: bool = True

    def needs_no_actors(self, num_requests: int) -> bool:
        """Whether the command's own process ranks so many requests, without Ray."""
        return not self.actors and num_requests <= FEW_REQUESTS

    def __post_init__(self) -> None:
        require(bool(self.ks) and min(self.ks) >= 1, "evaluate.ks", self.ks, "one or more cut-offs of at least 1")
        require(10 in self.ks, "evaluate.ks", self.ks, "a list that has 10, the cut-off of early stopping")
        for key in ("bootstrap", "batch_size"):
            require(getattr(self, key) >= 1, f"evaluate.{key}", getattr(self, key), "at least 1")
        for key in ("max_baseline_items", "actors"):
            require(getattr(self, key) >= 0, f"evaluate.{key}", getattr(self, key), "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankConfig:
    """`ctxrec.rerank` trains the optional second stage: a cross-encoder that ranks the best candidates of the model again.

    Attributes:
        use: Evaluates, recommends and retrieves with the second stage of the run.
        candidates: How many of the best candidates of the model are ranked again.
        encoder: The text encoder of the second stage: a local folder or a Hugging Face id. Empty takes `encoder.name`.
        rank: Rank of the LoRA adapter of the second stage.
        max_tokens: Tokens of a pair of request and candidate, at most.
        epochs: Epochs of the training.
        lr: Peak learning rate of the adapter.
        batch_size: Requests of a training step.
    """

    use: bool = False
    candidates: int = 50
    encoder: str = ""
    rank: int = 8
    max_tokens: int = 64
    epochs: int = 3
    lr: float = 5e-4
    batch_size: int = 16

    def __post_init__(self) -> None:
        for key in ("rank", "epochs", "batch_size"):
            require(getattr(self, key) >= 1, f"rerank.{key}", getattr(self, key), "at least 1")
        require(self.lr > 0, "rerank.lr", self.lr, "above 0")
        require(self.candidates >= 2, "rerank.candidates", self.candidates, "at least 2, so that there is an order")
        require(
            self.max_tokens >= 16, "rerank.max_tokens", self.max_tokens, "at least 16, for a request and a candidate"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DiversityConfig:
    """These options shape the final list of a request. By default it is the order of the scores.

    Attributes:
        strength: Strength of MMR. 0 keeps the order of the scores; 1 only asks that the items of a list differ.
        pool: Candidates that compete for the places of a list. A request for more items gets a larger pool.
        caps: Items of a list that may have the same value of a categorical column, as in `{category = 2}`. A cap is given up
            only if no other item is eligible.
        freshness: Bonus of an item that is quite new, as a share of the span of the candidates' scores.
        half_life_days: Age in days at which an item has half of the bonus for freshness.
        date_column: Numeric item column that an item's age counts from: a year, or an epoch in seconds, milliseconds or
            microseconds. Empty means the item's first event.
        rules: File of blocks, boosts and pins, path or URI. Empty means that there are no rules.
    """

    strength: float = 0.0
    pool: int = 100
    caps: dict[str, int] = field(default_factory=dict)
    freshness: float = 0.0
    half_life_days: float = 30.0
    date_column: str = ""
    rules: str = ""

    def __post_init__(self) -> None:
        require(0 <= self.strength <= 1, "diversity.strength", self.strength, "from 0 (off) to 1")
        require(self.pool >= 1, "diversity.pool", self.pool, "at least 1")
        for column, cap in self.caps.items():
            require(cap >= 1, f"diversity.caps.{column}", cap, "at least 1")
        require(self.freshness >= 0, "diversity.freshness", self.freshness, "0 (off) or more")
        require(self.half_life_days > 0, "diversity.half_life_days", self.half_life_days, "above 0")

    @property
    def is_on(self) -> bool:
        """Whether the list may differ from the order of the scores."""
        return bool(self.strength or self.caps or self.freshness or self.rules)
