"""What zeros buy on a CPU: DeepSparse beside dense ONNX Runtime and dense PyTorch, at 0 to 95 % zeros.

DeepSparse 1.8.0 is the last version that runs (1.9 is an empty farewell) and is no longer maintained. It needs Python
3.11 or older and numpy 1, so it lives in an environment of its own, which runs ONNX Runtime too:

    python3.11 -m venv ENV
    ENV/bin/pip install "deepsparse==1.8.0" "onnxruntime==1.19.2" "onnx<1.15" "numpy<2"
    nice -n -15 python benchmarks/sparse_speed.py --python ENV/bin/python

Two models, float32, 64 rows: an MLP 1024 → 4096 → 1024 with a ReLU, and one Llama-like block of width 1024 (16 heads,
MLP of 2816; q, k, v, o, gate, up, down; no norms, no rotary embedding, no mask, no cache). Random weights, each matrix
pruned by tailwise's magnitude pruner, so the zeros lie where they fall. `half removed` is the structured variant: half
of the neurons and heads are not there, and every matrix is half as large.

Written to stdout, as Markdown: milliseconds a run, median (least) over all rounds, and how many times faster than the
same engine without zeros. In a round the engines take turns in short bursts, each after a warm-up; one runs at a time.
`gain` is ONNX Runtime over DeepSparse on the same weights. Every output is compared with PyTorch's first (`differs`, of
the largest entry); beyond 1e-3 the run stops. On a shared machine trust the ratios only; where schedulers group by
session (autogroup), nice counts inside the session only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from timeit import repeat

import numpy as np
import torch
from torch.nn.functional import linear, silu

from tailwise.compression.operators.operator import Amount
from tailwise.compression.operators.registered import OPERATORS

ROWS, WIDTH, HEAD, WARM_UP = 64, 1024, 64, 5
SPARSITIES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
PUBLISHED = {0.8: "3.06 ×"}
HEADER = """
| zeros | PyTorch ms | | ONNX Runtime ms | | DeepSparse ms | | gain | published¹ | differs |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""
Weights = dict[str, torch.Tensor]  # by name, (out × in)

#: Runs in DeepSparse's environment: builds the graph of each set of weights, then runs engines as it is asked.
#: The block's input is (1, rows, width): DeepSparse gives wrong numbers, silently, for this attention on (rows, width).
WORKER = """
import json, sys, timeit, deepsparse, numpy as np, onnx, onnxruntime
from importlib.metadata import version
from onnx import TensorProto, helper, numpy_helper

def graph(w):
    if "fc1" in w:
        return [("MatMul", "x fc1", "h"), ("Relu", "h", "r"), ("MatMul", "r fc2", "y")]
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [("MatMul", f"x {name}", f"{name}0"), ("Reshape", f"{name}0 split", f"{name}1"),
                  ("Transpose", f"{name}1", f"{name}2", {"perm": order})]
    return nodes + [
        ("MatMul", "q2 k2", "s0"), ("Mul", "s0 scale", "s1"), ("Softmax", "s1", "s2", {"axis": -1}),
        ("MatMul", "s2 v2", "a0"), ("Transpose", "a0", "a1", {"perm": [0, 2, 1, 3]}), ("Reshape", "a1 join", "a2"),
        ("MatMul", "a2 o", "a3"), ("Add", "x a3", "h"), ("MatMul", "h gate", "g0"), ("Sigmoid", "g0", "g1"),
        ("Mul", "g0 g1", "g2"), ("MatMul", "h up", "u"), ("Mul", "g2 u", "m"), ("MatMul", "m down", "d"),
        ("Add", "h d", "y")]

def build(w, x, path):
    nodes = [helper.make_node(op, ins.split(), [out], **dict(*more)) for op, ins, out, *more in graph(w)]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(x.shape)) for n in "xy"]
    values = [numpy_helper.from_array(value, name) for name, value in w.items()]
    made = helper.make_graph(nodes, "g", info[:1], info[1:], values)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)

def open_engines(path, threads, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    dense = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    sparse = deepsparse.compile_model(path, batch_size=len(x), num_cores=threads)
    assert sparse.fraction_of_supported_ops == 1, "DeepSparse does not run the whole graph itself"
    return {"ort": lambda: dense.run(None, {"x": x})[0], "deepsparse": lambda: sparse.run([x])[0]}

print("@" + json.dumps({name: version(name) for name in ("deepsparse", "onnxruntime", "onnx", "numpy")}), flush=True)
for line in sys.stdin:
    ask, found = json.loads(line), []
    if "weights" in ask:
        w, path = dict(np.load(ask["weights"])), ask["weights"] + ".onnx"
        x, engines = w.pop("x"), {}  # the engines before these go first
        build(w, x, path)
        engines = open_engines(path, ask["threads"], x)
        for name, run in engines.items():
            np.save(ask["weights"] + "." + name, run())
    else:
        found = timeit.repeat(engines[ask["engine"]], number=1, repeat=ask["runs"])
    print("@" + json.dumps(found), flush=True)
"""


class Worker:
    """The other environment, one question at a time."""

    def __init__(self, python: str) -> None:
        silent, pipe = os.environ | {"NM_DISABLE_ANALYTICS": "1"}, subprocess.PIPE
        self.process = subprocess.Popen([python, "-c", WORKER], stdin=pipe, stdout=pipe, text=True, env=silent)
        self.versions = self._answer()

    def ask(self, **question: object) -> list[float]:
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("@"):  # the engines print lines of their own
                return json.loads(line[1:])
        raise SystemExit("the other environment failed: see above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter with deepsparse, onnxruntime and onnx")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=30, help="timed runs of an engine in a round")
    options = parser.parse_args()
    worker = Worker(options.python)
    found = [f"{name} {value}" for name, value in ({"torch": torch.__version__} | worker.versions).items()]
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    machine = [f"{os.cpu_count()} cores", f"load {os.getloadavg()[0]:.1f}", torch.backends.cpu.get_cpu_capability()]
    print(processor.split(": ")[1], *machine, *found, sep=", ")
    for model, threads in product(("mlp", "block"), options.threads):
        _table(worker, model, threads, options)
    print("\n¹ Claimed elsewhere, for another machine and a large language model: beside, not to be matched.")


def _table(worker: Worker, model: str, threads: int, options: argparse.Namespace) -> None:
    print(f"\n{model}, threads: {threads}\n{HEADER}")
    dense = None
    for sparsity in (*SPARSITIES, None):
        times, differs = _measure(worker, _weights(model, sparsity), threads, options)
        middle = {engine: median(seen) for engine, seen in times.items()}
        dense = dense or middle
        cells = ["half removed" if sparsity is None else f"{sparsity:.0%}"]
        for engine, seen in times.items():
            cells += [f"{middle[engine]:.2f} ({min(seen):.2f})", f"{dense[engine] / middle[engine]:.2f} ×"]
        cells += [f"{middle['ort'] / middle['deepsparse']:.2f} ×", PUBLISHED.get(sparsity, "–"), f"{differs:.0e}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def _weights(model: str, sparsity: float | None) -> Weights:
    part = 2 if sparsity is None else 1
    inner, heads = (4096 if model == "mlp" else 2816) // part, WIDTH // part
    shapes = {"fc1": (inner, WIDTH), "fc2": (WIDTH, inner)}
    if model == "block":
        shapes = dict.fromkeys("qkv", (heads, WIDTH)) | {"o": (WIDTH, heads)}
        shapes |= {"gate": (inner, WIDTH), "up": (inner, WIDTH), "down": (WIDTH, inner)}
    rng = torch.Generator().manual_seed(0)
    dense = {name: torch.randn(shape, generator=rng) / shape[1] ** 0.5 for name, shape in shapes.items()}
    return {name: OPERATORS["magnitude"](W, Amount(sparsity or 0.0)).weight for name, W in dense.items()}


def _forward(x: torch.Tensor, w: Weights) -> torch.Tensor:
    if "fc1" in w:
        return linear(linear(x, w["fc1"]).relu(), w["fc2"])
    q, k, v = (linear(x, w[name]).unflatten(-1, (-1, HEAD)).transpose(1, 2) for name in "qkv")
    mixed = torch.softmax(q @ k.mT * HEAD**-0.5, -1) @ v
    h = x + linear(mixed.transpose(1, 2).flatten(2), w["o"])
    return h + linear(silu(linear(h, w["gate"])) * linear(h, w["up"]), w["down"])


@torch.inference_mode()
def _measure(worker: Worker, w: Weights, threads: int, options: argparse.Namespace) -> tuple[dict, float]:
    torch.set_num_threads(threads)
    shape, also = (ROWS, WIDTH), {}  # a batch of rows, or one window
    if "fc1" not in w:
        shape, also = (1, ROWS, WIDTH), {"scale": np.float32(HEAD**-0.5), "split": np.int64([1, ROWS, -1, HEAD])}
        also["join"] = np.int64([1, ROWS, len(w["q"])])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    wanted = _forward(x, w)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.npz"
        np.savez(path, x=x.numpy(), **{name: W.T.contiguous().numpy() for name, W in w.items()}, **also)
        worker.ask(weights=path, threads=threads)
        found = [torch.from_numpy(np.load(f"{path}.{engine}.npy")) for engine in ("ort", "deepsparse")]
    differs = max(float((y - wanted).abs().max() / wanted.abs().max()) for y in found)
    if not differs < 1e-3:
        raise SystemExit(f"the engines disagree with PyTorch by {differs:.1e}")
    runners = {"torch": partial(repeat, lambda: _forward(x, w), number=1, repeat=options.runs + WARM_UP)}
    runners |= {name: partial(worker.ask, engine=name, runs=options.runs + WARM_UP) for name in ("ort", "deepsparse")}
    times = {engine: [] for engine in runners}  # ms
    for _ in range(options.rounds):
        for engine, run in runners.items():
            times[engine] += [1e3 * seconds for seconds in run()[WARM_UP:]]
    return times, differs


if __name__ == "__main__":
    main()
