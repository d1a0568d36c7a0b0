"""A small Llama with twelve blocks, and plans that give its layers chosen formats."""

from __future__ import annotations

from tailwise.compression.plans.decision import entry
from tailwise.compression.plans.plan import Plan

LLAMA = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
MLP = {"gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128)}
ROLES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_o", "gate_proj": "mlp_gate",
         "up_proj": "mlp_up", "down_proj": "mlp_down"}  # fmt: skip


def llama():
    """Random weights on the CPU, bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(num_hidden_layers=12, vocab_size=64, max_position_embeddings=32, tie_word_embeddings=False,
                         **sizes)  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16)


def llama_plan(*formats: str, operator: str = "rtn", **settings) -> Plan:
    """Block n has the format n modulo their number; None leaves its layers out of the plan."""
    entries = []
    for block in range(12):
        chosen = formats[block % len(formats)]
        for name, shape in {**LLAMA, **MLP}.items():
            module = f"model.layers.{block}.{'self_attn' if name in LLAMA else 'mlp'}.{name}"
            entries.append(entry(f"{module}.weight", module, ROLES[name], block, shape[0] * shape[1], format=chosen,
                                    shape=shape, reason="made"))  # fmt: skip
    return Plan("quantize", operator, "made", "a/model", "", {}, tuple(entries), settings)


def without_blocks(plan: Plan, *blocks: int) -> Plan:
    return plan.replace(decisions=tuple(item for item in plan if item.block not in blocks))
