"""`python -m ctxrec.plan --events 1e10 --items 1e8 --users 1e9 --encoder 12,768,30522`: plan a training ahead."""

from __future__ import annotations

import json

from ctxrec.core import cli
from ctxrec.training.capacity_plan import Hardware, Work, plan, report
from ctxrec.training.memory_model import Encoder


def main() -> None:
    """Read sizes, hardware and options, and print what the training needs."""
    parser = cli.parser("ctxrec.plan", "Memory, time, network and storage of a training, and what to set for it.")
    for name in ("events", "items", "users"):
        parser.add_argument(f"--{name}", type=float, required=True, help=f"number of {name}, as in 1e8")
    parser.add_argument("--encoder", required=True, help="a model's folder, or layers,hidden,vocab")
    parser.add_argument(
        "--tokens-per-item", type=float, default=Work.tokens_per_item, help="tokens of an item's text, on average"
    )
    parser.add_argument("--gpus", type=int, default=Hardware.gpus)
    for name in ("gpu_memory_gb", "tflops", "utilisation", "network_gbit"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Hardware, name))
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args()
    work = Work(int(args.events), int(args.items), int(args.users), int(args.tokens_per_item))
    hardware = Hardware(args.gpus, args.gpu_memory_gb, args.tflops, args.utilisation, args.network_gbit)
    made = plan(work, Encoder.of(args.encoder), hardware, cli.config_from(args))
    print(json.dumps(made, indent=1) if args.json else report(made))


if __name__ == "__main__":
    cli.run(main)
