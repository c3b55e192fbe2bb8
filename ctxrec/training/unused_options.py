"""Options that a training does not use because of other options: the quick preset, an encoder that stays as it is, and others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ctxrec.core.config import BACKBONES, Config
from ctxrec.core.option_origins import names_of
from ctxrec.core.toml import toml_value
from ctxrec.training.tuning_rule import why_never_tuned, why_not_asked

_TUNING = (
    "encoder.tune", "encoder.rank", "encoder.alpha", "encoder.top_layers", "encoder.cache_gb",
    "encoder.gradient_checkpointing", "encoder.gradient_caching", "train.encoder_epochs", "train.encoder_phase_tower_lr",
    "train.fresh_items",
)  # fmt: skip
_TOWERS = (
    "encoder.image", "encoder.audio", "model.dim", "model.backbone", "model.backbone_rank", "model.layers", "model.heads",
    "model.dropout", "model.history", "model.action_heads", "model.id_buckets", "model.id_dropout", "model.text_dropout",
    "train.zero_stage", "train.offload", "train.global_batch_size", "train.micro_batch_size", "train.tower_epochs",
    "train.tower_lr", "train.encoder_lr", "train.weight_decay", "train.warmup", "train.loss", "train.negatives",
    "train.temperature", "train.eval_every", "train.patience", "train.refit", "train.precision", "train.not_finite",
    "train.checkpoint_every", "train.keep_checkpoints", "train.trackers",
)  # fmt: skip
_WORKERS = ("train.cpus_per_worker", "train.gpus_per_worker", "train.max_failures", "train.timeout_s")
_OF_TUNE = {  # what each way to tune the encoder has no use for
    "ia3": ("encoder.rank", "encoder.alpha"),
    "top": ("encoder.rank", "encoder.alpha"),
    "full": ("encoder.rank", "encoder.alpha", "encoder.top_layers", "encoder.cache_gb"),
}


def unused_options(config: Config) -> dict[str, str]:
    """The options that have no effect beside the others, by "section.key", each with the reason.

    Those are left out about which the log or the hardware decides.
    """
    found: dict[str, str] = {}
    for why, names in _rules(config):
        for name in names:
            found.setdefault(name, why)
    return found


def set_in_vain(config: Config) -> list[str]:
    """A sentence for each reason why options of a training that are not at their defaults have no effect on it.

    >>> from ctxrec.core.config import load_config
    >>> set_in_vain(load_config(None, ["train.loss=softmax", "train.negatives=3"]))
    ['no effect on this training: train.negatives = 3, because the softmax is over all items']
    """
    given, defaults, by_reason = names_of(config), names_of(Config()), dict[str, list[str]]()
    for name, why in unused_options(config).items():
        if given[name] != defaults[name] and not name.startswith("diversity."):
            by_reason.setdefault(why, []).append(f"{name} = {toml_value(given[name])}")
    return [f"no effect on this training: {', '.join(names)}, because {why}" for why, names in by_reason.items()]


def with_defaults_for_unused(config: Config) -> Config:
    """`config` with the defaults of the options that it does not use."""
    unused, made = unused_options(config), config
    for section in dataclasses.fields(Config):
        options, defaults = getattr(config, section.name), getattr(Config(), section.name)
        reset = {
            option.name: getattr(defaults, option.name)
            for option in dataclasses.fields(options)
            if f"{section.name}.{option.name}" in unused
        }
        made = dataclasses.replace(made, **{section.name: dataclasses.replace(options, **reset)})
    return made


def _rules(config: Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    train = config.train
    if train.preset == "quick":
        yield "a quick training runs in the command's own process", ("train.workers", *_WORKERS)
        yield "a quick training has no towers", _TOWERS
        yield "a quick training leaves the encoder as it is", _TUNING
    elif train.workers == 0:
        yield "train.workers is 0, so that the command's own process trains", _WORKERS
    if train.use_gpu == "no":
        yield "train.use_gpu is 'no'", ("train.gpus_per_worker",)
    yield from _of_model(config)
    yield from _of_encoder(config)
    yield from _of_lists(config)


def _of_model(config: Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    model, train = config.model, config.train
    if model.backbone in BACKBONES:
        yield "model.backbone is no language model", ("model.backbone_rank",)
    else:
        yield "the language model has its own number", ("model.layers", "model.heads")
    if "id" not in model.sources:
        yield "model.sources has no 'id'", ("model.id_buckets", "model.id_dropout")
    if "media" not in model.sources:
        yield "model.sources has no 'media'", ("encoder.image", "encoder.audio")
    if "memory" not in model.sources:
        yield "model.sources has no 'memory'", ("train.new_items_cost",)
    if train.loss == "softmax":
        yield "the softmax is over all items", ("train.negatives",)


def _of_encoder(config: Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    encoder, model = config.encoder, config.model
    if not encoder.name or "text" not in model.sources:
        read = (
            "encoder.pooling",
            "encoder.max_tokens",
            "encoder.token_budget",
            "model.content_dim",
            "model.text_dropout",
        )
        yield "the model reads no text", read
    why_not, never = why_not_asked(config), why_never_tuned(config)
    if never:
        yield never, ("train.also",)
    also = bool(config.train.also) and not never  # another phase that tunes the encoder
    if why_not and not also:
        # The reason itself is no option that is set in vain.
        reason = {"encoder.tune is freeze": "encoder.tune", "train.encoder_epochs is 0": "train.encoder_epochs"}.get(
            why_not
        )
        yield why_not, tuple(name for name in _TUNING if name != reason)
        if model.backbone in BACKBONES:
            yield why_not, ("train.encoder_lr",)
        return
    if why_not:
        yield why_not, ("train.encoder_phase_tower_lr",)
    yield f"encoder.tune is {encoder.tune}", _OF_TUNE.get(encoder.tune, ())


def _of_lists(config: Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    index, diversity = config.index, config.diversity
    if index.kind != "auto":
        yield f"index.kind is {index.kind}", ("index.latency_ms",)
    if index.kind == "flat":
        yield "a flat index is exact", ("index.recall", "index.nprobe", "index.ef_search")
    if index.kind == "hnsw":
        yield "an hnsw index has no lists", ("index.nprobe",)
    if index.kind in ("ivf", "ivfpq"):
        yield f"an {index.kind} index is no graph", ("index.ef_search",)
    if not diversity.freshness:
        yield "diversity.freshness is 0", ("diversity.half_life_days", "diversity.date_column")
