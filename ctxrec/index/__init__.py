"""Top-k search over item vectors: exact and FAISS, on CPUs and GPUs."""

import logging

from ctxrec.index import faiss_package

# FAISS tells which of its libraries it tries, at each import in each process.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)
faiss_package.check()
