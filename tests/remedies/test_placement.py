"""Residual branches and norms, on models of transformers and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

import tailwise as tw
from tailwise.core.errors import UsageError

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
IDS = torch.arange(6)[None]


def llama():
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, **SMALL))


def test_output_projections_are_scaled_by_one_over_root_2l_and_nothing_else():
    model = llama()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = tw.remedies.scale_residual_branches(model)
    assert len(found) == 6
    for name, p in model.named_parameters():
        branch = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert (name.removesuffix(".weight") in found) is branch
        torch.testing.assert_close(p.detach(), before[name] * (1 / math.sqrt(2 * 3) if branch else 1.0))


def test_biases_of_the_branch_are_scaled_too():
    model = GPT2Model(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=16))
    nn.init.ones_(model.h[0].attn.c_proj.bias)
    found = tw.remedies.scale_residual_branches(model)
    assert set(found) == {f"h.{i}.{part}.c_proj" for i in (0, 1) for part in ("attn", "mlp")}
    torch.testing.assert_close(model.h[0].attn.c_proj.bias.detach(), torch.full((32,), 0.5))


def test_a_model_without_branches_is_refused():
    with pytest.raises(UsageError, match="no output projection"):
        tw.remedies.scale_residual_branches(nn.Sequential(nn.Linear(20, 20)))


def test_scaled_branches_keep_the_variance_of_the_stream_along_depth():
    def growth(scaled):
        torch.manual_seed(0)
        deep = SMALL | {"num_hidden_layers": 12}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, initializer_range=0.25, **deep))
        if scaled:
            tw.remedies.scale_residual_branches(model)
        with torch.no_grad():
            states = model(IDS, output_hidden_states=True).hidden_states
        return float(states[-2].std() / states[0].std())

    assert growth(False) > 3 * growth(True)


BERT = BertConfig(vocab_size=40, max_position_embeddings=16, **SMALL)


@pytest.mark.parametrize(("make", "placement"), [
    (llama, "pre"),
    (lambda: GPT2Model(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=16)), "pre"),
    (lambda: BertModel(BERT, add_pooling_layer=False), "post"),
    (lambda: Gemma2ForCausalLM(Gemma2Config(vocab_size=40, num_key_value_heads=2, head_dim=16, **SMALL)), "both"),
])  # fmt: skip
def test_where_blocks_have_their_norms(make, placement):
    model = make().train()
    found = tw.remedies.check_pre_norm(model, IDS)
    assert len(found) in (2, 3)
    assert set(found.values()) == {placement}
    assert model.training


@pytest.mark.parametrize(("first", "placement"), [(True, "pre"), (False, "post")])
def test_the_layers_of_torch_are_told_apart(first, placement):
    layer = nn.TransformerEncoderLayer(32, 2, 64, norm_first=first, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert set(tw.remedies.check_pre_norm(model, torch.randn(1, 4, 32)).values()) == {placement}


def test_blocks_without_norms_are_said_to_have_none_and_hooks_are_removed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2)])

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    model = Net()
    assert tw.remedies.check_pre_norm(model, torch.randn(2, 8)) == {"layers.0": "none", "layers.1": "none"}
    assert not any(module._forward_hooks for module in model.modules())
