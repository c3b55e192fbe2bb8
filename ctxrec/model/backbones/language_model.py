"""A pretrained causal language model that reads event slots instead of words (HLLM, arXiv 2409.12740).

Slots are projected to the width of the model's word vectors and take their place; the last hidden states are projected
back. The model's own weights are frozen; a LoRA adapter is trained.

Legend: B rows, S slots, D width, H width of word vectors.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn as nn

from ctxrec.core import storage
from ctxrec.core.config import ModelConfig
from ctxrec.core.errors import UserError
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import lora_config
from ctxrec.model.backbones.base import Backbone, states_at

OPTION = "model.backbone"


class LanguageModel(Backbone):
    """A causal language model over slots, with a residual connection around it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        model = _load(check_language_model(config), torch.float32).eval()
        words = model.get_input_embeddings()
        width, spread = words.embedding_dim, float(words.weight.detach().std(correction=0))
        _drop_words(model)
        self.inward = nn.Linear(config.dim, width)
        self.outward = nn.Linear(_causal_width(model, width, config.backbone), config.dim)
        nn.init.normal_(self.inward.weight, std=spread * config.dim**-0.5)  # slots come as long as words do
        nn.init.zeros_(self.inward.bias)
        self.model = _adapt(model, config)
        self.register_load_state_dict_pre_hook(_fill_in_frozen)

    def forward(self, x_BSD: torch.Tensor, times_BS: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """States at every slot, [B, S, D], or at the slots `last_B` alone, [B, D]."""
        words = self.inward(x_BSD)
        with torch.autocast(x_BSD.device.type, enabled=False):  # it knows what to compute in which precision
            words = words.to(next(self.model.parameters()).dtype)
            states = self.model(inputs_embeds=words, use_cache=False).last_hidden_state
        return states_at(x_BSD, last_B) + self.outward(states_at(states, last_B))


def check_language_model(config: ModelConfig) -> str:
    """Find the language model and check by its configuration whether it fits.

    Returns:
        Its local folder.

    Raises:
        UserError: it is not found, it is no causal language model, or it has too few positions for `model.history`.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    path = _folder(config.backbone)
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"the language model at {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    looks_ahead = found.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(found, "is_decoder", False)
    if found.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or looks_ahead:
        raise _not_causal(config.backbone, found.model_type)
    positions = getattr(found, "max_position_embeddings", None) or 0
    if 0 < positions < config.history + 1:
        raise UserError(
            f"model.history is {config.history}; expected at most {positions - 1}, as the language model "
            f"{config.backbone!r} has {positions} positions, one of which is the user"
        )
    return path


def store_language_model(name: str, folder: str) -> None:
    """Write what loading needs of a language model, without its word vectors, in its own precision."""
    model = _load(_folder(name), "auto")
    _drop_words(model)
    model.save_pretrained(folder)


def _folder(name: str) -> str:
    return _fetched(name) if storage.is_uri(name) else resolve_encoder(name, storage.cache_dir(), option=OPTION)


@functools.cache
def _fetched(uri: str) -> str:
    """The local copy of a folder elsewhere, made once a process."""
    return resolve_encoder(uri, storage.cache_dir(), option=OPTION)


def _load(path: str, dtype: torch.dtype | str) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        return AutoModel.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise UserError(f"the language model at {path} cannot be loaded: {str(error).splitlines()[0]}") from error


def _drop_words(model: Any) -> None:
    """Leave one row of the word vectors, which are never read and can be a third of the weights."""
    model.config.pad_token_id = model.config.bos_token_id = model.config.eos_token_id = None
    model.resize_token_embeddings(1, mean_resizing=False)


def _adapt(model: Any, config: ModelConfig) -> Any:
    """Freeze the model and put the adapter on."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if config.backbone_rank == 0:
        return model
    from peft import get_peft_model

    try:
        return get_peft_model(model, lora_config(model, rank=config.backbone_rank, alpha=2.0 * config.backbone_rank))
    except ValueError as error:
        raise UserError(f"no adapter fits the language model {config.backbone!r}: {error}") from error


@torch.no_grad()
def _causal_width(model: Any, width: int, name: str) -> int:
    """Width of the hidden states, after a check that a later slot changes nothing before it.

    A model that looks ahead would read what it has to predict, so the check runs the model and trusts no name.
    """
    slots = torch.linspace(-1, 1, 3 * width).view(1, 3, width)
    whole = model(inputs_embeds=slots, use_cache=False).last_hidden_state
    alone = model(inputs_embeds=slots[:, :1], use_cache=False).last_hidden_state
    if not torch.allclose(whole[:, :1], alone, atol=1e-4 * float(alone.abs().max())):
        raise _not_causal(name, model.config.model_type)
    return whole.shape[-1]


def _not_causal(name: str, kind: str) -> UserError:
    return UserError(
        f"{OPTION} is {name!r}, a model of type {kind}, which does not read from left to right alone; "
        "expected a causal language model (GPT-2, Llama, Qwen, ...)"
    )


def _fill_in_frozen(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Complete saved weights, which are the trained ones, with the frozen ones, which come from the model's own files."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            state.setdefault(prefix + name, parameter.detach())
