"""Memory that a step's fresh items take, with and without gradient caching.

    python tests/bench/gradient_caching.py [--encoder FOLDER]

Each line is a process of its own. It runs forward and backward over so many texts of 16 tokens, with LoRA in all layers
of the encoder and a loss in which all texts meet. Its memory is the peak of the process above what it had before.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from ctxrec.core.config import EncoderConfig
from ctxrec.core.storage import cache_dir
from ctxrec.encoder.encode_plan import encode_share, plan_encoding, tokenise
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder


def measure(num_texts: int, caching: bool, encoder: str) -> None:
    path = resolve_encoder(encoder, cache_dir())
    config = EncoderConfig(name=path, top_layers=0, token_budget=256, max_tokens=16, gradient_caching=caching)
    rng = np.random.default_rng(0)
    tokens = tokenise(
        path, [" ".join(map(str, rng.integers(1000, size=14))) for _ in range(num_texts)], max_tokens=config.max_tokens
    )
    plan = plan_encoding(np.arange(num_texts), tokens.lengths, budget=config.token_budget, world=1)
    model = TextEncoder(config, path, tune=True)
    torch.set_num_threads(1)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    vectors = encode_share(model, tokens, plan, 0, torch.device("cpu"))
    torch.logsumexp(vectors @ vectors.T, 1).sum().backward()
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    took = time.perf_counter() - begin
    print(f"| {num_texts} | {'on' if caching else 'off'} | {len(plan.widths)} | {megabytes:.0f} MB | {took:.1f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=EncoderConfig().name, help="name or folder of a text encoder")
    parser.add_argument("--one", nargs=2, metavar=("TEXTS", "CACHING"), help="measure one line in this process")
    args = parser.parse_args()
    if args.one:
        measure(int(args.one[0]), args.one[1] == "on", args.encoder)
        return
    print("| texts | gradient caching | passes | memory | time |\n| --- | --- | --- | --- | --- |", flush=True)
    # Freed blocks go back to the system at once, so that the peak is what was in use.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    for caching in ("off", "on"):
        for num_texts in ("32", "128", "512"):
            command = [sys.executable, __file__, "--encoder", args.encoder, "--one", num_texts, caching]
            subprocess.run(command, env=env, check=True)


if __name__ == "__main__":
    main()
