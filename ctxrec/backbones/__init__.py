"""History backbones: one file each, chosen by `model.backbone`."""

from __future__ import annotations

from ctxrec.backbones.base import Backbone
from ctxrec.backbones.hstu import Hstu
from ctxrec.backbones.recurrent import Recurrent
from ctxrec.backbones.transformer import Transformer
from ctxrec.config import ModelConfig

_KINDS = {"transformer": Transformer, "gru": Recurrent, "lstm": Recurrent, "hstu": Hstu}


def make_backbone(config: ModelConfig) -> Backbone:
    return _KINDS[config.backbone](config)
