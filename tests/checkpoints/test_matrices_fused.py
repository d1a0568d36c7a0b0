"""Parts of fused tensors against the slices that the models' own forward passes use."""

from __future__ import annotations

import warnings

import pytest
import torch
from test_matrices_architectures import build

from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.matrices import group, load


def parts(checkpoint, **options):
    found, _ = group(checkpoint, **{"conv": "flatten", "min_evals": 1, **options})
    return {source.name: source for source in found}


def value(source, checkpoint, max_bytes=1 << 20):
    (matrix,) = load(source, checkpoint)
    whole = torch.cat(list(matrix.row_blocks(max_bytes)))
    assert whole.shape == (matrix.rows, matrix.cols) == (source.rows, source.cols)
    return whole


def scale_in_place(model, source, factor):
    """Multiply one matrix inside the model's own tensor."""
    (view,) = source.views
    tensor = model.state_dict()[view.tensor].view(view.shape)
    start, stop, step = view.cols
    for a, b in view.rows:
        tensor[a:b, start:stop:step] *= factor


def captured(model, module_name, inputs=None):
    """(input, output) of a module in a forward pass over fixed tokens."""
    seen = {}
    module = dict(model.named_modules())[module_name]
    hook = module.register_forward_hook(lambda _, args, out: seen.update(args=args[0], out=out))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(transformers|torch)\.")
        model(torch.tensor([[3, 9, 27, 17, 51]]))
    hook.remove()
    out = seen["out"]
    return seen["args"], out[0] if isinstance(out, tuple) else out


# Each function cuts the output of the fused projection as the modeling code of transformers 5.23 does
# (heads 4, head size 8, hidden 32) and returns q, k, v as (tokens, features).


def by_head(y):  # GPT-NeoX, BLOOM, Falcon without multi-query: view(heads, 3, head_dim)
    return [t.flatten(1) for t in y.view(-1, 4, 3, 8).unbind(2)]


def falcon_grouped(y):  # view(kv_heads, heads // kv_heads + 2, head_dim)
    y = y.view(-1, 2, 4, 8)
    return [y[:, :, :-2].flatten(1), y[:, :, -2].flatten(1), y[:, :, -1].flatten(1)]


def falcon_multi_query(y):  # view(heads + 2, head_dim)
    y = y.view(-1, 6, 8)
    return [y[:, :-2].flatten(1), y[:, -2], y[:, -1]]


def thirds(y):
    return list(y.chunk(3, -1))


def phi3(y):
    return list(y.split((32, 16, 16), -1))


def bigcode_multi_query(y):
    return list(y.split((32, 8, 8), -1))


def bigcode_heads(y):
    return [t.flatten(1) for t in y.view(-1, 4, 24).split(8, -1)]


QKV = {
    "gpt_neox": ("gpt_neox.layers.1.attention.query_key_value", "gpt_neox.layers.1.attention.dense", by_head),
    "bloom": (
        "transformer.h.1.self_attention.query_key_value", "transformer.h.1.self_attention.dense", by_head,
    ),
    "falcon_old": (
        "transformer.h.1.self_attention.query_key_value", "transformer.h.1.self_attention.dense", by_head,
    ),
    "falcon_new": (
        "transformer.h.1.self_attention.query_key_value", "transformer.h.1.self_attention.dense",
        falcon_grouped,
    ),
    "falcon": (
        "transformer.h.1.self_attention.query_key_value", "transformer.h.1.self_attention.dense",
        falcon_multi_query,
    ),
    "mpt": ("transformer.blocks.1.attn.Wqkv", "transformer.blocks.1.attn.out_proj", thirds),
    "modernbert": ("model.layers.1.attn.Wqkv", "model.layers.1.attn.Wo", thirds),
    "gpt2": ("transformer.h.1.attn.c_attn", "transformer.h.1.attn.c_proj", thirds),
    "phi3": ("model.layers.1.self_attn.qkv_proj", "model.layers.1.self_attn.o_proj", phi3),
    "gpt_bigcode": ("transformer.h.1.attn.c_attn", "transformer.h.1.attn.c_proj", bigcode_multi_query),
    "gpt_bigcode_mha": ("transformer.h.1.attn.c_attn", "transformer.h.1.attn.c_proj", bigcode_heads),
}  # fmt: skip


@pytest.mark.parametrize("family", QKV)
def test_query_key_value_are_those_of_the_forward_pass(family):
    fused, output, cut = QKV[family]
    model = build(family, "cpu").eval()
    checkpoint = MemoryCheckpoint.of_module(model)
    found = parts(checkpoint)

    x, y = captured(model, fused)
    module = dict(model.named_modules())[fused]
    bias = 0 if getattr(module, "bias", None) is None else module.bias
    expected = cut((y - bias)[0] if y.ndim == 3 else y - bias)
    for part, reference in zip("qkv", expected, strict=True):
        source = found[f"{fused}#{part}"]
        assert source.role == f"attn_{part}"
        W = value(source, checkpoint)
        W = W.T if family == "gpt2" else W  # Conv1D is in × out
        torch.testing.assert_close(x.reshape(-1, 32) @ W.T, reference, rtol=1e-4, atol=1e-6)

    # Without its values, attention gives nothing to its output projection; without its queries, something.
    before, _ = captured(model, output)
    scale_in_place(model, found[f"{fused}#q"], 0)
    assert captured(model, output)[0].abs().max() > 0
    scale_in_place(model, found[f"{fused}#v"], 0)
    after, _ = captured(model, output)
    assert after.abs().max() < 1e-6 * before.abs().max()


GATES = {
    "phi3": ("model.layers.1.mlp.gate_up_proj", "model.layers.1.mlp.down_proj"),
    "glm4": ("model.layers.1.mlp.gate_up_proj", "model.layers.1.mlp.down_proj"),
    "modernbert": ("model.layers.1.mlp.Wi", "model.layers.1.mlp.Wo"),
}


@pytest.mark.parametrize("family", GATES)
def test_the_up_projection_is_the_one_that_acts_linearly(family):
    fused, down = GATES[family]
    model = build(family, "cpu").eval()
    found = parts(MemoryCheckpoint.of_module(model))
    before, _ = captured(model, down)
    scale_in_place(model, found[f"{fused}#up"], 2)
    torch.testing.assert_close(captured(model, down)[0], 2 * before)
    scale_in_place(model, found[f"{fused}#gate"], 2)
    assert not torch.allclose(captured(model, down)[0], 4 * before, rtol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "deepseek_v3", "llama4"])
def test_the_up_projections_of_experts_act_linearly(family):
    model = build(family, "cpu").eval()
    torch.manual_seed(1)
    checkpoint = MemoryCheckpoint.of_module(model)
    found = parts(checkpoint)
    experts = next(name for name in dict(model.named_modules()) if name.endswith("1.mlp.experts")
                   or name.endswith("1.feed_forward.experts"))  # fmt: skip
    for name, tensor in model.state_dict().items():
        if name.startswith(experts):
            tensor.normal_(std=0.1)
    _, before = captured(model, experts)
    ups = [source for name, source in found.items() if name.startswith(experts) and name.endswith("#up")]
    assert len(ups) == model.state_dict()[f"{experts}.gate_up_proj"].shape[0]
    for source in ups:
        scale_in_place(model, source, 2)
    _, after = captured(model, experts)
    assert before.abs().max() > 0
    torch.testing.assert_close(after, 2 * before)


def test_gpt_oss_interleaves_gate_and_up():
    model = build("gpt_oss", "cpu").eval()
    checkpoint = MemoryCheckpoint.of_module(model)
    found = parts(checkpoint)
    experts = dict(model.named_modules())["model.layers.1.mlp.experts"]
    torch.nn.init.normal_(experts.gate_up_proj)
    torch.nn.init.zeros_(experts.gate_up_proj_bias)
    x = torch.randn(5, 32)
    for e in range(3):
        name = f"model.layers.1.mlp.experts.gate_up_proj[{e}]"
        gate, up = (value(found[f"{name}#{part}"], checkpoint) for part in ("gate", "up"))
        gate_x, up_x = (x @ gate).clamp(max=experts.limit), (x @ up).clamp(-experts.limit, experts.limit)
        expected = (up_x + 1) * gate_x * torch.sigmoid(gate_x * experts.alpha)
        with torch.no_grad():
            torch.testing.assert_close(experts._apply_gate(x @ experts.gate_up_proj[e]), expected)


def test_fused_tensors_stay_whole_where_the_config_does_not_explain_them():
    W = torch.randn(60, 24)
    checkpoint = MemoryCheckpoint(
        "m",
        {"layers.0.self_attn.qkv_proj.weight": W, "layers.0.mlp.gate_up_proj.weight": W.clone(),
         "layers.0.attention.query_key_value.weight": torch.randn(72, 24)},
        config={"num_attention_heads": 5, "hidden_size": 24, "intermediate_size": 17},
    )  # fmt: skip
    found = parts(checkpoint)
    assert {(s.name, s.role) for s in found.values()} == {
        ("layers.0.self_attn.qkv_proj", "attn_qkv"),
        ("layers.0.mlp.gate_up_proj", "mlp_gate_up"),
        ("layers.0.attention.query_key_value", "attn_qkv"),
    }
    assert all("kept whole" in source.note for source in found.values())


def test_stacked_experts_without_a_config_are_split_by_expert_only():
    checkpoint = MemoryCheckpoint("m", {"layers.0.mlp.experts.gate_up_proj": torch.randn(3, 20, 12)})
    found = parts(checkpoint)
    assert list(found) == [f"layers.0.mlp.experts.gate_up_proj[{e}]" for e in range(3)]
    assert {source.role for source in found.values()} == {"expert_gate_up"}


def gguf(name, *shape, **config):
    checkpoint = MemoryCheckpoint("m", {name: torch.randn(shape)}, config=config)
    return {source.name: (source.role, source.views[0].rows) for source in parts(checkpoint).values()}


def test_gguf_stacks_query_key_value_of_every_family():
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    for family in ("falcon", "gpt_neox", "bloom", "phi3"):
        assert gguf("blk.0.attn_qkv.weight", 64, 32, model_type=family, **heads) == {
            "blk.0.attn_qkv#q": ("attn_q", ((0, 32),)),
            "blk.0.attn_qkv#k": ("attn_k", ((32, 48),)),
            "blk.0.attn_qkv#v": ("attn_v", ((48, 64),)),
        }


def test_gguf_up_projections_of_phi3_hold_the_gate_too():
    sizes = {"model_type": "phi3", "hidden_size": 32, "intermediate_size": 48}
    assert gguf("blk.0.ffn_up.weight", 96, 32, **sizes) == {
        "blk.0.ffn_up#gate": ("mlp_gate", ((0, 48),)),
        "blk.0.ffn_up#up": ("mlp_up", ((48, 96),)),
    }
    assert gguf("blk.0.ffn_up.weight", 48, 32, **sizes) == {"blk.0.ffn_up": ("mlp_up", ((0, 48),))}


def test_gguf_experts_are_split():
    assert gguf("blk.0.ffn_gate_exps.weight", 3, 48, 32) == {
        f"blk.0.ffn_gate_exps[{e}]": ("expert_gate", ((48 * e, 48 * (e + 1)),)) for e in range(3)
    }


def test_dbrx_stacks_experts_along_the_rows():
    W = torch.randn(3 * 10, 12)
    config = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 3}}
    checkpoint = MemoryCheckpoint("m", {"transformer.blocks.0.ffn.experts.mlp.w1": W}, config=config)
    found = parts(checkpoint)
    assert [s.role for s in found.values()] == ["expert_gate"] * 3
    assert torch.equal(value(found["transformer.blocks.0.ffn.experts.mlp.w1[2]"], checkpoint), W[20:])


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", "ifgo"), ("GRU", "rzn"), ("RNN", "")])
def test_recurrent_layers_are_split_into_gates(kind, gates):
    layer = getattr(torch.nn, kind)(12, 16, num_layers=2, bidirectional=True)
    checkpoint = MemoryCheckpoint.of_module(layer)
    found = parts(checkpoint)
    weights = {name: tensor for name, tensor in layer.state_dict().items() if tensor.ndim == 2}
    assert len(found) == len(weights) * max(1, len(gates))
    for name, tensor in weights.items():
        for i, gate in enumerate(gates):
            source = found[f"{name}#{gate}"]
            assert torch.equal(value(source, checkpoint), tensor[16 * i : 16 * (i + 1)])
            assert source.role == ("rnn_ih" if "_ih_" in name else "rnn_hh")
            assert source.kind == "rnn"


def test_projected_lstm_is_split_by_its_hidden_size():
    layer = torch.nn.LSTM(12, 16, proj_size=8)
    found = parts(MemoryCheckpoint.of_module(layer))
    assert found["weight_hh_l0#o"].rows == 16
    assert (found["weight_hr_l0"].rows, found["weight_hr_l0"].cols) == (8, 16)


def test_in_proj_weight_is_query_key_value():
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32)
    checkpoint = MemoryCheckpoint.of_module(layer)
    found = parts(checkpoint)
    W = layer.self_attn.in_proj_weight.detach()
    for i, part in enumerate("qkv"):
        source = found[f"self_attn.in_proj_weight#{part}"]
        assert source.role == f"attn_{part}"
        assert torch.equal(value(source, checkpoint), W[16 * i : 16 * (i + 1)])
    assert found["linear1"].role == "mlp_up"
    assert found["linear2"].role == "mlp_down"
