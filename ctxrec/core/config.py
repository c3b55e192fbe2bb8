"""Every option of ctxrec: frozen dataclasses, each default in exactly one place.

`load_config` reads a TOML file and `--set section.key=value` overrides; an unknown key, a value of
the wrong type or out of range is a `UserError` that names the key and what was expected.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ctxrec.core.errors import UserError
from ctxrec.core.removed_options import refuse_removed, without_removed
from ctxrec.core.toml import build_dataclass, parse_value, read_toml, toml_value

_EVENTS_READ, _FEWEST_EPOCHS, _MOST_EPOCHS = 1_500_000, 4, 15  # by a phase of the towers
BACKBONES = ("transformer", "gru", "lstm", "hstu")  # of our own; any other name is a language model's


def _require(condition: bool, key: str, found: Any, expected: str) -> None:
    if not condition:
        raise UserError(f"{key} is {found!r}; expected {expected}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """`ctxrec.prepare`.

    buckets: number of user buckets; 0 takes one bucket for every 2 million events, at least 2.
    min_events: users with fewer events than this have no validation or test event under `last`.
    max_id_bytes: longer ids are rejected rows.
    max_category_values: values of a categorical column that keep a code of their own, by frequency.
    cold_items: share of the items, by a hash of their id, that lose all training and validation events, so that
        the test shows how items are ranked that nobody has taken yet.
    """

    buckets: int = 0
    min_events: int = 3
    max_id_bytes: int = 1024
    max_category_values: int = 100_000
    cold_items: float = 0.0

    def __post_init__(self) -> None:
        _require(self.buckets >= 0, "prepare.buckets", self.buckets, "0 (automatic) or more")
        _require(self.min_events >= 2, "prepare.min_events", self.min_events, "at least 2")
        for key in ("max_id_bytes", "max_category_values"):
            _require(getattr(self, key) >= 1, f"prepare.{key}", getattr(self, key), "at least 1")
        _require(0 <= self.cold_items < 1, "prepare.cold_items", self.cold_items, "a share from 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """The pretrained text encoder and how it is fine-tuned.

    name: a local folder or a Hugging Face id. Empty: no text encoder (ID and feature model).
    pooling: how token states become one vector; auto takes the checkpoint's own choice, else mean
        for BERT-like and last for GPT-like models.
    tune: what is trained: LoRA, DoRA or IA3 adapters in the top `top_layers` layers (0: in all), these layers
        themselves, the whole encoder, or nothing. What the layers below the trained ones make of the catalogue is
        computed once and kept on the machine's disk, where it takes at most `cache_gb`.
    image, audio: pretrained encoders of the catalogue's images and sounds, a local folder or a Hugging Face id (CLIP,
        SigLIP, ViT, DINOv2, CLAP, wav2vec 2.0, ...); they stay as they are. Empty: the column is not used.
    max_tokens: item texts are cut to this length.
    token_budget: padded tokens that one forward pass of the encoder holds at most.
    gradient_checkpointing: keep the inputs of the encoder's layers alone and compute the rest again.
    gradient_caching: encode the items of a step without a graph, then again pass by pass with the gradients of their
        vectors, so that train.fresh_items is not bounded by memory; about a third more work in the encoder.
    """

    name: str = "sentence-transformers/all-MiniLM-L6-v2"
    image: str = ""
    audio: str = ""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    tune: Literal["lora", "dora", "ia3", "top", "full", "freeze"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    adapter_dropout: float = 0.0
    top_layers: int = 2
    max_tokens: int = 64
    token_budget: int = 4096
    cache_gb: float = 20.0
    gradient_checkpointing: bool = False
    gradient_caching: bool = False

    def __post_init__(self) -> None:
        for key in ("rank", "max_tokens", "token_budget"):
            _require(getattr(self, key) >= 1, f"encoder.{key}", getattr(self, key), "at least 1")
        for key in ("top_layers", "cache_gb"):
            _require(getattr(self, key) >= 0, f"encoder.{key}", getattr(self, key), "0 or more")
        _require(0 <= self.adapter_dropout < 1, "encoder.adapter_dropout", self.adapter_dropout, "from 0 to below 1")
        _require(self.token_budget >= self.max_tokens, "encoder.token_budget", self.token_budget, "at least max_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The towers on top of the encoder.

    dim: width of item vectors and of the history backbone.
    content_dim: width of the content head, which compares the text of an item with that of the latest
        items of the history; 0 = without.
    use_memory: blend in what the log says of pairs of items and of popularity (`ctxrec.memory.item_memory`).
    backbone: what reads the history: transformer, gru, lstm, hstu, or a pretrained causal language model,
        named by a folder or a Hugging Face id ("owner/name"). `layers`, `heads` and `dropout` are for ours.
    backbone_rank: rank of a language model's LoRA adapter, which learns at train.encoder_lr; 0 = frozen.
    history: events of the history that the model reads, the latest ones.
    action_heads: a query for each action where the log has several; training asks each target by its own action,
        a request asks for all of them by their weights in the spec's [events.actions].
    id_buckets: rows of the hashed ID embedding; 0 takes one row per item up to 1 million.
    id_dropout, text_dropout: share of items whose ID (text) is hidden in a training step, so that
        items without history (without text) are scored well too.
    use_text, use_media, use_id, use_features, use_context, use_user: turn a source off (ablations).
    """

    dim: int = 64
    content_dim: int = 128
    backbone: str = "transformer"
    backbone_rank: int = 8
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    history: int = 50
    action_heads: bool = False
    id_buckets: int = 0
    id_dropout: float = 0.3
    text_dropout: float = 0.1
    use_text: bool = True
    use_media: bool = True
    use_id: bool = True
    use_features: bool = True
    use_context: bool = True
    use_user: bool = True
    use_memory: bool = True

    def __post_init__(self) -> None:
        for key in ("dim", "layers", "heads", "history"):
            _require(getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "at least 1")
        language_model = "/" in self.backbone or os.path.isdir(self.backbone)
        expected = f"{', '.join(BACKBONES)}, or the folder or id (owner/name) of a causal language model"
        _require(self.backbone in BACKBONES or language_model, "model.backbone", self.backbone, expected)
        _require(self.backbone_rank >= 0, "model.backbone_rank", self.backbone_rank, "0 (frozen) or more")
        _require(self.dim % self.heads == 0, "model.dim", self.dim, f"a multiple of model.heads ({self.heads})")
        for key in ("dropout", "id_dropout", "text_dropout"):
            _require(0 <= getattr(self, key) < 1, f"model.{key}", getattr(self, key), "from 0 to below 1")
        _require(self.content_dim >= 0, "model.content_dim", self.content_dim, "0 (no content head) or more")
        _require(
            self.use_text or self.use_id or self.use_features,
            "model.use_text, use_id and use_features",
            False,
            "at least one of them true: an item needs a source for its vector",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """`ctxrec.train`: towers first on frozen text vectors, then the encoder's adapters with them.

    workers: Ray Train workers, or [fewest, most]: as many as the cluster has room for, more or fewer as machines
        come and go. cpus_per_worker: 0 divides the cluster's CPUs among them. gpus_per_worker: of one that trains on
        GPUs; below 1 it shares its GPU with other trainings.
    global_batch_size: history windows a step over all workers, so that results do not depend on
        the number of workers; micro_batch_size windows go through the model at once on a worker (0: all of a step), in
        the encoder's phase with fresh items of their own.
    tower_epochs: of the first phase and the refit, at most; 0 takes as many as read 1.5 million events, from 4 to 15, as
        large logs have said all after a few.
    encoder_epochs, encoder_lr, ...: the second phase, in which the step's items get fresh vectors.
    fresh_items: distinct items of a step that the encoder encodes with gradient, at most.
    loss: full softmax up to full_softmax_items items, sampled softmax with logQ correction above
        (auto), or the named one; bce is binary cross-entropy with `negatives` uniform negatives.
    new_items_cost: share of the validation events' NDCG@10 that may be given up so that items without events are shown
        more often (`ctxrec.memory.cold_start`); 0 gives up nothing.
    refit: after options and weights are chosen on the validation events, train the towers again on these too.
    precision: auto takes bf16 on GPUs that have it, and on CPUs with AMX; fp32 elsewhere. bf16 with ZeRO 0 is ZeRO 1.
    max_failures: how often workers that died (or machines) are replaced before the training fails.
    not_finite: where a step's loss is not a finite number, stop, or go on from the last checkpoint without that step.
    timeout_s: how long a worker waits for the others before it counts as a failure.
    checkpoint_every: steps between checkpoints, besides those after each evaluation; 0 = only these.
    keep_checkpoints: the newest ones, that stay, besides the best weights of each phase; 2 or more, as the newest may
        be cut off.
    """

    workers: int | tuple[int, ...] = 1
    cpus_per_worker: float = 0.0
    gpus_per_worker: float = 1.0
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    zero_stage: int = 2
    offload: bool = False
    global_batch_size: int = 64
    micro_batch_size: int = 0
    tower_epochs: int = 0
    encoder_epochs: int = 1
    tower_lr: float = 4e-3
    encoder_lr: float = 5e-4
    encoder_phase_tower_lr: float = 5e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    final_lr: float = 0.1
    clip: float = 1.0
    fresh_items: int = 128
    loss: Literal["auto", "softmax", "sampled_softmax", "bce"] = "auto"
    full_softmax_items: int = 50_000
    negatives: int = 1024
    temperature: float = 0.07
    eval_every: int = 0
    patience: int = 4
    valid_users: int = 20_000
    new_items_cost: float = 0.01
    refit: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0
    max_failures: int = 3
    not_finite: Literal["stop", "skip"] = "stop"
    timeout_s: int = 1800
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        positive = ("fresh_items", "full_softmax_items", "negatives", "patience", "timeout_s")
        for key in ("global_batch_size", *positive):
            _require(getattr(self, key) >= 1, f"train.{key}", getattr(self, key), "at least 1")
        counts = (
            "tower_epochs",
            "encoder_epochs",
            "eval_every",
            "checkpoint_every",
            "micro_batch_size",
        )
        for key in (*counts, "cpus_per_worker", "valid_users", "max_failures", "weight_decay", "final_lr", "seed"):
            _require(getattr(self, key) >= 0, f"train.{key}", getattr(self, key), "0 or more")
        for key in ("tower_lr", "encoder_lr", "encoder_phase_tower_lr", "temperature", "gpus_per_worker"):
            _require(getattr(self, key) > 0, f"train.{key}", getattr(self, key), "above 0")
        _require(self.keep_checkpoints >= 2, "train.keep_checkpoints", self.keep_checkpoints, "at least 2")
        _require(self.zero_stage in (0, 1, 2, 3), "train.zero_stage", self.zero_stage, "0, 1, 2 or 3")
        for key in ("warmup", "new_items_cost"):
            _require(0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "a share from 0 to below 1")
        _require(self.clip >= 0, "train.clip", self.clip, "0 (no clipping) or more")
        ordered = isinstance(self.workers, int) or (len(self.workers) == 2 and self.workers[0] <= self.workers[1])
        expected = "a number of at least 1, or [fewest, most] of them"
        _require(ordered and self.min_workers >= 1, "train.workers", self.workers, expected)
        if isinstance(self.workers, int):
            expected, fits = f"a multiple of train.workers ({self.workers})", self.global_batch_size % self.workers == 0
        else:
            expected, fits = (
                f"at least {self.max_workers}, a window a worker",
                self.global_batch_size >= self.max_workers,
            )
        _require(fits, "train.global_batch_size", self.global_batch_size, expected)

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """The retrieval index of a bundle.

    kind: flat is exact; hnsw is a graph; ivf and ivfpq have lists, and ivfpq ranks compressed vectors and then the best
        of them exactly; cagra is a graph that a GPU builds and searches (FAISS with cuVS), a hnsw elsewhere; auto picks
        by the size of the catalogue, the hardware and `latency_ms`, and says why.
    latency_ms: goal for the search of one query, by which auto chooses: it ranks all items where this machine does that
        in time, however many they are, and takes lists or a graph where it does not; 0: no goal, by size alone.
    recall: recall@10 that `nprobe` (lists of ivf and ivfpq) and `ef_search` (nodes of hnsw) are chosen for where they
        are 0: as few as reach it on validation requests.
    refine: candidates of ivfpq that are ranked exactly, as a multiple of k.
    nlist: lists; 0 for 4 times the square root of the number of items.
    """

    kind: Literal["auto", "flat", "hnsw", "ivf", "ivfpq", "cagra"] = "auto"
    latency_ms: float = 0.0
    recall: float = 0.99
    refine: int = 16
    nlist: int = 0
    nprobe: int = 0
    hnsw_links: int = 32
    ef_construction: int = 200
    ef_search: int = 0
    use_gpu: Literal["auto", "yes", "no"] = "auto"

    def __post_init__(self) -> None:
        _require(0 < self.recall <= 1, "index.recall", self.recall, "above 0, at most 1")
        _require(self.latency_ms >= 0, "index.latency_ms", self.latency_ms, "0 (no goal) or more")
        for key in ("hnsw_links", "ef_construction", "refine"):
            _require(getattr(self, key) >= 1, f"index.{key}", getattr(self, key), "at least 1")
        for key in ("nlist", "nprobe", "ef_search"):
            _require(getattr(self, key) >= 0, f"index.{key}", getattr(self, key), "0 (automatic) or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """`ctxrec.evaluate`.

    ks: cut-offs of the metrics. bootstrap: resamples for the intervals.
    ease_choices, als_choices: ridge weights of EASE and numbers of factors of ALS to choose from, by NDCG@10
        on up to choice_requests requests of the validation split. The first ones serve where there is no
        validation split before the evaluated one.
    max_baseline_items: larger catalogues leave out EASE, ItemKNN and the ensemble, whose item-by-item matrix
        would not fit.
    batch_size: requests scored at once. actors: 0 takes one for each CPU of the cluster.
    """

    ks: tuple[int, ...] = (5, 10, 20)
    bootstrap: int = 1000
    ease_choices: tuple[float, ...] = (500.0, 200.0, 50.0)
    als_choices: tuple[int, ...] = (64, 128)
    choice_requests: int = 5_000
    knn_neighbours: int = 100
    max_baseline_items: int = 20_000
    batch_size: int = 256
    actors: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(bool(self.ks) and min(self.ks) >= 1, "evaluate.ks", self.ks, "one or more cut-offs of at least 1")
        _require(10 in self.ks, "evaluate.ks", self.ks, "a list that has 10, the cut-off of early stopping")
        for key in ("bootstrap", "choice_requests", "knn_neighbours", "batch_size"):
            _require(getattr(self, key) >= 1, f"evaluate.{key}", getattr(self, key), "at least 1")
        for key in ("ease_choices", "als_choices"):
            values = getattr(self, key)
            _require(bool(values) and min(values) > 0, f"evaluate.{key}", values, "one or more values above 0")
        for key in ("max_baseline_items", "actors"):
            _require(getattr(self, key) >= 0, f"evaluate.{key}", getattr(self, key), "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankConfig:
    """`ctxrec.rerank`: the optional second stage, a cross-encoder over the retriever's best candidates.

    use: evaluate, recommend and retrieve with the second stage of the run.
    candidates: the best of the retriever that are put in a new order.
    encoder: a local folder or a Hugging Face id; empty takes encoder.name. It gets a LoRA adapter of rank `rank`.
    history_items: latest items of the history whose titles are read.
    max_tokens, item_tokens: of a pair of request and candidate, and of the candidate alone.
    epochs, lr, head_lr, batch_size: of the training, lr for the adapter; `batch_size` requests a step.
    negatives: candidates that were not taken, drawn for each one that was.
    requests: validation requests that are used at most.
    """

    use: bool = False
    candidates: int = 50
    encoder: str = ""
    rank: int = 8
    history_items: int = 6
    max_tokens: int = 64
    item_tokens: int = 24
    epochs: int = 3
    lr: float = 5e-4
    head_lr: float = 5e-3
    batch_size: int = 16
    negatives: int = 7
    requests: int = 4_000
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("rank", "item_tokens", "epochs", "batch_size", "negatives"):
            _require(getattr(self, key) >= 1, f"rerank.{key}", getattr(self, key), "at least 1")
        for key in ("history_items", "seed"):
            _require(getattr(self, key) >= 0, f"rerank.{key}", getattr(self, key), "0 or more")
        for key in ("lr", "head_lr"):
            _require(getattr(self, key) > 0, f"rerank.{key}", getattr(self, key), "above 0")
        _require(self.candidates >= 2, "rerank.candidates", self.candidates, "at least 2, so that there is an order")
        _require(self.requests >= 10, "rerank.requests", self.requests, "at least 10, a part of which is kept apart")
        enough = self.max_tokens >= self.item_tokens + 8
        _require(enough, "rerank.max_tokens", self.max_tokens, "at least item_tokens + 8, so that the request has room")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiversityConfig:
    """What is done with the best candidates of a request at the end (`ctxrec.retrieval.slate.slate_builder`); by default nothing.

    strength: of MMR: 0 keeps the order of the scores, 1 asks only that the items of a list differ.
    pool: the best of the model that compete for the places of a list; more where a request asks for more items.
    caps: items of a list with the same value of a categorical column, at most, as in {category = 2}; given up only
        when no other item is eligible.
    freshness: what an item that is quite new gains, as a share of the span of the candidates' scores; an item
        `half_life_days` old gains half of it. Its age counts from the number in `date_column` (a year, or epoch
        seconds, milliseconds or microseconds), or, where that is empty, from its first event before the request.
    rules: file of blocks, boosts and pins (`ctxrec.retrieval.slate.rules`), path or URI; empty: none.
    """

    strength: float = 0.0
    pool: int = 100
    caps: dict[str, int] = field(default_factory=dict)
    freshness: float = 0.0
    half_life_days: float = 30.0
    date_column: str = ""
    rules: str = ""

    def __post_init__(self) -> None:
        _require(0 <= self.strength <= 1, "diversity.strength", self.strength, "from 0 (off) to 1")
        _require(self.pool >= 1, "diversity.pool", self.pool, "at least 1")
        for column, cap in self.caps.items():
            _require(cap >= 1, f"diversity.caps.{column}", cap, "at least 1")
        _require(self.freshness >= 0, "diversity.freshness", self.freshness, "0 (off) or more")
        _require(self.half_life_days > 0, "diversity.half_life_days", self.half_life_days, "above 0")

    @property
    def is_on(self) -> bool:
        return bool(self.strength or self.caps or self.freshness or self.rules)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All options; saved whole as `config.toml` in the run."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    rerank: RerankConfig = field(default_factory=RerankConfig)
    diversity: DiversityConfig = field(default_factory=DiversityConfig)

    def for_events(self, num_events: int) -> Config:
        """The options with what they leave to the size of the log: its number of training events."""
        if self.train.tower_epochs:
            return self
        epochs = min(max(round(_EVENTS_READ / max(num_events, 1)), _FEWEST_EPOCHS), _MOST_EPOCHS)
        return dataclasses.replace(self, train=dataclasses.replace(self.train, tower_epochs=epochs))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(raw: dict[str, Any], *, source: str = "config") -> Config:
        refuse_removed(raw, source=source)
        return build_dataclass(Config, raw, source=source)


def load_config(path: str | None = None, overrides: Sequence[str] = (), *, base: str | None = None) -> Config:
    """Read a config file (none: defaults) and apply `section.key=value` overrides in order.

    Args:
        path: a file that a user wrote.
        overrides: their values are TOML (`0.1`, `true`, `["tensorboard"]`); a value that is not TOML is a string.
        base: a `config.toml` that ctxrec wrote (of a run or a bundle), where options that `path` leaves out come from.
            Options that were removed since are dropped with a warning.

    Raises:
        UserError: an option is unknown, was removed, or has a value of the wrong type or out of range.
    """
    raw = without_removed(read_toml(base), source=base) if base is not None else {}
    given = read_toml(path) if path is not None else {}
    for section, options in given.items():
        both = isinstance(options, dict) and isinstance(raw.get(section), dict)
        raw[section] = raw[section] | options if both else options
    return config_with(raw, overrides, source=path or "--set")


def config_with(raw: dict[str, Any], overrides: Sequence[str], *, source: str) -> Config:
    """A config from the content of a file and `section.key=value` overrides on it."""
    for override in overrides:
        key, separator, text = override.partition("=")
        parts = key.strip().split(".")
        if not separator or len(parts) != 2 or not all(parts):
            raise UserError(f"--set {override!r} has the wrong form; expected section.key=value")
        section = raw.setdefault(parts[0], {})
        if not isinstance(section, dict):
            raise UserError(f"{parts[0]} is {section!r}; expected a section of options")
        section[parts[1]] = parse_value(text.strip())
    return Config.from_dict(raw, source=source)


def to_toml(config: Config) -> str:
    """`config` as TOML, complete, section by section."""
    lines = []
    for section, options in config.to_dict().items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {toml_value(value)}" for key, value in options.items()]
        lines.append("")
    return "\n".join(lines)
