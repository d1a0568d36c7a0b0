"""TempBalance and AlphaDecay: the papers' formula, and what must hold whatever the model and the optimizer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import tailwise as tw
from tailwise.core.errors import UsageError
from tailwise.training.remedies.groups import scaler_of

EXACT = tw.remedies.BalanceOptions(smoothing=0.0)


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 20, bias=False))


def run(net, optimizer, steps, seed=1):
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 24)).square().mean().backward()
        optimizer.step()


def mid_hill(weight):
    """TempBalance's `pl_fitting='median'`, by hand: α = 1 + k/Σ ln(λᵢ/λ_min) over the upper half of λ > 1e−5."""
    values = np.linalg.svd(weight.detach().double().numpy(), compute_uv=False)[::-1] ** 2
    values = values[values > 1e-5]
    tail = values[len(values) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


def test_factors_are_the_papers_straight_line():
    # η·[(α − α_min)/(α_max − α_min)·(s₂ − s₁) + s₁] with s₁ = 0.5, s₂ = 1.5.
    found = tw.remedies.linear_factors({"a": 2.0, "b": 3.0, "c": 6.0}, 0.5, 1.5)
    assert found == {"a": 0.5, "b": 0.75, "c": 1.5}


def test_equal_exponents_leave_every_setting():
    assert tw.remedies.linear_factors({"a": 3.0, "b": 3.0}, 0.5, 1.5) == {"a": 1.0, "b": 1.0}
    assert tw.remedies.linear_factors({}, 0.5, 1.5) == {}


def test_the_exponents_are_those_of_the_upper_half_of_the_spectrum():
    net = model()
    balance = tw.remedies.layerwise_learning_rates(net, torch.optim.SGD(net.parameters(), lr=0.1), options=EXACT)
    balance.update()
    for name in ("0", "2", "4"):
        assert balance.alphas[name] == pytest.approx(mid_hill(net.get_submodule(name).weight), rel=1e-6)


def test_a_step_of_sgd_moves_each_matrix_by_its_own_rate():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    balance = tw.remedies.layerwise_learning_rates(net, optimizer, options=EXACT)
    factors = balance.update()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net(torch.randn(8, 24)).square().mean().backward()
    optimizer.step()
    for name, p in net.named_parameters():
        rate = 0.1 * (factors[name.removesuffix(".weight")] if name.endswith("weight") else 1.0)
        torch.testing.assert_close(p.detach(), before[name] - rate * p.grad)


def test_alphadecay_decays_each_matrix_by_its_own_factor_and_no_other_parameter():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    balance = tw.remedies.layerwise_weight_decay(net, optimizer, options=EXACT)
    factors = balance.update()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        by = factors[name.removesuffix(".weight")] if name.endswith("weight") else 1.0
        torch.testing.assert_close(p.detach(), before[name] * (1 - 0.1 * 0.5 * by))
    assert min(factors.values()) == pytest.approx(2 / 3)
    assert max(factors.values()) == pytest.approx(3.0)


def test_both_act_on_one_optimizer_and_the_groups_are_as_before_after_a_step():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    rates = tw.remedies.layerwise_learning_rates(net, optimizer, options=EXACT)
    decays = tw.remedies.layerwise_weight_decay(net, optimizer, options=EXACT)
    groups, group = optimizer.param_groups, dict(optimizer.param_groups[0])
    rate, decay = rates.update()["0"], decays.update()["0"]
    before = net[0].weight.detach().clone()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.param_groups is groups
    assert len(groups) == 1
    assert groups[0] == group
    torch.testing.assert_close(net[0].weight.detach(), before * (1 - 0.1 * rate * 0.5 * decay))


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("within", ["model", "role"])
def test_the_mean_rate_over_the_entries_is_kept_where_asked(smoothing, within):
    net = model()
    options = tw.remedies.BalanceOptions(smoothing=smoothing, within=within, keep_mean=True)
    balance = tw.remedies.layerwise_learning_rates(net, torch.optim.SGD(net.parameters(), lr=1), options=options)
    factors = balance.update()
    entries = {name: weight.numel() for name, weight in tw.remedies.linear_matrices(net).items()}
    mean = sum(factors[name] * entries[name] for name in factors) / sum(entries.values())
    assert mean == pytest.approx(1.0)


def test_factors_stay_within_their_bounds_while_training():
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    balance = tw.remedies.layerwise_learning_rates(net, optimizer, every=2)
    run(net, optimizer, 9)
    assert balance.steps == 9
    assert all(0.5 <= by <= 1.5 for by in balance.factors.values())
    assert {round(min(balance.factors.values()), 9), round(max(balance.factors.values()), 9)} == {0.5, 1.5}


def test_smoothing_is_a_moving_average_of_the_exponents():
    net = model()
    balance = tw.remedies.layerwise_learning_rates(
        net, torch.optim.SGD(net.parameters(), lr=1), options=tw.remedies.BalanceOptions(smoothing=0.75)
    )
    balance.update()
    first = balance.alphas["2"]
    with torch.no_grad():
        net[2].weight.copy_(torch.diag(torch.arange(1.0, 41.0))[:32])
    balance.update()
    assert balance.alphas["2"] == pytest.approx(0.75 * first + 0.25 * mid_hill(net[2].weight), rel=1e-6)


def test_before_the_first_period_has_passed_nothing_differs():
    plain, balanced = model(), model()
    first, second = (torch.optim.AdamW(net.parameters(), lr=0.01) for net in (plain, balanced))
    tw.remedies.layerwise_learning_rates(balanced, second, every=5)
    run(plain, first, 5)
    run(balanced, second, 5)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), balanced.parameters(), strict=True))


@pytest.mark.parametrize("make", [
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
])  # fmt: skip
@pytest.mark.parametrize("early", [True, False])
def test_a_scheduler_gives_the_rates_it_would_have_given(make, early):
    rates = []
    for balanced in (False, True):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        if balanced and early:
            tw.remedies.layerwise_learning_rates(net, optimizer, every=2)
        scheduler = make(optimizer)
        if balanced and not early:
            tw.remedies.layerwise_learning_rates(net, optimizer, every=2)
        seen = []
        for _ in range(10):
            run(net, optimizer, 1)
            scheduler.step()
            seen.append(optimizer.param_groups[0]["lr"])
        rates.append(seen)
    assert rates[0] == rates[1]


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adagrad", "RMSprop", "Adamax", "Adafactor"]
)
def test_it_works_with_the_optimizers_of_torch(name):
    net = model()
    optimizer = getattr(torch.optim, name)(net.parameters(), lr=0.01)
    balance = tw.remedies.layerwise_learning_rates(net, optimizer, every=2)
    run(net, optimizer, 5)
    assert len(balance.factors) == 3
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_rates_that_are_tensors_stay_the_same_object():
    net, rate = model(), torch.tensor(0.01)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    tw.remedies.layerwise_learning_rates(net, optimizer, every=1)
    run(net, optimizer, 3)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.01)


def test_a_state_goes_on_as_if_the_run_had_not_been_broken_off():
    def started():
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
        return net, optimizer, tw.remedies.layerwise_learning_rates(net, optimizer, every=3)

    net, optimizer, balance = started()
    run(net, optimizer, 7)
    kept = [net.state_dict(), optimizer.state_dict(), balance.state_dict()]
    kept = torch.load(_saved(kept), weights_only=True)
    run(net, optimizer, 5, seed=9)
    again, other, resumed = started()
    for thing, state in zip((again, other, resumed), kept, strict=True):
        thing.load_state_dict(state)
    run(again, other, 5, seed=9)
    assert resumed.factors == balance.factors
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def _saved(thing):
    import io

    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return buffer


def test_a_state_of_another_model_or_setting_is_refused():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters())
    balance = tw.remedies.layerwise_learning_rates(net, optimizer)
    with pytest.raises(UsageError, match="it has 9"):
        balance.load_state_dict({"setting": "lr", "steps": 1, "alphas": {}, "factors": {"9": 1.0}})
    with pytest.raises(UsageError, match="it is of weight_decay"):
        balance.load_state_dict({"setting": "weight_decay", "steps": 1, "alphas": {}, "factors": {}})


def test_removing_it_leaves_the_optimizer_as_it_was():
    plain, balanced = model(), model()
    first, second = (torch.optim.AdamW(net.parameters(), lr=0.01) for net in (plain, balanced))
    balance = tw.remedies.layerwise_learning_rates(balanced, second)
    balance.update()
    balance.remove()
    run(plain, first, 3)
    run(balanced, second, 3)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), balanced.parameters(), strict=True))
    tw.remedies.layerwise_learning_rates(balanced, second)


def test_a_step_that_raises_does_not_leave_split_groups():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    balance = tw.remedies.layerwise_learning_rates(net, optimizer)
    balance.update()
    groups = optimizer.param_groups
    scaler = scaler_of(optimizer)
    scaler.split(optimizer)
    assert len(optimizer.param_groups) > 1
    run(net, optimizer, 1)
    assert optimizer.param_groups is groups


def test_zero_and_not_finite_matrices_keep_their_rate():
    net = model()
    with torch.no_grad():
        net[0].weight.zero_()
        net[2].weight[0, 0] = math.nan
    balance = tw.remedies.layerwise_learning_rates(net, torch.optim.SGD(net.parameters(), lr=1))
    assert set(balance.update()) == {"4"}


def test_bf16_weights_have_nearly_the_exponents_of_their_originals():
    net = model()
    exact = tw.remedies.layerwise_learning_rates(net, torch.optim.SGD(net.parameters(), lr=1), options=EXACT)
    half = model().bfloat16()
    rounded = tw.remedies.layerwise_learning_rates(half, torch.optim.SGD(half.parameters(), lr=1), options=EXACT)
    exact.update()
    rounded.update()
    assert rounded.alphas == pytest.approx(exact.alphas, rel=0.02)


class Language(nn.Module):
    """A convolution, an embedding, a norm, a head that is tied, and two names for one matrix."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(50, 24)
        self.conv = nn.Conv1d(24, 24, 3)
        self.layers = nn.ModuleList([nn.Linear(24, 24), nn.Linear(24, 24)])
        self.twin = self.layers[1]
        self.norm = nn.LayerNorm(24)
        self.tiny = nn.Linear(24, 4)
        self.readout = nn.Linear(24, 50, bias=False)
        self.readout.weight = self.embed_tokens.weight


def test_embeddings_heads_norms_convolutions_and_what_is_tied_are_left_out():
    assert list(tw.remedies.linear_matrices(Language())) == ["layers.0", "layers.1"]


def test_wrong_requests_say_what_to_do():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters())
    tw.remedies.layerwise_learning_rates(net, optimizer)
    with pytest.raises(UsageError, match="balanced already"):
        tw.remedies.layerwise_learning_rates(net, optimizer)
    with pytest.raises(UsageError, match="0 < low"):
        tw.remedies.layerwise_weight_decay(net, optimizer, low=2, high=1)
    with pytest.raises(UsageError, match="LBFGS"):
        tw.remedies.layerwise_learning_rates(net, torch.optim.LBFGS(net.parameters()))
    with pytest.raises(UsageError, match="no weight_decay"):
        tw.remedies.layerwise_weight_decay(net, torch.optim.Rprop(net.parameters()))
    with pytest.raises(UsageError, match="none of the model's linear layers"):
        tw.remedies.layerwise_learning_rates(model(), optimizer)  # as after a copy, or before sharding
    with pytest.raises(UsageError, match="no linear layer with 16"):
        tw.remedies.layerwise_learning_rates(nn.Linear(4, 4), optimizer)
    with pytest.raises(UsageError, match="smoothing"):
        tw.remedies.BalanceOptions(smoothing=1.0)
    with pytest.raises(UsageError, match="estimator"):
        tw.remedies.BalanceOptions(estimator="midd")


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_names_are_those_of_the_model_without_its_wrapper(wrap):
    net = model()
    assert list(tw.remedies.linear_matrices(wrap(net))) == list(tw.remedies.linear_matrices(net))


def test_what_is_frozen_keeps_its_rate_and_is_not_measured():
    net = model()
    net[0].requires_grad_(False)
    balance = tw.remedies.layerwise_learning_rates(net, torch.optim.SGD(net.parameters(), lr=0.1), options=EXACT)
    assert set(balance.update()) == {"2", "4"}
    net[0].requires_grad_(True)
    net[2].requires_grad_(False)
    assert set(balance.update()) == {"0", "4"}


def test_it_balances_the_optimizer_inside_that_of_accelerate():
    accelerate = pytest.importorskip("accelerate")
    net = model()
    plain = torch.optim.SGD(net.parameters(), lr=0.1)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(net, plain)
    balance = tw.remedies.layerwise_learning_rates(prepared, optimizer, every=1, options=EXACT)
    run(prepared, optimizer, 2)
    assert balance.steps == 2
    assert sorted(balance.factors.values())[::2] == [0.5, 1.5]
    assert len(plain.param_groups) == 1
