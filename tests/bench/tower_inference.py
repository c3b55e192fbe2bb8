"""Reading histories in lighter ways: fp32 as it is, compiled, by ONNX Runtime, in bf16; one thread.

    python tests/bench/tower_inference.py [--dim 128 --layers 2 --history 50 --batches 1 32]

The default backbone with random weights reads full histories and gives the state of the last slot. Ways whose packages
are missing (`pip install onnx onnxscript onnxruntime`) are left out. Prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec

import torch

from ctxrec.core.config import load_config
from ctxrec.model.backbones import make_backbone
from ctxrec.model.backbones.base import Backbone, InBf16

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Read = Callable[[Inputs], torch.Tensor]
REPEATS = 200


def ways(backbone: Backbone, examples: Iterable[Inputs]) -> Iterator[tuple[str, Read]]:
    yield "fp32", lambda inputs: backbone(*inputs)
    compiled = torch.compile(backbone, dynamic=True)
    yield "`torch.compile`", lambda inputs: compiled(*inputs)
    if all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        sessions = {len(inputs[0]): onnx_session(backbone, inputs) for inputs in examples}

        def by_onnx(inputs: Inputs) -> torch.Tensor:
            session = sessions[len(inputs[0])]
            names = [given.name for given in session.get_inputs()]
            return torch.from_numpy(session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0])

        yield "ONNX Runtime", by_onnx
    lighter = InBf16(copy.deepcopy(backbone))
    yield "bf16", lambda inputs: lighter(*inputs)


def onnx_session(backbone: Backbone, example: Inputs):
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(backbone, example, dynamo=True, verbose=False).save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])


def milliseconds(read: Read, inputs: Inputs) -> float:
    for _ in range(10):
        read(inputs)
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        read(inputs)
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options = [f"model.dim={args.dim}", "model.heads=4", f"model.layers={args.layers}", f"model.history={args.history}"]
    backbone = make_backbone(load_config(None, options).model).eval()
    slots = args.history + 1

    def inputs(rows: int) -> Inputs:
        times = torch.arange(rows * slots).view(rows, slots)
        return torch.randn(rows, slots, args.dim), times, torch.full((rows,), args.history)

    given = {rows: inputs(rows) for rows in args.batches}
    head = [f"ms a batch of {rows}" for rows in args.batches]
    print(f"| reading by | {' | '.join(head)} | largest difference |\n|---|{'---|' * len(head)}---|")
    with torch.no_grad():
        expected = {rows: backbone(*inputs) for rows, inputs in given.items()}
        for name, read in ways(backbone, given.values()):
            off = max(float((read(given[rows]) - states).abs().max()) for rows, states in expected.items())
            cells = [f"{milliseconds(read, given[rows]):.2f}" for rows in args.batches]
            print(f"| {name} | {' | '.join(cells)} | {off:.0e} |", flush=True)


if __name__ == "__main__":
    main()
