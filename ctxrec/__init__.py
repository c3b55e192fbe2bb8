"""ctxrec: context-aware recommendation with a large pretrained encoder, on Ray."""

from ctxrec.core.version import VERSION as __version__

__all__ = ["__version__"]
