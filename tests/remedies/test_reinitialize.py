"""Dead layers drawn anew: what is dead, what is left, and the optimizer's memory of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tailwise as tw
from tailwise.core.errors import UsageError


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(100, 64), nn.LayerNorm(64), nn.Linear(64, 32))


def test_healthy_layers_are_left_alone():
    net = model()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert tw.remedies.reinitialize_dead_layers(net) == {}
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_matrix_of_zeros_or_with_nan_is_drawn_as_a_whole_with_its_std(value):
    net = model()
    with torch.no_grad():
        if value == 0.0:
            net[0].weight.zero_()
        else:
            net[0].weight[3, 4] = value
    other = net[2].weight.detach().clone()
    found = tw.remedies.reinitialize_dead_layers(net, generator=torch.Generator().manual_seed(1))
    assert found == {"0": 6400}
    assert float(net[0].weight.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(net[2].weight, other)


def test_dead_rows_and_columns_alone_are_drawn():
    net = model()
    with torch.no_grad():
        net[2].weight[5] = 0
        net[2].weight[:, 7] = 0
    before = net[2].weight.detach().clone()
    assert tw.remedies.reinitialize_dead_layers(net) == {"2": 64 + 32 - 1}
    changed = net[2].weight != before
    assert bool(changed[5].all())
    assert bool(changed[:, 7].all())
    assert int(changed.sum()) == 95


def test_named_layers_are_drawn_whatever_they_are_and_the_optimizer_forgets_them():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(4, 100)).sum().backward()
    optimizer.step()
    assert tw.remedies.reinitialize_dead_layers(net, ["2"], optimizer=optimizer, std=0.5) == {"2": 2048}
    assert float(net[2].weight.detach().std()) == pytest.approx(0.5, rel=0.1)
    assert net[2].weight not in optimizer.state
    assert net[0].weight in optimizer.state
    optimizer.step()


def test_a_model_that_says_how_it_was_initialised_is_believed_and_its_type_kept():
    net = model().bfloat16()
    net.config = type("Config", (), {"initializer_range": 0.02, "model_type": "x"})()
    tw.remedies.reinitialize_dead_layers(net, ["0"])
    assert net[0].weight.dtype == torch.bfloat16
    assert float(net[0].weight.detach().float().std()) == pytest.approx(0.02, rel=0.05)


def test_the_same_seed_draws_the_same():
    drawn = []
    for _ in range(2):
        net = model()
        tw.remedies.reinitialize_dead_layers(net, ["0"], generator=torch.Generator().manual_seed(7))
        drawn.append(net[0].weight.detach())
    assert torch.equal(*drawn)


def test_an_unknown_layer_is_refused():
    with pytest.raises(UsageError, match="matrix"):
        tw.remedies.reinitialize_dead_layers(model(), ["9"])


def test_names_of_alarms_are_found_in_a_compiled_model():
    assert tw.remedies.reinitialize_dead_layers(torch.compile(model(), backend="eager"), ["2"]) == {"2": 2048}


def test_the_zeros_that_lora_starts_from_are_left_unless_they_are_named():
    peft = pytest.importorskip("peft")
    net = peft.get_peft_model(model(), peft.LoraConfig(r=8, target_modules=["0"]))
    name = "base_model.model.0.lora_B.default"
    assert tw.remedies.reinitialize_dead_layers(net) == {}
    assert tw.remedies.reinitialize_dead_layers(net, [name]) == {name: 512}
