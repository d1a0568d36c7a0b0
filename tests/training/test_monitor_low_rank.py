"""What a low-rank adapter adds, of any rank: exact, at the cost of its factors, by the name of the layer."""

from __future__ import annotations

import math

import pytest
import torch

import tailwise as tw
from tailwise.training.product_core import core, spectral_norm, squared_change


@pytest.mark.parametrize("rank", [1, 2, 6, 40])
def test_norms_and_changes_are_those_of_the_product(rank):
    torch.manual_seed(rank)
    left, right = torch.randn(48, rank), torch.randn(rank, 32)
    step = 1e-6 * torch.randn(48, rank), 1e-6 * torch.randn(rank, 32)
    W = left.double() @ right.double()
    inner = core(left, right)
    assert max(inner.shape) <= rank
    assert float(torch.linalg.vector_norm(inner)) == pytest.approx(float(W.norm()), rel=1e-12)
    assert float(spectral_norm(inner)) == pytest.approx(float(torch.linalg.matrix_norm(W, 2)), rel=1e-6)
    now = left + step[0], right + step[1]
    change = now[0].double() @ now[1].double() - W
    assert float(squared_change(now, (left, right))) == pytest.approx(float(change.norm()) ** 2, rel=1e-6)
    assert float(squared_change((left, right), (left, right))) == 0.0


@pytest.mark.parametrize("gap", [0.0, 1e-7, 1e-3, 0.5])
def test_the_largest_of_singular_values_that_nearly_agree(gap):
    orthogonal = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()).Q
    inner = orthogonal @ torch.diag(torch.tensor([3.0, *[3.0 - gap] * 6, 0.0]).double()) @ orthogonal.T
    assert float(spectral_norm(inner)) == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-150, 1e-30, 1e30])
def test_no_size_is_lost(scale):
    inner = torch.diag(torch.tensor([2.0, 1.0]).double()) * scale
    assert float(spectral_norm(inner)) == pytest.approx(2.0 * scale, rel=1e-6)


def test_what_is_not_finite_stays_so():
    inner = core(torch.full((5, 2), math.nan), torch.ones(2, 4))
    assert math.isnan(float(spectral_norm(inner)))


def test_no_matrix_of_the_size_of_the_layer_is_formed():
    """The product would take 640 GB."""
    left, right = torch.ones(400_000, 1), torch.ones(1, 400_000)
    assert float(spectral_norm(core(left, right))) == pytest.approx(400_000)
    assert float(squared_change((left, right), (2 * left, right))) == pytest.approx(400_000**2)


def lora(rank, **settings):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.ModuleDict({name: torch.nn.Linear(24, 40) for name in ("q_proj", "v_proj")})
    return peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=4, target_modules=["q_proj"], **settings))


def moved(layer, by):
    with torch.no_grad():
        layer.lora_A["default"].weight.add_(by * torch.randn_like(layer.lora_A["default"].weight))
        layer.lora_B["default"].weight.add_(by * torch.randn_like(layer.lora_B["default"].weight))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["LoRA", "rsLoRA"])
@pytest.mark.parametrize("rank", [1, 2, 7, 8, 12])
def test_an_adapter_of_any_rank_is_watched_with_its_factors(kept, rank, settings):
    model = lora(rank, **settings)
    layer = model.base_model.model["q_proj"]
    with tw.Monitor(model, every=2, full_every=2, at_start=False, sinks=[kept], max_overhead=1.0) as monitor:
        moved(layer, 0.5)
        monitor.step()
        before = layer.get_delta_weight("default").detach().double()
        moved(layer, 1e-3)
        monitor.step()
    now = layer.get_delta_weight("default").detach().double()
    cheap, full = kept.of("cheap")[-1].layers, kept.of("full")[-1].layers
    assert cheap["q_proj"]["frobenius_norm"] == pytest.approx(float(now.norm()), rel=1e-5)
    assert cheap["q_proj"]["spectral_norm"] == pytest.approx(float(torch.linalg.matrix_norm(now, 2)), rel=1e-5)
    assert cheap["q_proj"]["update_ratio"] == pytest.approx(float((now - before).norm() / now.norm()), rel=1e-3)
    factors = {f"base_model.model.q_proj.lora_{side}.default" for side in "AB"}
    assert factors <= set(cheap)
    assert all(cheap[name]["update_ratio"] > 0 for name in factors)
    assert full["q_proj"]["matrix_rank"] == rank
    # Fewer than eight singular values are no spectrum.
    assert factors <= set(full) if rank >= 8 else not factors & set(full)
    assert monitor.report().errors == ()


def test_a_layer_whose_product_begins_at_zero_has_norms_and_then_ratios(kept):
    model = lora(2)
    with tw.Monitor(model, every=2, full="off", sinks=[kept], max_overhead=1.0) as monitor:
        monitor.step()
        moved(model.base_model.model["q_proj"], 0.1)
        monitor.step()
    first, then = (point.layers["q_proj"] for point in kept.of("cheap"))
    assert first == {"frobenius_norm": 0.0, "spectral_norm": 0.0}
    assert then["update_ratio"] == pytest.approx(1.0)
    assert 1.0 <= then["stable_rank"] <= 2.0


def watched(model, kept):
    """The last cheap point of two steps in which all that is called lora moves."""
    with tw.Monitor(model, every=2, full_every=2, at_start=False, sinks=[kept], max_overhead=1.0) as monitor:
        for _ in range(2):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora" in name:
                        parameter.add_(0.01 * torch.randn_like(parameter))
            monitor.step()
    assert monitor.report().errors == ()
    return kept.of("cheap")[-1].layers


def test_an_adapter_that_was_injected_is_watched_by_the_names_of_the_model(kept):
    peft = pytest.importorskip("peft")
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(24, 40), "v_proj": torch.nn.Linear(24, 40)})
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"]), model)
    layers = watched(model, kept)
    made = model["q_proj"].get_delta_weight("default").detach()
    assert layers["q_proj"]["frobenius_norm"] == pytest.approx(float(made.norm()), rel=1e-5)
    assert {"q_proj.lora_A.default", "q_proj.lora_B.default", "q_proj.base_layer", "v_proj"} < set(layers)


@pytest.mark.parametrize(("target", "factor"), [("emb", "lora_embedding_A"), ("conv", "lora_A")])
def test_embeddings_and_convolutions_have_low_rank_changes_too(kept, target, factor):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.ModuleDict({"emb": torch.nn.Embedding(50, 24), "conv": torch.nn.Conv2d(8, 16, 3)})
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=[target]))
    layers = watched(model, kept)
    made = model.base_model.model[target].get_delta_weight("default").detach()
    assert layers[target]["frobenius_norm"] == pytest.approx(float(made.norm()), rel=1e-5)
    assert layers[f"base_model.model.{target}.{factor}.default"]["update_ratio"] > 0


class OwnLora(torch.nn.Module):
    """LoRA as people write it themselves: two parameters beside the weight, or two layers."""

    def __init__(self, modules):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(40, 24), requires_grad=False)
        if modules:
            self.lora_a, self.lora_b = torch.nn.Linear(24, 2, bias=False), torch.nn.Linear(2, 40, bias=False)
            torch.nn.init.zeros_(self.lora_b.weight)
        else:
            self.lora_A, self.lora_B = (torch.nn.Parameter(torch.randn(2, 24)), torch.nn.Parameter(torch.zeros(40, 2)))

    def factors(self):
        return (self.lora_b.weight, self.lora_a.weight) if hasattr(self, "lora_b") else (self.lora_B, self.lora_A)


@pytest.mark.parametrize("modules", [False, True], ids=["parameters", "layers"])
def test_factors_without_peft_are_watched_beside_the_weight_that_they_change(kept, modules):
    model = torch.nn.ModuleDict({"q": OwnLora(modules)})
    layers = watched(model, kept)
    left, right = model["q"].factors()
    assert layers["q#lora"]["frobenius_norm"] == pytest.approx(float((left @ right).detach().norm()), rel=1e-5)
    assert layers["q"]["frobenius_norm"] == pytest.approx(float(model["q"].weight.norm()), rel=1e-5)
    assert layers["q"]["update_ratio"] == 0.0
    assert len(layers) == 4


def test_an_adapter_inside_of_a_wrapper_is_found_and_another_one_that_becomes_active(kept):
    """A LightningModule has the adapted model as a part."""
    peft = pytest.importorskip("peft")
    outer = torch.nn.Module()
    outer.net, outer.head = lora(2), torch.nn.Linear(40, 10)
    outer.net.add_adapter("second", peft.LoraConfig(r=3, target_modules=["q_proj"]))
    layers = watched(outer, kept)
    layer = outer.net.base_model.model["q_proj"]
    assert layers["net.q_proj"]["frobenius_norm"] == pytest.approx(
        float(layer.get_delta_weight("default").detach().norm())
    )
    assert "net.base_model.model.q_proj.lora_B.second" in layers
    assert {"head", "net.base_model.model.v_proj"} < set(layers)
    outer.net.set_adapter("second")
    layers = watched(outer, kept)
    assert layers["net.q_proj"]["frobenius_norm"] == pytest.approx(
        float(layer.get_delta_weight("second").detach().norm())
    )


def test_the_adapter_may_change_while_it_is_watched(kept):
    peft = pytest.importorskip("peft")
    model = lora(2)
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["q_proj"]))
    layer = model.base_model.model["q_proj"]
    moved(layer, 0.1)
    with tw.Monitor(model, every=1, full="off", at_start=False, sinks=[kept], max_overhead=1.0) as monitor:
        monitor.step()
        model.set_adapter("second")
        monitor.step()
    assert kept.points[0].layers["q_proj"]["frobenius_norm"] > 0
    assert kept.points[1].layers["q_proj"]["frobenius_norm"] == 0.0
    assert monitor.report().errors == ()
