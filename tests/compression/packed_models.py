"""Tiny models, quantized and packed, beside the same model dequantized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_models import KINDS, inputs_for, quantize

from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.readings.partition import claimed
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.candidates import TensorChoice
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.applied import Applied

WINDOWS = inputs_for("llama")["input_ids"]


def saved(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.bfloat16, **config: Any) -> Path:
    """A tiny model whose inner sizes are multiples of 32, as blocks of 32 need."""
    import transformers

    name, config_name, sizes = KINDS[kind]
    torch.manual_seed(0)
    given = {**sizes, "intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2, **config}
    model = getattr(transformers, name)(getattr(transformers, config_name)(**given))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
    model.to(dtype).save_pretrained(folder)
    return folder


def plan_for(folder: Path, *formats: str, also: tuple[str, ...] = (), operator: str = "rtn") -> Plan:
    """One format everywhere; of several, one after the other, fused layers together."""
    from tailwise.audits.run import audit

    found = audit(folder)
    asked = {"bits": None, "allocator": "uniform", "operator": operator, "choice": TensorChoice(also=also)}
    plan = plan_quantize(found, QuantizeRequest(formats=formats[:1], **asked))
    if len(formats) == 1:
        return plan
    groups = [
        ("w1", "w2", "w3"),
        ("q_proj", "k_proj", "v_proj", "attn_q", "attn_k", "attn_v"), ("o_proj",), ("gate_proj", "up_proj"),
        ("down_proj",),
    ]  # fmt: skip
    place = {end: number for number, ends in enumerate(groups) for end in ends}
    decisions = tuple(d.but(format=formats[place[d.tensor.split(".")[-2]] % len(formats)]) for d in plan)
    return plan.replace(decisions=decisions)


@dataclass
class Both:
    """The same plan applied twice."""

    plan: Plan
    dense: Path
    packed: Path
    done: Applied


def mixtral(folder: Path) -> Path:
    """A model with experts, each stored by itself."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 64, "vocab_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def both(source: Path, plan: Plan, layout: str, tmp: Path, **options: Any) -> Both:
    dense, packed = tmp / "dense", tmp / "packed"
    quantize(plan, source, dense, ApplyOptions(**options))
    done = quantize(plan, source, packed, ApplyOptions(packed=layout, **options))
    return Both(plan, dense, packed, done)


def logits(folder: Path, **how: Any) -> torch.Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **how)
    with torch.no_grad():
        return model(input_ids=WINDOWS).logits.float()


def values(folder: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(folder) as checkpoint:
        real = claimed(checkpoint)
        return {name: real.read(name).clone() for name in real.tensors}
