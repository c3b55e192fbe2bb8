"""Top-k search over item vectors: exact and FAISS, on CPUs and GPUs."""

import logging

# FAISS tells which of its libraries it tries, at each import in each process.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)
