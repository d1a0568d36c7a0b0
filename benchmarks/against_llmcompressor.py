"""Masks of wanda and sparsegpt beside those of llm-compressor, on one model and the same windows.

    python benchmarks/against_llmcompressor.py --python /path/of/an/environment/with/llmcompressor/bin/python

llm-compressor pins other versions of its dependencies, so it runs in an environment of its own. The model is
widened to float32, so that nothing is rounded on the way. Written to stdout: the share of entries on which both masks
agree, and seconds.

`same inputs`: each layer is given what llm-compressor's own pruned blocks give it, so this compares the operators;
`worst` is the tensor with the least agreement. `end to end`: each tool goes its own way. SparseGPT then magnifies
the rounding of float32 from block to block, since one entry that goes changes the others of its row; `itself` is
tailwise against tailwise with batches of 8 windows and not 1, which is the noise that nothing can agree beyond.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tailwise.audits.run import audit
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.plans.combined import how_of
from tailwise.compression.plans.plan import Plan
from tailwise.models.activations import Activations
from tailwise.models.walking.block_inputs import Block
from tailwise.models.walking.calibrate import sample_windows
from tailwise.models.walking.hosts import load_host
from tailwise.models.walking.statistics import of_group
from tailwise.models.walking.walk import walk_blocks

ROOT = Path(__file__).resolve().parents[1]

#: Runs in llm-compressor's environment. Its N:M names what goes, ours what is kept.
THEIRS = """
import json, sys
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ask = json.loads(sys.argv[1])
ids = load_file(ask["windows"])["input_ids"].tolist()
data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
model = AutoModelForCausalLM.from_pretrained(ask["model"], dtype=torch.float32)
kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[ask["operator"]]
recipe = kind(sparsity=ask["sparsity"], mask_structure=ask["structure"], targets=["Linear"], ignore=["re:.*lm_head"])
oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(ids), max_seq_length=len(ids[0]))
save_file({name: value.contiguous() for name, value in model.state_dict().items()}, ask["out"])
"""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = _widened(options.model, place / "float32")
        windows = _windows(options, place / "windows.safetensors")
        measured = audit(model)
        print("| operator | pattern | sparsity | same inputs | worst | end to end | block 0 | itself | theirs | ours |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for operator in ("wanda", "sparsegpt"):
            for pattern in ("unstructured", "2:4", "3:8"):
                sparsity = options.sparsity if pattern == "unstructured" else None
                plan = plan_prune(measured, Request(sparsity, operator=operator, pattern=pattern))
                print(_row(options.python, model, plan, windows), flush=True)


def _row(python: str, model: Path, plan: Plan, windows: torch.Tensor) -> str:
    clock = time.perf_counter()
    theirs = _theirs(python, model, plan, model.parent)
    middle = time.perf_counter()
    ours = _ours(model, plan, windows, batch=1)
    end = time.perf_counter()
    again = _ours(model, plan, windows, batch=8)
    same = _with_same_inputs(model, plan, windows, theirs)
    first = plan.replace(decisions=tuple(item for item in plan if item.block == 0))
    whole, start, own = _agree(ours, theirs, plan), _agree(ours, theirs, first), _agree(ours, again, plan)
    size = sum(item.n_params for item in plan)
    mean = sum(same[item.tensor] * item.n_params for item in plan) / size
    return (
        f"| {plan.operator} | {plan.decisions[0].pattern} | {plan.sparsity:.3f} "
        f"| {mean:.4%} | {min(same.values()):.4%} "
        f"| {whole:.4%} | {start:.4%} | {own:.4%} | {middle - clock:.1f} s | {end - middle:.1f} s |"
    )


def _ours(model: Path, plan: Plan, windows: torch.Tensor, batch: int) -> dict[str, torch.Tensor]:
    target = model.parent / "ours"
    apply(plan, model, target, options=ApplyOptions(calibration=windows, batch=batch, force=True))
    return load_file(target / "model.safetensors")


def _agree(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], plan: Plan) -> float:
    same = sum(int(((one[item.tensor] != 0) == (other[item.tensor] != 0)).sum()) for item in plan)
    return same / sum(item.n_params for item in plan)


def _with_same_inputs(
    model: Path, plan: Plan, windows: torch.Tensor, theirs: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Tensor → share of agreement where every block sees the blocks before it as llm-compressor left them."""
    visitor = _Beside(plan, theirs)
    with open_checkpoint(model) as checkpoint:
        walk_blocks(load_host(checkpoint, model).home, windows, visitor, batch=1)
    return visitor.agree


class _Beside:
    def __init__(self, plan: Plan, theirs: dict[str, torch.Tensor]) -> None:
        self.decisions = {item.tensor.removesuffix(".weight"): item for item in plan}
        self.how, self.theirs = how_of(plan), theirs
        self.agree: dict[str, float] = {}

    def needs(self, block: Block) -> dict[str, str]:
        return {name: self.how.needs for name in block.layers() if name in self.decisions}

    def visit(self, block: Block, found: dict[str, Activations]) -> None:
        layers = block.layers()
        for name, seen in found.items():
            decision = self.decisions[name]
            kept = decision.treatment.do(layers[name].weight.detach(), self.how, of_group(seen, 0)).weight != 0
            wanted = self.theirs[decision.tensor]
            self.agree[decision.tensor] = float((kept == (wanted != 0)).double().mean())
            layers[name].weight.data.copy_(wanted)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter with llmcompressor")
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "pycode-8m")
    parser.add_argument("--text", type=Path, default=ROOT / "src", help="calibration text")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--sparsity", type=float, default=0.6)
    return parser.parse_args()


def _widened(source: Path, folder: Path) -> Path:
    """A copy of the model in float32."""
    folder.mkdir()
    for path in source.glob("*.json"):
        config = json.loads(path.read_text())
        if path.name == "config.json":
            config |= {"dtype": "float32", "torch_dtype": "float32"}
        (folder / path.name).write_text(json.dumps(config))
    tensors = {name: value.float() for name, value in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _windows(options: argparse.Namespace, path: Path) -> torch.Tensor:
    from tailwise.models.evaluation.loading import load_tokenizer
    from tailwise.models.evaluation.tokens import tokens_of

    tokens = tokens_of(str(options.text), load_tokenizer(options.model))
    found = sample_windows(tokens.ids, options.samples, options.window)
    save_file({"input_ids": found}, path)
    return found


def _theirs(python: str, model: Path, plan: Plan, place: Path) -> dict[str, torch.Tensor]:
    pattern = plan.decisions[0].pattern
    structure = "0:0"
    if ":" in pattern:
        kept, group = map(int, pattern.split(":"))
        structure = f"{group - kept}:{group}"
    ask = {"model": str(model), "windows": str(place / "windows.safetensors"), "operator": plan.operator,
           "sparsity": plan.sparsity, "structure": structure, "out": str(place / "theirs.safetensors")}  # fmt: skip
    command = [python, "-c", THEIRS, json.dumps(ask)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    if done.returncode:
        raise SystemExit(f"llm-compressor failed:\n{done.stderr[-3000:]}")
    return load_file(place / "theirs.safetensors")


if __name__ == "__main__":
    main()
