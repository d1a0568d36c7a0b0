"""Remedies of convolutions, attention in one parameter, and recurrent layers; optimizers that are built anew."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

import tailwise as tw
from tailwise.core.errors import UsageError

EXACT = tw.remedies.BalanceOptions(smoothing=0.0)


class Mixed(nn.Module):
    """A convolution, attention in one parameter, a recurrent layer, and a head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3)
        self.attn = nn.MultiheadAttention(32, 4)
        self.lstm = nn.LSTM(32, 24)
        self.gru = nn.GRU(24, 24)
        self.proj = nn.Linear(24, 24)
        self.classifier = nn.Linear(24, 32)

    def forward(self, x):
        x = self.conv(x).flatten(2).permute(2, 0, 1)
        x = self.attn(x, x, x)[0]
        return self.classifier(self.proj(self.gru(self.lstm(x)[0])[0]))


MATRICES = ["conv", "attn.in_proj_weight", "attn.out_proj", "lstm.weight_ih_l0", "lstm.weight_hh_l0",
            "gru.weight_ih_l0", "gru.weight_hh_l0", "proj"]  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mixed()


def step(model, optimizer):
    model(torch.randn(2, 16, 6, 6)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_of_every_layer_are_found_under_the_names_of_an_audit(model):
    assert list(tw.remedies.weight_matrices(model)) == MATRICES
    audited = {row.name.partition("#")[0] for row in tw.audit(model, use_cache=False).rows if row.measured}
    assert set(MATRICES) <= audited


def test_rates_of_all_of_them_follow_their_exponents(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balance = tw.remedies.layerwise_learning_rates(model, optimizer, every=1, options=EXACT)
    step(model, optimizer)
    before = {name: weight.detach().clone() for name, weight in tw.remedies.weight_matrices(model).items()}
    model(torch.randn(2, 16, 6, 6)).square().mean().backward()
    gradients = {name: weight.grad.clone() for name, weight in tw.remedies.weight_matrices(model).items()}
    optimizer.step()
    assert set(balance.factors) == set(MATRICES)
    assert (min(balance.factors.values()), max(balance.factors.values())) == (0.5, 1.5)
    for name, weight in tw.remedies.weight_matrices(model).items():
        torch.testing.assert_close(weight.detach(), before[name] - 0.1 * balance.factors[name] * gradients[name])


def test_the_exponent_of_a_kernel_is_that_of_its_audit(model):
    balance = tw.remedies.layerwise_learning_rates(model, torch.optim.SGD(model.parameters(), lr=0.1), options=EXACT)
    balance.update()
    audit = tw.audit(model, estimator="mid", use_cache=False)
    assert balance.alphas["conv"] == pytest.approx(audit["conv"].alpha)


def test_the_penalty_of_a_kernel_is_half_its_largest_singular_value_squared(model):
    penalty = tw.remedies.spectral_penalty(model, layers={"conv": model.conv.weight}, iterations=400)
    sigma = float(torch.linalg.matrix_norm(model.conv.weight.detach().flatten(1), 2))
    assert penalty().item() == pytest.approx(sigma**2 / 2, rel=1e-4)
    penalty().backward()
    assert model.conv.weight.grad.shape == model.conv.weight.shape


@pytest.mark.parametrize(("layer", "name", "rows"), [
    ("attn.in_proj_weight#k", "attn.in_proj_weight", slice(32, 64)),
    ("lstm.weight_hh_l0#f", "lstm.weight_hh_l0", slice(24, 48)),
    ("gru.weight_ih_l0#n", "gru.weight_ih_l0", slice(48, 72)), ("conv", "conv.weight", slice(0, 32)),
])  # fmt: skip
def test_what_an_alarm_names_is_drawn_anew_and_nothing_else(model, layer, name, rows):
    weight = model.get_parameter(name)
    before = weight.detach().clone()
    found = tw.remedies.reinitialize_dead_layers(model, [layer])
    assert found == {layer.partition("#")[0]: weight[rows].numel()}
    changed = (weight != before).flatten(1).all(1)
    assert changed[rows].all()
    assert changed.sum() == len(changed[rows])


def test_dead_kernels_and_gates_are_drawn(model):
    with torch.no_grad():
        model.conv.weight.zero_()
        model.lstm.weight_ih_l0[3] = 0.0
        model.attn.in_proj_weight[0, 0] = math.nan
    found = tw.remedies.reinitialize_dead_layers(model)
    assert found == {"conv": 32 * 16 * 9, "lstm.weight_ih_l0": 32, "attn.in_proj_weight": 96 * 32}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_part_that_is_not_there_is_refused_with_near_names(model):
    with pytest.raises(UsageError, match="in_proj_weight#q"):
        tw.remedies.reinitialize_dead_layers(model, ["attn.in_proj_weight#x"])


def test_an_optimizer_that_is_built_anew_is_noticed(model, caplog):
    caplog.set_level(logging.WARNING, "tailwise.remedies")
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    balance = tw.remedies.layerwise_learning_rates(model, first, every=1, options=EXACT)
    step(model, first)
    second = torch.optim.SGD(model.parameters(), lr=0.01)
    weights = tw.remedies.weight_matrices(model)
    model(torch.randn(2, 16, 6, 6)).square().mean().backward()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    gradients = {name: weight.grad.clone() for name, weight in weights.items()}
    second.step()
    assert len(set(balance.factors.values())) > 2
    for name, weight in weights.items():  # in the very step by which it is noticed
        torch.testing.assert_close(weight.detach(), before[name] - 0.01 * balance.factors[name] * gradients[name])
    assert caplog.text.count("another SGD") == 1
    assert [group["lr"] for group in second.param_groups] == [0.01]
    balance.remove()
    rates = []
    second.register_step_pre_hook(lambda optimizer, *_: rates.extend(group["lr"] for group in optimizer.param_groups))
    step(model, second)
    assert rates == [0.01]


def test_a_second_optimizer_of_other_weights_is_left_alone(model, caplog):
    caplog.set_level(logging.WARNING, "tailwise.remedies")
    first = torch.optim.SGD([p for n, p in model.named_parameters() if "classifier" not in n], lr=0.1)
    head = torch.optim.AdamW(model.classifier.parameters(), lr=0.01)
    balance = tw.remedies.layerwise_learning_rates(model, first, every=1, options=EXACT)
    for _ in range(2):
        step(model, first)
        step(model, head)
    assert caplog.text == ""
    assert balance.steps == 2


def test_llr_goes_up_from_the_rate_and_reaches_it_in_a_straight_line(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    balance = tw.remedies.llr(model, optimizer, every=4, options=tw.remedies.BalanceOptions(smoothing=0.0, over=2))
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(sorted(group["lr"] for group in o.param_groups)))
    for _ in range(7):
        step(model, optimizer)
    assert seen[3] == [0.01]
    heaviest, lightest = (sorted(balance.alphas, key=balance.alphas.get)[i] for i in (0, -1))
    assert (balance.factors[heaviest], balance.factors[lightest]) == (1.0, 5.0)
    # At the step of the update nothing has moved yet; half-way after one more, and there after two.
    assert [max(rates) for rates in seen[4:7]] == pytest.approx([0.01, 0.03, 0.05])
    assert [min(rates) for rates in seen[4:7]] == pytest.approx([0.01, 0.01, 0.01])


def test_llr_balances_muon(model):
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "classifier" not in n]
    muon = torch.optim.Muon(matrices, lr=0.01)
    balance = tw.remedies.llr(model, muon, every=1, options=tw.remedies.BalanceOptions(smoothing=0.0))
    step(model, muon)
    step(model, muon)
    assert max(balance.factors.values()) == 5.0


def test_a_resumed_llr_goes_on_with_the_factors_on_their_way(model):
    def made():
        torch.manual_seed(0)
        net = Mixed()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        options = tw.remedies.BalanceOptions(smoothing=0.0, over=10)
        return net, optimizer, tw.remedies.llr(net, optimizer, every=2, options=options)

    net, optimizer, balance = made()
    for _ in range(6):
        step(net, optimizer)
    _, _, other = made()
    other.load_state_dict(balance.state_dict())
    assert other._now() == balance._now()
    assert other.state_dict() == balance.state_dict()


def test_fixed_rates_are_those_of_attention_and_of_mlps():
    transformers = pytest.importorskip("transformers")
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2))  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    balance = tw.remedies.fixed_learning_rates(net, optimizer, attention=0.5, mlp=2.0)
    factors = {name.rpartition(".")[2]: by for name, by in balance.factors.items()}
    assert factors == {"q_proj": 0.5, "k_proj": 0.5, "v_proj": 0.5, "o_proj": 0.5, "gate_proj": 2.0, "up_proj": 2.0,
                       "down_proj": 2.0}  # fmt: skip
    with pytest.raises(UsageError, match="positive"):
        tw.remedies.fixed_learning_rates(net, optimizer, attention=0.0)
