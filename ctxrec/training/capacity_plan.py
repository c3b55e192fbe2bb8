"""Memory, time and a recommendation for a training that is too large to try: what `ctxrec.plan` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.model.inputs import MAX_ID_ROWS
from ctxrec.model.network import FULL_SOFTMAX_ITEMS
from ctxrec.training.memory_model import RESERVE, TUNES, Encoder, Load, per_gpu, tower_weights

GIB = 1 << 30
EVENT_BYTES = 24  # of prepared histories on disk, compressed


@dataclass(frozen=True)
class Hardware:
    """Assumptions about the machines; each is an option of the command."""

    gpus: int = 8
    gpu_memory_gb: float = 80.0
    tflops: float = 400.0  # dense bf16 that a GPU reaches in a large product
    utilisation: float = 0.4  # share of it that training reaches
    network_gbit: float = 100.0  # of a GPU's way to the others


@dataclass(frozen=True)
class Work:
    """The size of the data."""

    events: int
    items: int
    users: int
    tokens_per_item: int = 32


def plan(work: Work, encoder: Encoder, hardware: Hardware, config: Config) -> dict[str, Any]:
    """The whole plan as plain values.

    Raises:
        UserError: a size is not above 0.
    """
    for name, value in (asdict(work) | asdict(hardware)).items():
        if value <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {value:g}; expected more than 0")
    load = load_of(work, hardware, config)
    room = hardware.gpu_memory_gb * 1e9 * (1 - RESERVE)
    rows = []
    for tune in TUNES:
        for stage in range(4):
            parts = _memory(encoder, load, config, hardware, tune=tune, stage=stage)
            total = sum(parts.values())
            rows.append({"tune": tune, "zero_stage": stage, "total": total, "fits": total <= room} | parts)
    return {
        "assumptions": {"work": asdict(work), "hardware": asdict(hardware), "reserve": RESERVE, "encoder": asdict(encoder)},
        "memory": rows,
        "recommended": recommend(encoder, load, config, hardware, room),
        "time": seconds(work, encoder, hardware, config, load),
        "network": network(encoder, hardware, config, load),
        "storage": disk(work, encoder, config, load),
    }  # fmt: skip


def load_of(work: Work, hardware: Hardware, config: Config) -> Load:
    """The size of a worker's step that follows from the data, the hardware and the options."""
    model, train = config.model, config.train
    rows = train.micro_batch_size or max(train.global_batch_size // hardware.gpus, 1)
    full = work.items <= FULL_SOFTMAX_ITEMS
    return Load(
        items=work.items,
        id_rows=model.id_buckets or min(work.items, MAX_ID_ROWS),
        dim=model.dim,
        content=model.content_dim,
        fresh_tokens=-(-train.fresh_items // hardware.gpus) * work.tokens_per_item,
        positions=rows * (model.history + 1),
        scores=1 if full else train.negatives,  # full softmax holds a chunk of scores at a time
    )


def _memory(
    encoder: Encoder, load: Load, config: Config, hardware: Hardware, *, tune: str, stage: int, **options: bool
) -> dict[str, int]:
    return per_gpu(
        encoder, load, tune=tune, stage=stage, gpus=hardware.gpus, rank=config.encoder.rank,
        top_layers=config.encoder.top_layers, **options,
    )  # fmt: skip


def recommend(encoder: Encoder, load: Load, config: Config, hardware: Hardware, room: float) -> dict[str, Any]:
    """The first setting that fits. Each next one divides more, which costs traffic or time."""
    tune = config.encoder.tune
    tries: list[tuple[int, dict[str, bool], str]] = [
        (0, {}, "everything fits on each GPU, so nothing is divided"),
        (1, {}, "the optimizer's state must be divided"),
        (2, {}, "state and gradients must be divided"),
        (2, {"checkpointing": True}, "activations must be computed twice, which costs a third more encoder time"),
        (3, {"checkpointing": True}, "the weights must be divided too, which costs half as much traffic again"),
        (3, {"checkpointing": True, "offload": True}, "the optimizer's state must lie in the machines' memory"),
    ]
    least = float("inf")
    for stage, options, reason in tries:
        total = sum(_memory(encoder, load, config, hardware, tune=tune, stage=stage, **options).values())
        least = min(least, total)
        if total <= room:
            flags: dict[str, Any] = {"train.zero_stage": stage, "encoder.tune": tune, "train.workers": hardware.gpus}
            flags |= {"encoder.gradient_checkpointing": True} if "checkpointing" in options else {}
            flags |= {"train.offload": True} if "offload" in options else {}
            flags |= {"index.kind": "flat" if load.items <= 1_000_000 else "ivf"}
            return {"fits": True, "set": flags, "bytes": int(total), "reason": reason}
    parts = _memory(encoder, load, config, hardware, tune=tune, stage=3, checkpointing=True, offload=True)
    rest = sum(parts.values()) - parts["catalogue"]
    most = max(int((room - rest) / parts["catalogue"] * load.items), 0)
    reason = (
        f"nothing fits in {room / GIB:.0f} GiB: {least / GIB:.0f} GiB is the least, of which the catalogue takes "
        f"{parts['catalogue'] / GIB:.0f} GiB. Every worker holds the vectors of all items; about {most:,} items fit. "
        "Train on the items that have events, and let the others come in as new items, or take an encoder of less width"
    )
    return {"fits": False, "set": {}, "bytes": int(least), "items_that_fit": most, "reason": reason}


def seconds(work: Work, encoder: Encoder, hardware: Hardware, config: Config, load: Load) -> dict[str, float]:
    """Seconds of an epoch of each phase on all GPUs: operations divided by the assumed rate of the hardware."""
    rate = hardware.gpus * hardware.tflops * 1e12 * hardware.utilisation
    half = max(config.model.history // 2, 1)
    steps = max((work.users + work.events / half) / config.train.global_batch_size, 1)
    layer = 2 * encoder.layer_weights + 4 * encoder.hidden * work.tokens_per_item  # forward, a token
    forward = encoder.layers * layer
    trained = min(config.encoder.top_layers or encoder.layers, encoder.layers)
    backward = 2 * layer * (encoder.layers if config.encoder.tune == "full" else trained)
    tokens = min(config.train.fresh_items, work.items) * work.tokens_per_item
    # Item vectors of the whole catalogue in every step, forward and backward; the backbone's matrices are 12 D^2 a layer.
    catalogue = 6 * work.items * encoder.hidden * (load.dim + load.content)
    competing = work.items if work.items <= FULL_SOFTMAX_ITEMS else config.train.negatives
    position = 6 * (12 * load.dim**2 * config.model.layers + load.dim * competing)
    towers = steps * catalogue + 2 * work.events * position
    return {
        "steps": steps,
        "towers_epoch_s": towers / rate,
        "encoder_epoch_s": (towers + steps * tokens * (forward + backward)) / rate,
        "encode_catalogue_s": work.items * work.tokens_per_item * forward / rate,
    }


def network(encoder: Encoder, hardware: Hardware, config: Config, load: Load) -> dict[str, float]:
    """Bytes and seconds on the network for a step and GPU: gradients in a ring (2 (n - 1) / n of their bytes), and the
    fresh text vectors."""
    ring = (hardware.gpus - 1) / hardware.gpus
    learns = encoder.trainable(config.encoder.tune, rank=config.encoder.rank, top_layers=config.encoder.top_layers)
    gradients = 2 * ring * 2 * (learns + tower_weights(load, encoder.hidden))
    vectors = 3 * ring * config.train.fresh_items * encoder.hidden * 4
    weights = 2 * ring * 2 * encoder.parameters if config.train.zero_stage == 3 else 0
    total = gradients + vectors + weights
    return {"step_bytes": total, "step_s": total * 8 / (hardware.network_gbit * 1e9)}


def disk(work: Work, encoder: Encoder, config: Config, load: Load) -> dict[str, float]:
    """Bytes of storage by purpose."""
    learns = encoder.trainable(config.encoder.tune, rank=config.encoder.rank, top_layers=config.encoder.top_layers)
    weights = learns + tower_weights(load, encoder.hidden)
    vectors = work.items * 4 * (load.dim + load.content + 2)
    return {
        "prepared_bytes": work.events * EVENT_BYTES + work.users * 64,
        "text_vectors_bytes": work.items * 4 * encoder.hidden,
        "checkpoints_bytes": 2 * 3 * 4 * weights + 4 * weights,  # two with moments, and the best weights
        "bundle_bytes": 4 * weights + 2 * vectors,
    }


def report(made: dict[str, Any]) -> str:
    """The plan as a text for the terminal."""
    lines = ["memory of a GPU in GiB (weights, gradients, optimizer, activations, catalogue)"]
    for row in made["memory"]:
        parts = "  ".join(
            f"{row[k] / GIB:9.2f}" for k in ("weights", "gradients", "optimizer", "activations", "catalogue")
        )
        mark = "fits" if row["fits"] else "-"
        lines.append(f"  {row['tune']:<7} ZeRO-{row['zero_stage']}  {row['total'] / GIB:9.2f} = {parts}  {mark}")
    time, hardware = made["time"], made["assumptions"]["hardware"]
    lines.append(
        f"time, at {hardware['tflops']:g} TFLOP/s per GPU and {hardware['utilisation']:.0%} of it: {time['steps']:,.0f} steps; "
        f"epoch of the towers {time['towers_epoch_s'] / 3600:,.1f} h, with the encoder {time['encoder_epoch_s'] / 3600:,.1f} h; "
        f"encoding the catalogue once {time['encode_catalogue_s'] / 3600:,.2f} h"
    )
    step = made["network"]
    lines.append(f"network: {step['step_bytes'] / 1e6:,.1f} MB per step and GPU, {step['step_s'] * 1e3:,.1f} ms")
    sizes = "  ".join(
        f"{k.removesuffix('_bytes').replace('_', ' ')} {v / 1e9:,.1f} GB" for k, v in made["storage"].items()
    )
    lines.append(f"storage: {sizes}")
    best = made["recommended"]
    flags = " ".join(f"--set {k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in best["set"].items())
    lines.append(f"recommended: {flags or 'none'}\n  because {best['reason']} ({best['bytes'] / GIB:.1f} GiB)")
    return "\n".join(lines)
