"""What each economy of the encoder saves: events a second of the encoder's phase, and its share of the machine's peak.

    python tests/bench/encoder_economy.py --data DATA [--encoder FOLDER] [--steps 6] [--parts 1] [--peer PYTHON --minutes 4]

Each row adds one economy to those above it and runs the same steps of the training stream: forward, backward and update
of adapters and towers, in one process without Ray. The first row encodes every slot of every history and every target
anew, as fine-tuning is done where items are not told apart; where its graph does not fit memory, `--parts` takes its
histories in so many parts, whose gradients add up. FLOPs are counted (torch's counter), not estimated; the
peak is that of a float32 matrix product of 2048 x 2048 on the same threads.

With `--peer`, an interpreter that has sentence-transformers (see `encoder_peers.py`), its trainer runs for some minutes
on the same data and threads, then a real `ctxrec.train` at its defaults, and a second table says when each of the two
had which validation NDCG@10.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from train_log import train_log

from ctxrec.core import storage
from ctxrec.core.config import Config, load_config
from ctxrec.data.batching import Batch, Batcher
from ctxrec.data.features import item_features
from ctxrec.data.log_statistics import LogScan, scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.cache import Place, with_states
from ctxrec.encoder.encode_plan import EncodePlan, Tokens, plan_encoding, tokenise
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import TextTable, encode_catalogue, has_text, make_text_table
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.network import EncodeInputs, LossInputs, Network
from ctxrec.model.two_tower import Towers
from ctxrec.training.window_sampler import Step, TrainStream

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Way:
    """One way to encode a step's items."""

    name: str
    every_slot: bool = False
    sort: bool = True  # passes of texts of like length, within the token budget
    fresh: int = 0  # items with gradient a step; 0 = all
    top_layers: int = 0  # 0 = adapters in all layers
    cut: bool = False  # states below them from disk


WAYS = [
    Way("every slot anew, padded to the longest", every_slot=True, sort=False),
    Way("+ each item once a step", sort=False),
    Way("+ passes of like length"),
    Way("+ 128 items fresh, others from the table", fresh=128),
    Way("+ adapters in the top 2 layers", fresh=128, top_layers=2),
    Way("+ states below them from disk", fresh=128, top_layers=2, cut=True),
]


@dataclass
class Material:
    """What all ways share."""

    config: Config
    path: str
    data: PreparedData
    log: LogScan
    batcher: Batcher
    shape: ModelShape
    items: ItemTensors
    tokens: Tokens
    present: np.ndarray
    text: TextTable

    def steps_in(self, parts: int) -> TrainStream:
        """The same steps, each in so many micro-batches."""
        size = self.config.train.global_batch_size
        return TrainStream(
            self.data, self.log, self.batcher, global_batch_size=size, micro_batch_size=-(-size // parts), seed=0,
            rank=0, world=1,
        )  # fmt: skip


def gather(data_path: str, config: Config) -> Material:
    data = PreparedData.open(data_path)
    catalogue = item_features(data.items, data.features)
    path = resolve_encoder(config.encoder.name, storage.cache_dir())
    frozen = TextEncoder(config.encoder, path, tune=False).eval()
    text = make_text_table(*encode_catalogue(frozen, path, catalogue.texts, config.encoder))
    shape = ModelShape.of(config.model, data.features, num_items=len(catalogue), text_width=frozen.width)
    batcher = Batcher(data.features, history=config.model.history, kinds=data.kinds)
    log = scan_log(data, history=config.model.history)
    return Material(
        config=config,
        path=path,
        data=data,
        log=log,
        batcher=batcher,
        shape=shape,
        items=ItemTensors.of(catalogue, shape, trained=log.train.trained_I),
        tokens=tokenise(path, catalogue.texts, max_tokens=config.encoder.max_tokens),
        present=has_text(catalogue.texts),
        text=text,
    )


def slots_of(batch: Batch) -> np.ndarray:
    """Item of every slot of the histories, and of every target that is not the next slot's item."""
    inside = torch.arange(batch.items_BL.shape[1]) < batch.lengths_B[:, None]
    last = batch.targets_BS.gather(1, batch.lengths_B[:, None]).squeeze(1)
    return torch.cat([batch.items_BL[inside], last]).numpy()


def plan_of(way: Way, material: Material, step: Step, part: int, seed: int) -> EncodePlan:
    which = slots_of(step.micro_batches[part]) if way.every_slot else step.distinct_items[part]
    which = which[material.present[which]].astype(np.int64)
    if way.fresh and len(which) > way.fresh:
        which = np.random.default_rng(seed).choice(which, way.fresh, replace=False)
    lengths, budget = material.tokens.lengths, material.config.encoder.token_budget
    if way.sort:
        return plan_encoding(which, lengths, budget=budget, world=1)
    width = int(lengths[which].max())
    bounds = np.append(np.arange(0, len(which), max(budget // width, 1)), len(which))
    padding = 1 - lengths[which].sum() / (len(which) * width)
    return EncodePlan(len(which), which, bounds, np.full(len(bounds) - 1, width), 1, float(padding))


def measure(way: Way, material: Material, num_steps: int, parts: int = 1) -> dict[str, float]:
    """Seconds, events and FLOPs of some steps, each in so many parts, after one that does not count."""
    config = replace(material.config.encoder, top_layers=way.top_layers)
    tokens = material.tokens
    if way.cut:
        tokens = with_states(tokens, material.present, material.path, config, Place(0, 1, 0, 1, CPU))
    encoder = TextEncoder(config, material.path, tune=True, cut=way.cut)
    torch.manual_seed(0)
    network = Network(Towers(material.config.model, material.shape, temperature=0.07), encoder).train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    text = TextTable(**vars(material.text) | {"vectors_IH": material.text.vectors_IH.clone()})
    seconds, events, padding, flops = 0.0, 0.0, [], 0
    for number, step in enumerate(itertools.islice(material.steps_in(parts).epoch(0), num_steps + 2)):
        plans = [plan_of(way, material, step, part, number) for part in range(parts)]
        # Counting costs time, so its step does not count.
        counting = FlopCounterMode(display=False) if number == 1 else None
        begin = time.perf_counter()
        if counting is not None:
            counting.__enter__()
        for batch, plan in zip(step.micro_batches, plans, strict=True):
            fresh = EncodeInputs(tokens, plan, rank=0, device=CPU)
            loss = network(LossInputs(material.items, text, batch, "softmax", fresh=fresh))
            (loss / parts).backward()
        optimizer.step()
        optimizer.zero_grad()
        if counting is not None:
            counting.__exit__(None, None, None)
            flops = counting.get_total_flops()
        elif number > 1:
            seconds += time.perf_counter() - begin
            events += sum(float((batch.weights_BS != 0).sum()) for batch in step.micro_batches)
            padding += [plan.padding for plan in plans]
    return {
        "events_per_s": events / seconds,
        "step_s": seconds / num_steps,
        "padding": float(np.mean(padding)),
        "flops": flops,
    }


def peak_flops() -> float:
    """FLOP/s of a float32 matrix product on the present threads: the best of a few."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(8):
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2 * 2048**3 / best


def peer_table(python: str, data: str, encoder: str, minutes: float) -> None:
    """Seconds of training, examples a second and NDCG@10 of sentence-transformers' trainer and of a training of ours."""
    command = [python, str(Path(__file__).with_name("encoder_peers.py")), "sentence-transformers", "--data", data]
    command += ["--encoder", encoder, "--minutes", str(minutes), "--bf16"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    theirs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"system"')]
    rows = [(line["system"], line["seconds"], line["examples_per_s"], line["ndcg@10"]) for line in theirs]
    best = max(line["ndcg@10"] for line in theirs)
    begin = time.perf_counter()
    lines = [line for line in train_log(data, [f"encoder.name={encoder}"]) if "valid_ndcg@10" in line]
    whole = time.perf_counter() - begin
    ahead = [number for number, line in enumerate(lines) if line["valid_ndcg@10"] > best]
    ends = {line["phase"]: number for number, line in enumerate(lines)}  # the last line of each phase
    for number in sorted({*ahead[:1], *ends.values()}):
        line, earlier = lines[number], [end for end in ends.values() if end < number]
        seconds = sum(lines[end]["seconds"] for end in earlier) + line["seconds"]
        rows.append((f"ctxrec, {line['phase']}", seconds, line.get("events_per_s", 0), line["valid_ndcg@10"]))
    print("\n| system | seconds of training | examples/s | validation NDCG@10 |\n| --- | --- | --- | --- |")
    for name, seconds, rate, value in rows:
        print(f"| {name} | {seconds:.0f} | {rate:,.0f} | {value:.4f} |")
    print(f"\nctxrec.train from its start to its bundle: {whole:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that ctxrec.prepare wrote")
    parser.add_argument("--encoder", default="")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--parts", type=int, default=1, help="of a step of the first row")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has sentence-transformers and datasets")
    parser.add_argument("--minutes", type=float, default=4, help="of the peer's training")
    args = parser.parse_args()
    config = load_config(None, [f"encoder.name={args.encoder}"] if args.encoder else [])
    material, peak = gather(args.data, config), peak_flops()
    print(f"peak of a matrix product: {peak / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads\n")
    print(
        "| encoder's phase | events/s | against the first | a step | padding | of the peak |\n| --- | --- | --- | --- | --- | --- |"
    )
    first, flops = 0.0, 0.0
    for way in WAYS:
        found = measure(way, material, 2, args.parts) if way.every_slot else measure(way, material, args.steps)
        flops = found["flops"] or flops
        first = first or found["events_per_s"]
        print(
            f"| {way.name} | {found['events_per_s']:.0f} | {found['events_per_s'] / first:.1f}x | {found['step_s']:.2f} s "
            f"| {found['padding']:.1%} | {flops / found['step_s'] / peak:.0%} |",
            flush=True,
        )
    if args.peer:
        peer_table(args.peer, os.path.abspath(args.data), material.path, args.minutes)


if __name__ == "__main__":
    main()
