"""A tiny model, and plans of every kind for it as version 0.1 wrote them. Run as a program, it writes them anew.

The weights are whole numbers over a power of two, so that they are the same on every machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parents[1] / "data"
PLANS, MADE = HERE / "plans_of_0_1.zip", HERE / "plans_of_0_1_made.json"
MODEL = "tiny"
VOCABULARY, WIDTH, WINDOW = 64, 16, 24
#: Projections of each tensor that stand for its values where arithmetic differs between machines.
_SIGNS = 4


def write_model(folder: Path) -> Path:
    """A Llama of two blocks in float32, with a config."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.copy_(torch.randint(-(1 << 20), 1 << 20, value.shape, generator=generator) / (1 << 21))
    model.save_pretrained(folder)
    return folder


def windows() -> torch.Tensor:
    """Token ids, (12, 24): what calibrates."""
    return torch.randint(0, VOCABULARY, (12, WINDOW), generator=torch.Generator().manual_seed(1))


def tokens() -> Any:
    """A run of ids, (1152,), that searches draw their windows from."""
    return torch.randint(0, VOCABULARY, (48 * WINDOW,), generator=torch.Generator().manual_seed(2)).numpy()


def audited(folder: Path) -> Any:
    from tailwise.audits.run import audit

    return audit(str(folder), estimator="peak", use_cache=False)


def requests() -> dict[str, tuple[str, Any, str]]:
    """Name → (prune or quantize, request, allocator of the command)."""
    from tailwise.compression.making.request import QuantizeRequest, Request

    found: dict[str, tuple[str, Any, str]] = {}
    for name in ("uniform", "depth", "alpha", "alpha-role", "entropy", "owl", "dlp", "sensitivity"):
        found[f"prune-{name}"] = ("prune", Request(0.6, name), name)
    mapped = {"mapping": "mixed", "tau": 0.4, "reverse": True}
    found["prune-alpha-mixed"] = ("prune", Request(0.6, "alpha", settings=mapped), "alpha")
    weights = {"weights": {"alpha": 1.0, "depth": -0.5}}
    found["prune-blend"] = ("prune", Request(0.6, "blend", settings=weights), "blend")
    for operator in ("wanda", "sparsegpt", "low_rank", "structured"):
        allocator = "depth" if operator != "structured" else "uniform"
        found[f"prune-{operator}"] = ("prune", Request(0.4, allocator, operator), allocator)
    found["prune-2of4"] = ("prune", Request(None, "uniform", "wanda", "2:4"), "uniform")
    found["prune-Nof8"] = ("prune", Request(0.55, "depth", "sparsegpt", "N:8"), "depth")
    formats = ("int3-g16", "int4-g16", "int8-channel")
    for name in ("uniform", "depth", "alpha", "alphaq", "outputs", "sensitivity"):
        found[f"quantize-{name}"] = ("quantize", QuantizeRequest(5.5, formats=formats, allocator=name), name)
    ratios = {"mxfp4_ratio": 0.25, "bf16_ratio": 0.25}
    found["quantize-ratios"] = ("quantize", QuantizeRequest(allocator="alpha", settings=ratios), "alpha")
    found["quantize-gptq"] = ("quantize", QuantizeRequest(5.5, formats=formats, operator="gptq"), "uniform")
    ordered = QuantizeRequest(formats=("int4-g16",), operator="gptq", act_order=True)
    found["quantize-gptq-ordered"] = ("quantize", ordered, "uniform")
    found["quantize-cast"] = ("quantize", QuantizeRequest(formats=("fp8_e4m3",)), "uniform")
    found["quantize-blocks"] = ("quantize", QuantizeRequest(formats=("q8_0",)), "uniform")
    return found


def planned_anew(audit: Any) -> Iterator[tuple[str, Any]]:
    """Every plan that is asked for by a request, by today's code."""
    from dataclasses import replace

    from tailwise.compression.trying.planned import planned
    from tailwise.compression.trying.stage import StageOptions

    text = StageOptions(tokens(), samples=8, window=WINDOW, search_windows=4, guard_windows=8)
    for name, (_, request, allocator) in requests().items():
        read = text if allocator in ("owl", "dlp", "sensitivity", "outputs") else None
        bare = replace(request, allocator="uniform") if read is not None else request
        made = planned(audit, bare, allocator=allocator, text=read)
        yield name, made.replace(model=MODEL)


def joined(plans: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Plans that are made of others."""
    from tailwise.compression.plans.combined import combined
    from tailwise.compression.shrinking.blocks_dropped import named_blocks, without_blocks

    yield "both-magnitude-rtn", combined(plans["prune-depth"], plans["quantize-alpha"])
    yield "both-wanda-gptq", combined(plans["prune-2of4"], plans["quantize-gptq"])
    yield "drop", without_blocks(plans["prune-structured"], named_blocks([1]))


#: Name of a way to apply → (plan, whether it is calibrated, other options).
APPLIED: dict[str, tuple[str, bool, dict[str, Any]]] = {
    **{name: (name, False, {}) for name in (
        "prune-alpha", "prune-owl", "prune-sensitivity", "prune-structured", "prune-low_rank", "drop",
        "quantize-uniform", "quantize-alpha", "quantize-sensitivity", "quantize-ratios", "quantize-cast",
        "quantize-blocks", "both-magnitude-rtn")},
    **{name: (name, True, {}) for name in (
        "prune-wanda", "prune-sparsegpt", "prune-2of4", "prune-Nof8", "quantize-gptq", "quantize-gptq-ordered",
        "both-wanda-gptq")},
    "prune-low_rank whitened": ("prune-low_rank", True, {}),
    "prune-low_rank factored": ("prune-low_rank", False, {"factored": True}),
    "prune-low_rank factored whitened": ("prune-low_rank", True, {"factored": True}),
    "prune-structured calibrated": ("prune-structured", True, {"multiple": 4}),
    "quantize-gptq packed": ("quantize-gptq", True, {"packed": "compressed-tensors"}),
}  # fmt: skip
#: Those whose tensors are the same to the bit on every machine.
EXACT = frozenset(name for name, (plan, calibrated, _) in APPLIED.items()
                  if not calibrated and "low_rank" not in plan)  # fmt: skip


def options_of(name: str) -> Any:
    from tailwise.compression.applying.apply_options import ApplyOptions

    _, calibrated, more = APPLIED[name]
    return ApplyOptions(calibration=windows() if calibrated else None, batch=4, **more)


def made_by(folder: Path) -> dict[str, Any]:
    """What applying gave: a digest of every tensor's bytes, and projections of it."""
    from tailwise.checkpoints.open import open_checkpoint

    state, found = hashlib.sha256(), {}
    with open_checkpoint(folder) as checkpoint:
        for name in sorted(checkpoint.tensors):
            value = checkpoint.read(name).contiguous()
            state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            state.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
            if value.is_floating_point() and value.ndim > 1:
                found[name] = projected(value.double().reshape(-1))
    return {"digest": state.hexdigest(), "projections": found}


def projected(values: torch.Tensor) -> list[float]:
    """The norm, and dot products with vectors of signs."""
    generator = torch.Generator().manual_seed(len(values))
    signs = torch.randint(0, 2, (_SIGNS, len(values)), generator=generator).double() * 2 - 1
    return [float(f"{value:.7g}") for value in (float(values.norm()), *(signs @ values).tolist())]


def write() -> None:
    """Write the plans, and what applying them gives."""
    from tailwise.compression.applying.apply import apply
    from tailwise.compression.plans.files import to_text

    with tempfile.TemporaryDirectory() as place:
        model = write_model(Path(place) / "model")
        plans = dict(planned_anew(audited(model)))
        plans |= dict(joined(plans))
        made = {}
        for name, (plan, _, _) in APPLIED.items():
            apply(plans[plan], model, Path(place) / name, options=options_of(name))
            made[name] = made_by(Path(place) / name)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, plan in plans.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.json", (1980, 1, 1, 0, 0, 0)), to_text(plan),
                             zipfile.ZIP_DEFLATED, 9)  # fmt: skip
    PLANS.write_bytes(held.getvalue())
    MADE.write_text(json.dumps(made, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    write()
