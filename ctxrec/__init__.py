"""ctxrec: context-aware recommendation with a large pretrained encoder, on Ray."""

__version__ = "0.1.0"
