"""History backbones: one file each, chosen by `model.backbone`."""

from __future__ import annotations

from collections.abc import Callable

from ctxrec.core.config import BACKBONES, ModelConfig
from ctxrec.model.backbones.base import Backbone
from ctxrec.model.backbones.hstu import Hstu
from ctxrec.model.backbones.language_model import LanguageModel, check_language_model, store_language_model
from ctxrec.model.backbones.recurrent import Recurrent
from ctxrec.model.backbones.transformer import Transformer

__all__ = ["Backbone", "check_backbone", "make_backbone", "store_pretrained"]

_KINDS: dict[str, Callable[[ModelConfig], Backbone]] = dict(
    zip(BACKBONES, (Transformer, Recurrent, Recurrent, Hstu), strict=True)
)


def make_backbone(config: ModelConfig) -> Backbone:
    """The backbone that `model.backbone` names: one of ours, or else a pretrained language model."""
    return _KINDS.get(config.backbone, LanguageModel)(config)


def check_backbone(config: ModelConfig) -> None:
    """Raise a `UserError` where `model.backbone` names a language model that is not there or does not fit."""
    if config.backbone not in BACKBONES:
        check_language_model(config)


def store_pretrained(config: ModelConfig, folder: str) -> None:
    """Write what a pretrained backbone needs besides the trained weights into `folder`; ours need nothing."""
    if config.backbone not in BACKBONES:
        store_language_model(config.backbone, folder)
