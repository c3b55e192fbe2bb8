"""What a GPU makes of ctxrec, in one table: training, encoding and search, next to the CPU. `make gpu-check`.

    python tests/gpu/gpu_check.py --make DIR            # needs Ray: writes the small log that a check without Ray reads
    python tests/gpu/gpu_check.py [--data DIR] [--small]

It needs PyTorch, transformers, peft, deepspeed and faiss, and no network: encoders have random weights, which take the
same time as trained ones. Without `--data` it makes the log first. Without a GPU it runs on the CPU, and says so; `--small`
is the form that tests run. What a missing package leaves out is a line of the output. The exit status is 1 where the losses
in bfloat16 leave those in float32 on the CPU, or where exact search is not exact.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import numpy as np
import torch
import transformers
from gpu_search import exact_rows, index_rows, texts_a_second

from ctxrec.core.config import IndexConfig, load_config
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.encode_plan import tokenise
from ctxrec.index.faiss_index import num_gpus
from ctxrec.training.capacity_plan import Hardware, Work, load_of
from ctxrec.training.memory_model import Encoder, per_gpu

WIDTHS = {"MiniLM (23M)": (6, 384), "0.3B": (24, 1024)}  # layers and width
LARGE = "0.3B"  # takes a CPU an hour
SMALL = {"two layers of 64": (2, 64)}
VOCABULARY = 30_522
LOSSES_APART = 0.05  # of bfloat16 and float32, at most, as a share of the loss
RECALL = 0.999  # of exact search in float32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", metavar="DIR", help="only write the log there, with Ray")
    parser.add_argument("--data", metavar="DIR", help="a log that --make wrote")
    parser.add_argument(
        "--demo", action="store_true", help="run `ctxrec demo` and the bench of the service too, with Ray"
    )
    parser.add_argument("--small", action="store_true", help="sizes for a test on a CPU")
    args = parser.parse_args(argv)
    if args.make:
        make_data(args.make, small=args.small)
        return 0
    with tempfile.TemporaryDirectory(prefix="ctxrec-gpu-check-") as folder:
        data = args.data or make_data(f"{folder}/data", small=args.small)
        status = check(data, folder, small=args.small)
        return status or (whole_chain(folder) if args.demo else 0)


def make_data(folder: str, *, small: bool) -> str:
    """A simulated log with long descriptions, prepared."""
    from ctxrec.core import ray_cluster
    from ctxrec.core.config import Config
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    users, items, events = (150, 120, 3_000) if small else (4_000, 2_000, 100_000)
    sizes = [f"--users={users}", f"--items={items}", f"--events={events}"]
    with tempfile.TemporaryDirectory() as raw:
        command = [sys.executable, "-m", "ctxrec.datasets", "simulate", "--descriptions", "--out", raw, *sizes]
        subprocess.run(command, check=True, cwd=HERE.parents[1], stdout=subprocess.DEVNULL)
        ray_cluster.connect()
        prepare(load_spec(f"{raw}/dataset.toml"), folder, Config())
    return folder


def check(data: str, folder: str, *, small: bool) -> int:
    """Print all tables; 1 where something is wrong, else 0."""
    began, faults = time.perf_counter(), []
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"# GPU check\n\n{machine()}\n")
    if device == "cpu":
        print("There is no GPU here: all rows are of the CPU, and 0.3B is left out.\n")
    prepared = PreparedData.open(data)
    texts = list(prepared.item_texts)
    encoders = {
        name: make_encoder(f"{folder}/{number}", texts, layers=layers, width=width)
        for number, (name, (layers, width)) in enumerate((SMALL if small else WIDTHS).items())
        if device == "cuda" or name != LARGE
    }
    if missing := [name for name in ("deepspeed", "peft") if importlib.util.find_spec(name) is None]:
        print(f"Training is left out, because {' and '.join(missing)} cannot be imported here.\n")
    else:
        faults += training(data, encoders, texts, prepared, folder, device=device, small=small)
    rows = []
    for name, path in encoders.items():
        for where in dict.fromkeys((device, "cpu")) if name != LARGE else (device,):
            some = texts * (1 if small else 5 if where == "cuda" else 1)
            rows.append([name, where, *(f"{rate:,.0f}" for rate in texts_a_second(path, some[:10_000], where))])
    table("Encoding of items", ["encoder", "device", "texts/s", "tokens/s"], rows)
    sizes = [2_000] if small else [100_000, 1_000_000, *([10_000_000] if device == "cuda" else [])]
    rows = list(exact_rows(sizes, device))
    faults += [
        f"exact search of {r[0]} by {r[1]}: recall {r[2]}" for r in rows if "32" in r[1] and float(r[2]) < RECALL
    ]
    table("Exact search, 100 of", ["vectors", "by", "recall", "ms of one query", "ms of 32"], rows)
    head = ["vectors", "index", "recall", "ms of 32", "build, s"]
    table("Indexes of the product", head, index_rows([2_000] if small else [100_000, 1_000_000]))
    if device == "cuda" and not num_gpus(IndexConfig()):
        print("FAISS has no GPU support here, so its indexes ran on the CPU.")
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


def whole_chain(folder: str) -> int:
    """The demo and the bench of the service, which take a GPU where Ray finds one; the first exit status that is not 0."""
    for command in (
        ["-m", "ctxrec.demo", "--out", f"{folder}/demo"],
        ["tests/bench/serve_speed.py", "ctxrec", "ctxrec-direct"],
    ):
        print(f"\n## python {' '.join(command)}\n", flush=True)
        if status := subprocess.run([sys.executable, *command], cwd=HERE.parents[1], check=False).returncode:
            return status
    return 0


def machine() -> str:
    """The hardware and the versions, in a line."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cpus = len(os.sched_getaffinity(0))
    return f"{name}, {cpus} CPU cores ({platform.machine()}), PyTorch {torch.__version__}, Python {platform.python_version()}"


def make_encoder(folder: str, texts: list[str], *, layers: int, width: int) -> str:
    """An encoder of random weights with a word for each token of the texts; returns its folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = dict.fromkeys(word for text in texts for word in text.lower().split())
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *list(words)[: VOCABULARY - 4]]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": max(width // 64, 1)}
    model = BertModel(BertConfig(vocab_size=VOCABULARY, intermediate_size=4 * width, **sizes))
    model.save_pretrained(folder)
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder


def training(
    data: str,
    encoders: dict[str, str],
    texts: list[str],
    prepared: PreparedData,
    folder: str,
    *,
    device: str,
    small: bool,
) -> list[str]:
    """Towers and LoRA by DeepSpeed ZeRO-2 without Ray; the faults that were found."""
    rows, faults = [], []
    batches = (64,) if small else (64, 1024)
    for name, path in encoders.items():
        options = ["train.tower_epochs=1", "train.encoder_epochs=1", "train.refit=false", "train.zero_stage=2"]
        ways = [("bf16", device, batch) for batch in batches]
        if name != LARGE:
            ways.append(("fp32", "cpu", 64))
        losses = {}
        for precision, where, batch in ways:
            set_ = [*options, f"train.precision={precision}", f"train.global_batch_size={batch}"]
            set_.append(f"train.use_gpu={'yes' if where == 'cuda' else 'no'}")
            found = in_a_process({"data": data, "encoder": path, "options": set_}, folder)
            losses[precision, batch] = found["losses"]
            rows += training_rows(name, precision, where, batch, found, planned(path, texts, prepared, set_))
        if ("fp32", 64) in losses:
            apart = max(
                abs(a - b) / abs(b) for a, b in zip(losses["bf16", 64], losses["fp32", 64], strict=True)
            )  # fmt: skip
            print(f"{name}: losses in bfloat16 on {device} are at most {apart:.2%} from those in float32 on the CPU.\n")
            if not apart <= LOSSES_APART:
                faults.append(f"{name}: losses in bfloat16 are {apart:.1%} from float32")
    head = ["encoder", "phase", "in", "on", "batch", "events/s", "tokens/s", "utilisation", "peak MiB", "planned MiB"]
    table("Training, LoRA, ZeRO-2, one worker without Ray", head, rows)
    return faults


def in_a_process(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """What gpu_training.py says of a job."""
    path = Path(folder, "job.json")
    path.write_text(json.dumps(job))
    command = [sys.executable, str(HERE / "gpu_training.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a training failed: {job['options']}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def training_rows(
    name: str, precision: str, where: str, batch: int, found: dict[str, Any], planned_bytes: int
) -> Iterable[list[str]]:
    for phase, figures in found["phases"].items():
        tokens, plan = figures["tokens_per_s"], f"{planned_bytes / 2**20:,.0f}" if where == "cuda" else "-"
        rates = [
            f"{figures['events_per_s']:,.0f}",
            f"{tokens:,.0f}" if tokens else "-",
            f"{figures['utilisation']:.1%}",
        ]
        yield [name, phase, precision, where, f"{batch:,}", *rates, f"{found['peak_bytes'] / 2**20:,.0f}", plan]


def planned(path: str, texts: list[str], prepared: PreparedData, options: list[str]) -> int:
    """Bytes of a GPU that the planner expects of such a training."""
    config = load_config(None, options)
    tokens = round(float(np.mean(tokenise(path, texts, max_tokens=config.encoder.max_tokens).lengths)))
    work = Work(events=1, items=prepared.num_items, users=1, tokens_per_item=tokens)
    load = load_of(work, Hardware(gpus=1), config)
    sizes = {"rank": config.encoder.rank, "top_layers": config.encoder.top_layers}
    return sum(per_gpu(Encoder.of(path), load, tune="lora", stage=2, gpus=1, **sizes).values())


def table(title: str, head: list[str], rows: Iterable[list[str]]) -> None:
    """Print a table in Markdown."""
    print(f"## {title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main())
