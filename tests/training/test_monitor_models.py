"""Models as they are met: wrapped, in half precision, adapted, tied, frozen, broken, changing."""

from __future__ import annotations

import copy

import pytest
import torch

import tailwise as tw
from tailwise.checkpoints.wrapped import unwrap


def points_of(model, kept, steps=0, **settings):
    with tw.Monitor(model, every=1, sinks=[kept], max_overhead=1.0, **settings) as monitor:
        for _ in range(steps):
            monitor.step()
    assert monitor.report().errors == ()
    return kept


def test_a_compiled_model_has_its_own_names(model, kept):
    compiled = torch.compile(model, backend="eager")
    assert unwrap(compiled) is model
    points_of(compiled, kept)
    assert set(kept.points[0].layers) == {"0", "2"}


def test_a_compiled_part_of_a_model_has_its_own_names(kept):
    model = torch.nn.ModuleDict({"body": torch.compile(torch.nn.Linear(16, 16), backend="eager")})
    points_of(model, kept)
    assert set(kept.points[0].layers) == {"body"}


def test_bfloat16_weights_inside_autocast_are_measured_in_float32(model, kept):
    model = model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        points_of(model, kept, steps=1)
    W = model[0].weight.detach().float()
    assert kept.of("cheap")[-1].layers["0"]["frobenius_norm"] == pytest.approx(float(W.norm()), rel=1e-5)
    assert kept.of("cheap")[-1].layers["0"]["update_ratio"] == 0.0


def test_tied_weights_are_measured_once(kept):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(64, 16), torch.nn.Linear(16, 64, bias=False)
            self.head.weight = self.embed.weight

    points_of(Tied(), kept)
    assert [set(point.layers) for point in kept.points] == [{"embed"}, {"embed"}]


def test_a_layer_with_nan_is_noted_and_the_others_are_measured(model, kept):
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    points_of(model, kept)
    (cheap,), (full,) = kept.of("cheap"), kept.of("full")
    assert cheap.notes == ("not finite: 2",)
    assert set(full.layers) == {"0"}
    assert "2 is not measured: NOT_FINITE: 1 NaN and 0 Inf" in full.notes[0]


def test_a_layer_that_is_whole_again_after_nan_is_measured_again(model, kept):
    good = model[2].weight.detach().clone()
    with tw.Monitor(model, every=1, full="off", sinks=[kept], max_overhead=1.0) as monitor:
        for value in (torch.full_like(good, torch.nan), good):
            with torch.no_grad():
                model[2].weight.copy_(value)
            monitor.step()
    sigma = float(torch.linalg.matrix_norm(good, 2))
    assert kept.points[-1].layers["2"]["spectral_norm"] == pytest.approx(sigma, rel=1e-2)


def test_frozen_layers_are_not_measured_again(model, kept, monkeypatch):
    model[0].weight.requires_grad_(False)
    points_of(model, kept, steps=1, full="off")
    first, last = kept.points
    assert last.notes == ("unchanged, reused: 0",)
    assert last.layers["0"] == {**first.layers["0"], "update_ratio": 0.0}


def doubled_in_place(weight):
    with torch.no_grad():
        weight.mul_(2.0)


def doubled_data(weight):
    """As averages of weights are kept, which leaves the version of the tensor as it was."""
    weight.data.mul_(2.0)


def other_data(weight):
    weight.data = 2.0 * weight.data


@pytest.mark.parametrize("write", [doubled_in_place, doubled_data, other_data])
def test_a_frozen_layer_that_is_written_to_is_measured_again(model, kept, write):
    model[0].weight.requires_grad_(False)
    with tw.Monitor(model, every=1, full="off", sinks=[kept], max_overhead=1.0) as monitor:
        write(model[0].weight)
        monitor.step()
    first, last = kept.points
    assert last.layers["0"]["frobenius_norm"] == pytest.approx(2 * first.layers["0"]["frobenius_norm"])


class NoParts(torch.Tensor):
    """As tensors of low-bit codes are, of which rows can be had and no single entries."""

    def __getitem__(self, index):
        if isinstance(index, tuple):
            raise NotImplementedError
        return super().__getitem__(index)


def test_a_frozen_tensor_of_which_no_sample_can_be_taken_costs_no_measurement(model, kept):
    model[0].weight = torch.nn.Parameter(model[0].weight.detach().as_subclass(NoParts), requires_grad=False)
    points_of(model, kept, steps=1, full="off")
    assert [set(point.layers) for point in kept.points] == [{"0", "2"}] * 2


def test_a_matrix_of_zeros_is_said_to_be_one_and_is_finite(model, kept):
    torch.nn.init.zeros_(model[0].weight)
    points_of(model, kept, steps=1, full="off")
    for point in kept.points:
        assert "zeros: 0" in point.notes
        assert not any("not finite" in note for note in point.notes)
        assert point.layers["0"] == {"frobenius_norm": 0.0, "spectral_norm": 0.0}


def test_equal_matrices_of_a_first_measurement_are_not_said_to_be_unchanged(kept):
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    model[1].load_state_dict(model[0].state_dict())
    points_of(model, kept)
    (full,) = kept.of("full")
    assert full.notes == ()
    assert full.layers["0"] == full.layers["1"]


def test_a_full_measurement_reuses_what_has_not_changed(model, kept, train, clock):
    model[0].weight.requires_grad_(False)
    with tw.Monitor(model, every=1, full_every=1, sinks=[kept], clock=clock) as monitor:
        idle = monitor._solver._wake
        with idle:
            assert idle.wait_for(lambda: monitor._solver._job is None, 600)
        clock.now += 10.0
        monitor.step()
    first, last = kept.of("full")
    # Layer 0 is frozen and not even copied; layer 2 is copied, and its content is what it was.
    assert last.notes == ("unchanged, reused: 0, 2",)
    assert last.layers == first.layers


def test_changed_shapes_and_removed_layers_are_noted(kept):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(16, 16) for name in "abc"})
    with tw.Monitor(model, every=1, full="off", sinks=[kept], max_overhead=1.0) as monitor:
        monitor.step()
        del model["b"]
        model["c"] = torch.nn.Linear(16, 24)
        monitor.step()
    assert [set(point.layers) for point in kept.points] == [{"a", "b", "c"}, {"a", "b", "c"}, {"a", "c"}]
    assert kept.points[-1].notes == (
        "gone: b.bias, b.weight",
        "another shape or type: c.bias, c.weight",
    )
    assert "update_ratio" not in kept.points[-1].layers["c"]
    assert monitor.report().errors == ()


def test_the_updates_of_an_adapter_are_measured_beside_its_factors(kept):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(32, 48), "other": torch.nn.Linear(32, 32)})
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"]))
    layer = model.base_model.model["q_proj"]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    points_of(model, kept, steps=1)
    delta = layer.get_delta_weight("default").detach()
    cheap, full = kept.of("cheap")[0].layers, kept.of("full")[0].layers
    assert cheap["q_proj"]["frobenius_norm"] == pytest.approx(float(delta.norm()), rel=1e-4)
    assert cheap["q_proj"]["spectral_norm"] == pytest.approx(float(torch.linalg.matrix_norm(delta, 2)), rel=1e-2)
    assert full["q_proj"]["matrix_rank"] == 8.0
    assert {"base_model.model.q_proj.base_layer", "base_model.model.q_proj.lora_A.default"} <= set(full)
    assert kept.of("cheap")[1].layers["q_proj"]["update_ratio"] == 0.0
    reused = next(note for note in kept.of("cheap")[1].notes if note.startswith("unchanged"))
    assert "base_layer" in reused


def test_the_updates_of_dora_depend_on_the_weights_that_they_change(kept):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(32, 48), "other": torch.nn.Linear(32, 32)})
    before = base["q_proj"].weight.detach().clone()
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules=["q_proj"], use_dora=True))
    layer = model.base_model.model["q_proj"]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=0.1)
        layer.lora_magnitude_vector["default"].weight.mul_(1.5)
    points_of(model, kept)
    change = copy.deepcopy(model).merge_and_unload()["q_proj"].weight.detach() - before
    found = kept.of("cheap")[0].layers["q_proj"]["frobenius_norm"]
    assert found == pytest.approx(float(change.norm()), rel=1e-4)
    assert kept.of("full")[0].layers["q_proj"]["matrix_rank"] == 32.0


def test_stacked_experts_and_convolutions_are_measured_as_an_audit_does(kept):
    torch.manual_seed(0)

    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(8, 16, 3)
            self.experts = torch.nn.Module()
            self.experts.gate_up_proj = torch.nn.Parameter(torch.randn(4, 16, 64))
            self.experts.down_proj = torch.nn.Parameter(torch.randn(4, 32, 16))

    model = Mixed()
    points_of(model, kept)
    audit = tw.audit(copy.deepcopy(model), use_cache=False)
    assert set(kept.of("cheap")[0].layers) == {layer.row.name for layer in audit}
    for layer in audit:
        norm = float(layer.spectrum.eigenvalues.sum()) ** 0.5
        assert kept.of("cheap")[0].layers[layer.row.name]["frobenius_norm"] == pytest.approx(norm, rel=1e-5)


def test_selected_layers_only(model, kept):
    points_of(model, kept, layers="^2$")
    assert set(kept.points[0].layers) == {"2"}


def test_of_a_large_model_only_some_rows_are_kept_for_the_update_ratio(model, kept, train, clock, monkeypatch):
    monkeypatch.setattr("tailwise.training.cheap.KEPT_BYTES", 6000)
    with tw.Monitor(model, every=2, full="off", sinks=[kept], clock=clock) as monitor:
        train(model, monitor, 1, clock)
        held = sum(rows.nbytes for matrices in monitor._cheap._before.values() for rows in matrices)
        before = model[0].weight.detach().clone()
        train(model, monitor, 1, clock)
    W = model[0].weight.detach()
    ratio = float((W - before).norm() / W.norm())
    assert held <= 7000
    assert kept.points[-1].layers["0"]["update_ratio"] == pytest.approx(ratio, rel=0.2)
