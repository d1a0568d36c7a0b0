"""A plan that prunes and quantizes, carried out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import inputs_for, plan_for, saved

from tailwise.audits.run import audit
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.bits import mean_bits
from tailwise.compression.plans.combined import combined
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError

pytest.importorskip("transformers")

OPTIONS = ApplyOptions(calibration=inputs_for("llama")["input_ids"], batch=4)
WAYS = [("magnitude", "rtn"), ("magnitude", "gptq"), ("wanda", "rtn"), ("sparsegpt", "gptq")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16, max_shard_size="20KB")


def both(folder: Path, prune: str = "sparsegpt", quantize: str = "gptq", formats=("int4-g16", "int8")) -> Plan:
    request = QuantizeRequest(6.0 if len(formats) > 1 else None, formats=formats, allocator="depth", operator=quantize)
    return combined(plan_for(folder, operator=prune), plan_quantize(audit(folder), request))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name).clone() for name in checkpoint.tensors}


@pytest.mark.parametrize(("prune", "quantize"), WAYS)
def test_what_was_pruned_is_zero_and_the_rest_has_its_format(llama, tmp_path, prune, quantize) -> None:
    plan = both(llama, prune, quantize)
    found = apply(plan, llama, tmp_path / "out", options=OPTIONS)
    assert found.pruned.achieved == pytest.approx(0.5, abs=0.01)
    assert found.achieved == pytest.approx(mean_bits(plan.part("quantize")))
    apply(plan.part("prune"), llama, tmp_path / "pruned", options=OPTIONS)
    pruned, written = tensors_of(tmp_path / "pruned"), tensors_of(tmp_path / "out")
    for item in plan:
        gone = pruned[item.tensor] == 0
        assert gone.float().mean() == pytest.approx(0.5, abs=0.02)
        assert bool((written[item.tensor][gone] == 0).all())
        assert not torch.equal(written[item.tensor], pruned[item.tensor])
    assert Plan.load(tmp_path / "out" / "tailwise_plan.json") == plan
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
    assert "of the plan's pruned tensors were set to zero" in (tmp_path / "out" / "README.md").read_text()


def test_without_data_it_is_rounding_of_the_pruned_model(llama, tmp_path) -> None:
    plan = both(llama, "magnitude", "rtn")
    apply(plan, llama, tmp_path / "out")
    apply(plan.part("prune"), llama, tmp_path / "pruned")
    apply(plan.part("quantize").replace(fingerprint=""), tmp_path / "pruned", tmp_path / "one by one")
    one, other = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "one by one")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_packed_it_is_the_same_numbers(llama, tmp_path) -> None:
    pytest.importorskip("compressed_tensors")
    plan = both(llama, "magnitude", "rtn", ("int4-g16",))
    with pytest.raises(UsageError):
        apply(plan, llama, tmp_path / "packed", options=ApplyOptions(packed="gguf"))
    found = apply(plan, llama, tmp_path / "packed", options=ApplyOptions(packed="compressed-tensors"))
    assert found.packed == "compressed-tensors"
    apply(plan, llama, tmp_path / "out")
    packed, plain = audit(tmp_path / "packed", use_cache=False), audit(tmp_path / "out", use_cache=False)
    name = "model.layers.1.mlp.up_proj"
    assert packed[name].spectrum.eigenvalues == pytest.approx(plain[name].spectrum.eigenvalues, rel=1e-2)  # bf16


def test_a_run_that_ended_between_the_two_goes_on(llama, tmp_path) -> None:
    plan, told = both(llama), []
    apply(plan, llama, tmp_path / "whole", options=OPTIONS)

    def ends(what: str, _done: int, _total: int) -> None:
        if what == "quantizing blocks":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(plan, llama, tmp_path / "out", options=OPTIONS, progress=ends)
    assert not (tmp_path / "out").exists()
    apply(plan, llama, tmp_path / "out", options=OPTIONS, progress=lambda what, *_: told.append(what))
    assert "pruning blocks" not in told
    one, other = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)
    with pytest.raises(KeyboardInterrupt):
        apply(plan, llama, tmp_path / "new", options=OPTIONS, progress=ends)
    fewer = replace(OPTIONS, calibration=OPTIONS.calibration[:3])  # what was pruned by the other text is not taken
    apply(plan, llama, tmp_path / "new", options=fewer, progress=lambda what, *_: told.append(what))
    assert "pruning blocks" in told


@pytest.mark.parametrize(
    ("formats", "options", "said"),
    [
        (("int4-g16",), ApplyOptions(), "calibration"),
        (("int4-g16",), replace(OPTIONS, save_masks=True), "masks"),
        (("q4_1", "int8"), OPTIONS, "no zero"),
    ],
)
def test_what_cannot_be_done_is_one_message(llama, tmp_path, formats, options, said) -> None:
    request = QuantizeRequest(7.0 if len(formats) > 1 else None, formats=formats, operator="rtn")
    plan = combined(plan_for(llama, operator="wanda"), plan_quantize(audit(llama), request))
    with pytest.raises(UsageError, match=said):
        apply(plan, llama, tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_a_plan_of_another_model_is_refused(llama, tmp_path) -> None:
    other = saved("llama", tmp_path / "other", dtype=torch.float32)
    with pytest.raises(UsageError, match="weights are others"):
        apply(both(llama, "magnitude", "rtn"), other, tmp_path / "out")
