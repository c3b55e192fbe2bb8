"""Top-k search over item vectors: exact and FAISS, on CPUs and GPUs."""
