"""The order in which people read layers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.audits.audit import Audit
from tailwise.checkpoints.blocks import number_blocks
from tailwise.checkpoints.orientation import in_order, natural
from tailwise.checkpoints.roles import NO_BLOCK, classify


@dataclass(frozen=True)
class Row:
    name: str
    role: str
    block: int | None


def rows(names):
    """Rows as an audit has them: parts and experts have the role of their suffix."""
    parts = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "gate": "mlp_gate", "up": "mlp_up"}
    stored = {name: name.partition("#")[0] for name in names}
    roles = {name: classify(f"{plain}.weight", 4 if "conv" in plain else 2, {}).role for name, plain in stored.items()}
    blocks = number_blocks(plain for name, plain in stored.items() if roles[name] not in NO_BLOCK)
    return [
        Row(name, parts.get(name.partition("#")[2], roles[name]), blocks.get(plain)) for name, plain in stored.items()
    ]


def ordered(names, **options):
    return [row.name for row in in_order(rows(names), **options)]


LLAMA = [
    "model.embed_tokens",
    *(
        f"model.layers.{n}.{part}"
        for n in range(12)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                     "mlp.up_proj", "mlp.down_proj")
    ),
    "lm_head",
]  # fmt: skip
GGUF = [
    "token_embd",
    *(
        f"blk.{n}.{part}"
        for n in range(11)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    ),
    "output",
]
MIXTURE = [
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.o_proj",
    "model.layers.0.mlp.gate",
    "model.layers.0.mlp.shared_experts.gate_proj",
    "model.layers.0.mlp.shared_experts.down_proj",
    *(f"model.layers.0.mlp.experts.{e}.{part}_proj" for e in range(12) for part in ("gate", "up", "down")),
    "lm_head",
]
FUSED = [
    "transformer.wte", "transformer.wpe",
    "transformer.h.0.attn.c_attn#q", "transformer.h.0.attn.c_attn#k", "transformer.h.0.attn.c_attn#v",
    "transformer.h.0.attn.c_proj", "transformer.h.0.mlp.gate_up_proj#gate", "transformer.h.0.mlp.gate_up_proj#up",
    "transformer.h.0.mlp.c_proj",
]  # fmt: skip
UNET = [
    "time_embedding.linear_1", "time_embedding.linear_2", "conv_in",
    "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.conv2",
    "down_blocks.0.attentions.0.proj_in", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
    "mid_block.resnets.0.conv1", "up_blocks.0.resnets.0.conv1", "conv_out",
]  # fmt: skip
TRANSLATOR = [
    "model.shared", "model.encoder.layers.0.self_attn.q_proj", "model.encoder.layers.0.fc1",
    "model.decoder.layers.0.self_attn.q_proj", "model.decoder.layers.0.self_attn.out_proj",
    "model.decoder.layers.0.encoder_attn.q_proj", "model.decoder.layers.0.encoder_attn.out_proj",
    "model.decoder.layers.0.fc1", "model.decoder.layers.0.fc2", "lm_head",
]  # fmt: skip
SEES = [
    "model.language_model.embed_tokens", "model.visual.patch_embed.proj", "model.visual.blocks.0.attn.qkv",
    "model.visual.merger.mlp.0", "model.visual.merger.mlp.2", "model.language_model.layers.0.self_attn.q_proj",
    "lm_head",
]  # fmt: skip


@pytest.mark.parametrize(
    "names", [LLAMA, GGUF, MIXTURE, FUSED, UNET, TRANSLATOR, SEES],
    ids=["llama", "gguf", "mixture", "fused", "unet", "translator", "vision"],
)  # fmt: skip
def test_layers_stand_from_the_data_to_the_labels_whatever_the_order_of_the_file(names):
    assert ordered(sorted(names)) == ordered(names[::-1]) == names


def test_without_blocks_numbers_in_names_decide_and_the_order_of_files_that_have_one():
    names = ["conv10", "conv2", "fc1", "conv1", "fc2"]
    assert ordered(names) == ["conv1", "conv2", "conv10", "fc1", "fc2"]
    assert ordered(["stem", "body", "tail", "fc"], as_listed=True) == ["stem", "body", "tail", "fc"]


def test_an_order_that_was_made_is_kept():
    listed = in_order(rows([*UNET, *LLAMA]))
    assert in_order(listed) == listed


def test_numbers_of_any_length_sort_as_numbers():
    assert sorted(["h.10", "h.9", "h.100"], key=natural) == ["h.9", "h.10", "h.100"]
    assert natural("9" * 5000)


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(0)
    names = ["lm_head", *LLAMA[:0:-1][1:], "model.embed_tokens"]
    return {f"{name}.weight": torch.randn(12, 10, generator=generator) for name in names}


def test_an_audit_is_in_order_in_every_form_that_people_see(model, tmp_path):
    save_file(model, tmp_path / "model.safetensors")
    audit = tw.audit(tmp_path, use_cache=False, baseline_replicas=2)
    assert [layer.row.name for layer in audit] == [row.name for row in audit.rows] == LLAMA
    assert audit.table()["name"] == LLAMA
    assert [row["longname"] for row in audit.weightwatcher().to_dicts()] == LLAMA
    audit.save(tmp_path / "kept.audit")
    assert [row.name for row in Audit.load(tmp_path / "kept.audit").rows] == LLAMA


def test_an_audit_that_was_kept_in_the_order_of_its_file_is_read_in_order(model):
    audit = tw.audit(model, use_cache=False, baseline_replicas=2)
    old = audit.rows[::-1]
    provenance = replace(audit.provenance, format="safetensors")
    assert [row.name for row in Audit(list(old), {}, provenance).rows] == LLAMA


def test_unmeasured_tensors_stand_behind_the_measured_ones_in_the_same_order():
    blocks = {f"layers.{n}.{part}": torch.randn(*shape) for n in range(11) for part, shape in
              (("norm.weight", (10,)), ("mlp.up_proj.weight", (12, 10)))}  # fmt: skip
    audit = tw.audit(blocks, use_cache=False, baseline_replicas=2)
    assert [row.block for row in audit.rows] == [*range(11), *range(11)]
    assert [row.measured for row in audit.rows] == [True] * 11 + [False] * 11
