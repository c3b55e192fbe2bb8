"""Options of what is trained: the encoder, the model and the training itself. Each default is here and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from ctxrec.core.errors import require

BACKBONES = ("transformer", "gru", "lstm", "hstu")  # of our own; any other name is a language model's

# What `train.encoder_epochs = auto` means where the encoder is tuned.
AUTO_ENCODER_EPOCHS = 4

Source = Literal["text", "media", "id", "features", "context", "user", "memory"]
SOURCES: tuple[Source, ...] = ("text", "media", "id", "features", "context", "user", "memory")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """These options name the pretrained encoders of the catalogue and say how the text encoder is fine-tuned.

    Attributes:
        name: The text encoder: a local folder or a Hugging Face id. Empty means that there is no text encoder.
        image: The encoder of the catalogue's images (CLIP, SigLIP, ViT, DINOv2): a local folder or a Hugging Face id. It
            is not fine-tuned. Empty means that images are not used.
        audio: The encoder of the catalogue's sounds (CLAP, wav2vec 2.0): a local folder or a Hugging Face id. It is not
            fine-tuned. Empty means that sounds are not used.
        pooling: How the states of the tokens become one vector. `auto` takes what the checkpoint names. If it names
            nothing, `auto` takes `mean` for models like BERT and `last` for models like GPT.
        tune: What is fine-tuned: an adapter (`lora`, `dora` or `ia3`), the top layers themselves (`top`), the whole encoder
            (`full`) or nothing (`freeze`).
        rank: Rank of the LoRA or DoRA adapter.
        alpha: Scale of the LoRA or DoRA adapter; its output is multiplied by alpha / rank.
        top_layers: How many of the top layers are fine-tuned. 0 means all layers. The states below them are computed once
            and kept on disk.
        max_tokens: Item texts are cut to this number of tokens.
        token_budget: Tokens that one forward pass of the encoder holds at most, padding included.
        cache_gb: Gigabytes that the states below the fine-tuned layers take at most on the disk of each machine.
        gradient_checkpointing: Keeps only the inputs of the encoder's layers and computes the rest again in the backward
            pass. This saves memory and takes more time.
        gradient_caching: Encodes the items of a step without a graph, and then again, pass by pass, with the gradients of
            their vectors. Memory then does not grow with `train.fresh_items`; the encoder's work grows by a third.
    """

    name: str = "sentence-transformers/all-MiniLM-L6-v2"
    image: str = ""
    audio: str = ""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    tune: Literal["lora", "dora", "ia3", "top", "full", "freeze"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    top_layers: int = 2
    max_tokens: int = 64
    token_budget: int = 4096
    cache_gb: float = 20.0
    gradient_checkpointing: bool = False
    gradient_caching: bool = False

    def __post_init__(self) -> None:
        for key in ("rank", "max_tokens", "token_budget"):
            require(getattr(self, key) >= 1, f"encoder.{key}", getattr(self, key), "at least 1")
        for key in ("top_layers", "cache_gb"):
            require(getattr(self, key) >= 0, f"encoder.{key}", getattr(self, key), "0 or more")
        require(self.token_budget >= self.max_tokens, "encoder.token_budget", self.token_budget, "at least max_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """These options shape the item tower and the user tower on top of the encoder.

    Attributes:
        sources: What the model reads: `text` and `media` (images and sounds) of items, the item's `id`, its categorical
            and numeric `features`, the `context` of the request, attributes of the `user`, and the `memory`: what the log
            says of pairs of items and of popularity. An item needs one of `text`, `id` and `features`.
        dim: Width of item vectors and of the history backbone.
        content_dim: Width of the content head, which compares the text of an item with the texts of the latest items of
            the history. 0 means that there is no content head.
        backbone: What reads the history: `transformer`, `gru`, `lstm` or `hstu`, or a pretrained causal language model, named
            by a folder or a Hugging Face id (`owner/name`).
        backbone_rank: Rank of the LoRA adapter of a language model that reads the history. Its learning rate is
            `train.encoder_lr`. 0 means that the language model is frozen.
        layers: Layers of the backbone. A language model has its own number.
        heads: Attention heads of the backbone. A language model has its own number.
        dropout: Dropout of the backbone and of the user tower. A language model has none inside.
        history: How many events of the history the model reads; it reads the latest ones.
        action_heads: Gives the model one query for each action of the log. In training each target is asked for by its own
            action. A request asks by all of them, weighted by `[events.actions]` of the dataset spec.
        id_buckets: Rows of the hashed ID embedding. 0 means one row for each item, up to 1 million.
        id_dropout: Share of the items whose ID is hidden in a training step, so that items without events are ranked well.
        text_dropout: Share of the items whose text is hidden in a training step, so that items without text are ranked well.
    """

    sources: tuple[Source, ...] = SOURCES
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

    def __post_init__(self) -> None:
        for key in ("dim", "layers", "heads", "history"):
            require(getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "at least 1")
        language_model = "/" in self.backbone or os.path.isdir(self.backbone)
        expected = f"{', '.join(BACKBONES)}, or the folder or id (owner/name) of a causal language model"
        require(self.backbone in BACKBONES or language_model, "model.backbone", self.backbone, expected)
        for key in ("backbone_rank", "content_dim", "id_buckets"):
            require(getattr(self, key) >= 0, f"model.{key}", getattr(self, key), "0 or more")
        require(self.dim % self.heads == 0, "model.dim", self.dim, f"a multiple of model.heads ({self.heads})")
        for key in ("dropout", "id_dropout", "text_dropout"):
            require(0 <= getattr(self, key) < 1, f"model.{key}", getattr(self, key), "from 0 to below 1")
        expected = "at least one of text, id and features, as an item needs a source for its vector"
        require(bool({"text", "id", "features"} & set(self.sources)), "model.sources", list(self.sources), expected)
        # One order and no repetition, so that equal models have equal options.
        object.__setattr__(self, "sources", tuple(source for source in SOURCES if source in self.sources))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """`ctxrec.train` trains the towers on frozen text vectors first, then the encoder, then the towers once more (the refit).

    Attributes:
        preset: `full` trains in the phases above. `quick` trains no tower and no encoder: the model has what has a closed
            form or comes from the encoder as it is (item memory, texts, popularity) and the blend of them. It takes a
            minute on a small log, and `full` in the same folder goes on from there.
        workers: Number of Ray Train workers, or `[fewest, most]`: as many as the cluster has room for, more or fewer as
            machines come and go. 0 trains in the command's own process without Ray, which starts sooner and is easy to
            debug; a worker that dies is then not replaced.
        cpus_per_worker: CPUs of each worker. 0 divides the CPUs of the cluster among the workers.
        gpus_per_worker: GPUs of each worker that trains on GPUs. Below 1, a worker shares its GPU with other trainings.
        use_gpu: Whether to train on GPUs. `auto` does so where the cluster has some.
        zero_stage: Stage of DeepSpeed ZeRO: 0, 1, 2 or 3. Stage 0 with bf16 is run as stage 1.
        offload: Keeps the states of the optimizer in the memory of the CPU, and in stage 3 the weights too.
        global_batch_size: History windows of a step, over all workers, so that the result does not depend on their number.
        micro_batch_size: History windows that go through the model of a worker at once. 0 means all windows of a step.
        tower_epochs: Epochs of the first phase and of the refit, at most. 0 takes as many as read 1.5 million events, from
            4 to 15, because more did not help on large logs.
        encoder_epochs: Epochs of the encoder's phase, in which the items of a step get fresh text vectors. `auto` leaves the
            phase out where the log or its texts cannot teach the encoder. A number trains it in any case; 0 means no such
            phase.
        also: Prepared folders of other logs, from which the encoder learns too what belongs together, before the towers are
            trained. What it learnt is kept if the texts alone then rank the validation events better.
        tower_lr: Peak learning rate of the towers in the first phase and in the refit.
        encoder_lr: Peak learning rate of the encoder. A language model that reads the history learns at a sixth of it.
        encoder_phase_tower_lr: Peak learning rate of the towers in the encoder's phase.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the steps in which the learning rate rises to its peak.
        fresh_items: Distinct items of a step that the encoder encodes with gradients, at most.
        loss: `softmax` over all items, `sampled_softmax` with logQ correction, or `bce`, binary cross-entropy with uniform
            negatives. `auto` takes the full softmax for up to 50,000 items, and the sampled softmax above.
        negatives: Negatives of a step of the sampled softmax and of binary cross-entropy.
        temperature: Temperature of the scores at the start of the training; it is learned.
        eval_every: Steps between evaluations on the validation split. 0 means once an epoch.
        patience: Evaluations without gain after which a phase ends.
        valid_users: Requests of the validation split that each evaluation ranks, at most.
        new_items_cost: Share of NDCG@10 on the validation split that may be given up so that items without events are
            shown more often. 0 gives up nothing.
        refit: Trains the towers again on the training and validation events, after options and weights are chosen.
        precision: Number format of the training. `auto` takes bf16 on GPUs that have it and on CPUs with AMX, and fp32
            elsewhere.
        seed: Seed of all random numbers of the training.
        max_failures: How often workers or machines that died are replaced before the training fails.
        not_finite: What happens when the loss of a step is not a finite number. `stop` ends the training; `skip` goes on
            from the last checkpoint without that step.
        timeout_s: Seconds that a worker waits for the others before it counts as a failure.
        checkpoint_every: Steps between checkpoints. 0 means that there is a checkpoint after each evaluation alone.
        keep_checkpoints: How many of the newest checkpoints are kept, besides the best weights of each phase. At least 2,
            because the newest may be incomplete.
        trackers: Where figures of the training are logged: `tensorboard`, `wandb` and `mlflow`.
    """

    preset: Literal["full", "quick"] = "full"
    workers: int | tuple[int, ...] = 1
    cpus_per_worker: float = 0.0
    gpus_per_worker: float = 1.0
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    zero_stage: int = 2
    offload: bool = False
    global_batch_size: int = 64
    micro_batch_size: int = 0
    tower_epochs: int = 0
    encoder_epochs: int | Literal["auto"] = "auto"
    also: tuple[str, ...] = ()
    tower_lr: float = 4e-3
    encoder_lr: float = 3e-3
    encoder_phase_tower_lr: float = 5e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    fresh_items: int = 64
    loss: Literal["auto", "softmax", "sampled_softmax", "bce"] = "auto"
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
        for key in ("global_batch_size", "fresh_items", "negatives", "patience", "valid_users", "timeout_s"):
            require(getattr(self, key) >= 1, f"train.{key}", getattr(self, key), "at least 1")
        counts = ("tower_epochs", "eval_every", "checkpoint_every", "micro_batch_size")
        epochs = self.encoder_epochs
        require(epochs == "auto" or epochs >= 0, "train.encoder_epochs", epochs, "0 or more, or auto")
        for key in (*counts, "cpus_per_worker", "max_failures", "weight_decay", "seed"):
            require(getattr(self, key) >= 0, f"train.{key}", getattr(self, key), "0 or more")
        for key in ("tower_lr", "encoder_lr", "encoder_phase_tower_lr", "temperature", "gpus_per_worker"):
            require(getattr(self, key) > 0, f"train.{key}", getattr(self, key), "above 0")
        require(self.keep_checkpoints >= 2, "train.keep_checkpoints", self.keep_checkpoints, "at least 2")
        require(self.zero_stage in (0, 1, 2, 3), "train.zero_stage", self.zero_stage, "0, 1, 2 or 3")
        for key in ("warmup", "new_items_cost"):
            require(0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "a share from 0 to below 1")
        ordered = isinstance(self.workers, int) or (len(self.workers) == 2 and self.workers[0] <= self.workers[1])
        expected = "a number of at least 1, or [fewest, most] of them, or 0 for the command's own process"
        require(ordered and (self.min_workers >= 1 or self.workers == 0), "train.workers", self.workers, expected)
        if isinstance(self.workers, int):
            fits = self.global_batch_size % max(self.workers, 1) == 0
            expected = f"a multiple of train.workers ({self.workers})"
        else:
            expected, fits = (
                f"at least {self.max_workers}, a window a worker",
                self.global_batch_size >= self.max_workers,
            )
        require(fits, "train.global_batch_size", self.global_batch_size, expected)

    @property
    def most_encoder_epochs(self) -> int:
        """Epochs of the encoder's phase where there is one."""
        return AUTO_ENCODER_EPOCHS if self.encoder_epochs == "auto" else self.encoder_epochs

    @property
    def min_workers(self) -> int:
        """The fewest workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers[-1]
