"""Do other tools do what an exported plan says? Each quantizes a small Llama by it, and every layer is held against it.

python benchmarks/export_quantized.py --llmcompressor PYTHON --gptqmodel PYTHON --autoround PYTHON

PYTHON is the interpreter of an environment with that tool; a tool without one is left out. The model has random
weights, twelve blocks, so that block 1 could be taken for block 11, and a tokenizer of the example. Block n has the
format n modulo their number; the last block is not in the plan.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailwise.audits.run import audit
from tailwise.compression.export.exporter import export
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.number_formats.formats import parse_format

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = 12
#: model, exported file, operator, folder for what is written → on stdout "FOUND" and JSON.
LLMCOMPRESSOR = """
import json, sys, torch
from datasets import Dataset
from llmcompressor import oneshot
model, recipe, operator, _ = sys.argv[1:]
torch.manual_seed(0)
ids = torch.randint(0, 4096, (8, 64)).tolist()
data = {"dataset": Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 64] * 8}), "max_seq_length": 64,
        "num_calibration_samples": 8} if operator == "gptq" else {}
done = oneshot(model=model, recipe=recipe, **data)
found = {}
for name, module in done.named_modules():
    if getattr(module, "quantization_scheme", None):
        args, scales = module.quantization_scheme.weights, module.weight_scale
        found[name] = [args.num_bits, args.type, args.symmetric, args.strategy, args.group_size, list(scales.shape)]
print("FOUND" + json.dumps(found))
"""
GPTQMODEL = """
import json, os, sys, torch
os.cpu_count = lambda: 4  # GPTQModel 7.6 does not start on two cores
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.quantization.config import RTNConfig
from safetensors import safe_open
model, config, operator, out = sys.argv[1:]
made = GPTQModel.load(model, (RTNConfig if operator == "rtn" else QuantizeConfig)(**json.load(open(config))))
ids = torch.randint(0, 4096, (16, 64)).tolist()
made.quantize(None if operator == "rtn" else [{"input_ids": one, "attention_mask": [1] * 64} for one in ids])
made.save(out)
with safe_open(out + "/model.safetensors", "pt") as file:
    shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
names = [name.removesuffix(".qweight") for name in shapes if name.endswith(".qweight")]
print("FOUND" + json.dumps({name: [shapes[name + ".qweight"], shapes[name + ".scales"]] for name in names}))
"""
AUTOROUND = """
import json, sys
from auto_round import AutoRound
model, config, _, _ = sys.argv[1:]
done, _ = AutoRound(model, iters=0, disable_opt_rtn=True, device_map="cpu", **json.load(open(config))).quantize()
found = {}
for name, module in done.named_modules():
    if getattr(module, "bits", 16) < 16:
        found[name] = [module.bits, module.group_size, module.sym, module.data_type, module.act_bits]
print("FOUND" + json.dumps(found))
"""


def of_llmcompressor(item: Decision) -> list[Any]:
    from tailwise.compression.export.compressed_tensors import scheme

    weights = scheme(parse_format(item.format or ""), item)["weights"]
    rows, cols = item.shape
    strategy, group = weights["strategy"], weights.get("group_size")
    scales = [1] if strategy == "tensor" else [rows, cols // group if group else 1]
    return [weights["num_bits"], weights["type"], weights["symmetric"], strategy, group, scales]


def of_gptqmodel(item: Decision) -> list[Any]:
    (rows, cols), chosen = item.shape, parse_format(item.format or "")
    return [[cols * int(chosen.element_bits) // 32, rows], [cols // (chosen.group_size or cols), rows]]


def of_autoround(item: Decision) -> list[Any]:
    chosen = parse_format(item.format or "")
    whole = {"fp8_e4m3-tensor": 0}.get(chosen.name, -1)
    kind = {"mx": "mx_fp", "nv": "nv_fp", "fp": "fp"}.get(chosen.name[:2], "int")
    return [int(chosen.element_bits), chosen.group_size or whole, "asym" not in chosen.name, kind, 16]


#: tool → (its script, what it should find of a layer, suffix, formats, operators)
TOOLS: dict[str, tuple[str, Callable[[Decision], list[Any]], str, tuple[str, ...], tuple[str, ...]]] = {
    "llmcompressor": (
        LLMCOMPRESSOR,
        of_llmcompressor,
        ".yaml",
        ("int4-g32", "int4-asym-g32", "int8", "int3-g64", "fp8_e4m3", "fp8_e4m3-tensor", "mxfp4", "mxfp8", "nvfp4",
         "bf16"),
        ("rtn", "gptq"),
    ),
    "gptqmodel": (
        GPTQMODEL,
        of_gptqmodel,
        ".json",
        ("int4-g32", "int3-g32", "int8", "bf16", "int4-asym-g64", "int2-g32"),
        ("rtn", "gptq"),
    ),
    "autoround": (
        AUTOROUND,
        of_autoround,
        ".json",
        ("int4-g32", "int4-asym-g64", "int8", "mxfp4", "mxfp8", "nvfp4", "fp8_e4m3", "fp8_e4m3-tensor", "bf16"),
        ("rtn",),
    ),
}  # fmt: skip


def model_at(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=BLOCKS, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=4096, max_position_embeddings=64)  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in (ROOT / "examples" / "pycode-8m").glob("tokenizer*"):
        shutil.copy(file, folder)


def plan_with(base: Plan, formats: tuple[str, ...], operator: str) -> Plan:
    chosen = [item for item in base if item.block is not None and item.block < BLOCKS - 1]
    entries = (item.but(format=formats[(item.block or 0) % len(formats)]) for item in chosen)
    return base.replace(operator=operator, decisions=tuple(entries))


def run(python: str, script: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    # Some write logs where they stand. All are to find their own packages, and as many threads as they like.
    ours = ("PYTHONPATH", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [python, "-c", script, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )
    if done.returncode:
        raise SystemExit(f"refused:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.rpartition("FOUND")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for tool in TOOLS:
        parser.add_argument(f"--{tool}", metavar="PYTHON")
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_at(folder / "model")
        base = plan_quantize(audit(folder / "model"), QuantizeRequest(formats=("bf16",)))
        for tool, (script, expected, suffix, formats, operators) in TOOLS.items():
            for operator in operators if options[tool] else ():
                plan = plan_with(base, formats, operator)
                path, *_ = export(plan, tool, folder / f"{tool}-{operator}{suffix}")
                out = str(folder / f"{tool}-{operator}")
                found = run(options[tool], script, [str(folder / "model"), str(path), operator, out], folder)
                wanted = {item.tensor.removesuffix(".weight"): expected(item) for item in plan if item.format != "bf16"}
                wrong = [f"{layer}: {found.get(layer)} and not {wanted.get(layer)}" for layer in {*found, *wanted}
                         if found.get(layer) != wanted.get(layer)]  # fmt: skip
                if wrong:
                    raise SystemExit(f"{tool}, {operator}: {len(wrong)} layers differ\n" + "\n".join(sorted(wrong)[:5]))
                count = len(set(formats) - {"bf16"})
                print(f"{tool}, {operator}: {len(found)} layers in {count} formats as planned, all else as it was")


if __name__ == "__main__":
    main()
