"""The pretrained text encoder: load it, pool its states, and attach what is fine-tuned.

Legend: n texts, T tokens, H width of the encoder.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
import torch.nn as nn

from ctxrec.core.config import EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.encoder.layer_split import cut_below, first_trained, layer_list, outside_top


class TextEncoder(nn.Module):
    """A Hugging Face encoder with pooling, and with the adapters that the config names."""

    def __init__(self, config: EncoderConfig, path: str, *, tune: bool, cut: bool = False) -> None:
        """Load the encoder.

        Args:
            config: options of the encoder.
            path: local folder of the checkpoint.
            tune: attach what is trained; without it every weight is frozen.
            cut: leave the layers below the trained ones out; `forward` is then given their states.

        Raises:
            UserError: the checkpoint cannot be loaded, or `config.tune` does not fit it.
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
        """Whether `forward` needs the states of the layers below the trained ones."""
        return self._lower is not None

    def fit_to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the attention for training on a device: on a CPU in bfloat16 the backward pass of torch's fused attention
        is many times slower than that of plain products."""
        if device.type == "cpu" and dtype == torch.bfloat16:
            model = self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone
            model.set_attn_implementation("eager")

    def forward(
        self, ids_nT: torch.Tensor, mask_nT: torch.Tensor, lower_nTH: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Pooled vectors of texts.

        Args:
            ids_nT: token ids, padded at the end.
            mask_nT: 1 for tokens, 0 for padding.
            lower_nTH: for a cut encoder alone, what its lowest layer reads.

        Returns:
            float32 [n, H].
        """
        assert (lower_nTH is None) == (self._lower is None)
        if self._lower is not None and lower_nTH is not None:
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
    """A pretrained encoder in float32, without dropout.

    Most of its weights are frozen, adapters have a dropout of their own, and attention without dropout has a fast form on
    CPUs.

    Raises:
        UserError: the folder holds no encoder that can be loaded from safetensors without running its code.
    """
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
        backbone.pooler = None  # we pool ourselves, and ZeRO waits for a gradient of each trained weight
    return backbone


def _pooling(config: EncoderConfig, path: str) -> str:
    """The configured pooling; for "auto" the checkpoint's own (sentence-transformers), else the architecture's."""
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
    """Number of the lowest layer that `config` trains; 0 where word vectors are trained too."""
    return 0 if config.tune == "full" else first_trained(backbone, config.top_layers)


def lora_config(
    backbone: Any, *, rank: int, alpha: float, dropout: float = 0.0, dora: bool = False, exclude: str | None = None
) -> Any:
    """Options of a LoRA or DoRA adapter on the linear layers of a Hugging Face model.

    `exclude` is a regular expression for the names of modules that get no adapter.
    """
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
    """Make trainable what `config.tune` names; attach a PEFT adapter where it names one.

    Raises:
        UserError: the adapter does not fit the encoder's architecture.
    """
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
