"""Models that are quantized already: refused, or read as what they decode to."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from packed_models import both, logits, plan_for, saved, values
from tiny_models import quantize

from tailwise.audits.run import audit
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.core.errors import UsageError
from tailwise.number_formats.formats import parse_format

pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")
ASKED = {"bits": None, "formats": ("q8_0",), "allocator": "uniform"}


@pytest.fixture(autouse=True)
def _theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, and the same in int4 and fp8, dense and packed."""
    folder = tmp_path_factory.mktemp("made")
    source = saved(folder / "source")
    return both(source, plan_for(source, "int4-g16", "fp8_e4m3"), "compressed-tensors", folder)


@pytest.fixture(scope="module")
def plan(made):
    return plan_quantize(audit(made.packed), QuantizeRequest(**ASKED, dequantize=True))


def test_planning_says_what_to_do(made):
    with pytest.raises(UsageError, match="weights are quantized") as caught:
        plan_quantize(audit(made.packed), QuantizeRequest(**ASKED))
    assert "--dequantize" in caught.value.fix


def test_applying_says_what_to_do(made, tmp_path):
    with pytest.raises(UsageError, match="weights are quantized") as caught:
        quantize(made.plan, made.packed, tmp_path / "out", ApplyOptions())
    assert "--dequantize" in caught.value.fix


def test_a_plan_names_the_decoded_tensors(made, plan):
    assert {decision.tensor for decision in plan} == {decision.tensor for decision in made.plan}
    assert plan.settings["dequantize"] is True
    dense = plan_quantize(audit(made.dense), QuantizeRequest(**ASKED))
    assert plan.budget["bytes"] == dense.budget["bytes"]
    assert plan.budget["kept_bytes"] == dense.budget["kept_bytes"]


def test_the_output_is_dense_and_rounds_the_decoded_values(made, plan, tmp_path):
    quantize(plan, made.packed, tmp_path / "out", ApplyOptions())
    before, after = values(made.dense), values(tmp_path / "out")
    assert set(after) == set(before)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    for decision in plan:
        expected = parse_format("q8_0").quantize(before[decision.tensor]).values.to(torch.bfloat16)
        assert torch.equal(after[decision.tensor], expected)
    assert torch.isfinite(logits(tmp_path / "out")).all()


def test_it_can_be_packed_another_way(made, plan, tmp_path):
    pytest.importorskip("gguf")
    again = both(made.packed, plan, "gguf", tmp_path)
    dense, packed = logits(again.dense), logits(again.packed, gguf_file="model.gguf", dtype=torch.bfloat16)
    assert float((packed - dense).norm() / dense.norm()) < 0.03


def test_a_plan_of_the_dense_model_needs_to_be_asked_for(made, tmp_path):
    options = ApplyOptions(dequantize=True, force=True)  # its fingerprint is of the dense weights
    done = quantize(made.plan, made.packed, tmp_path / "out", options)
    assert len(done.tensors) == len(made.plan)


def test_several_shards_become_dense(made, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(made.dense)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    packed = plan_for(tmp_path / "shards", "int8")
    quantize(packed, tmp_path / "shards", tmp_path / "int8", ApplyOptions(packed="compressed-tensors"))
    plan = plan_quantize(audit(tmp_path / "int8"), QuantizeRequest(**ASKED, dequantize=True))
    quantize(plan, tmp_path / "int8", tmp_path / "out", ApplyOptions())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert "model.layers.0.mlp.up_proj.weight" in index["weight_map"]
    assert torch.isfinite(logits(tmp_path / "out")).all()


def test_gptq_does_not_compute_with_it(made, plan, tmp_path):
    with pytest.raises(UsageError, match="quantized already"):
        quantize(plan.replace(operator="gptq"), made.packed, tmp_path / "out", ApplyOptions(calibration="x"))


def test_what_cannot_be_decoded_is_refused(tmp_path):
    from safetensors.torch import save_file

    source = saved(tmp_path / "source")
    plan = plan_for(source, "int8")
    (tmp_path / "odd").mkdir()
    tensors = {name: value for name, value in values(source).items() if "layers.0" not in name}
    save_file({**tensors, "m._weight_qdata": torch.zeros(2, 2, dtype=torch.int8)}, tmp_path / "odd/model.safetensors")
    with pytest.raises(UsageError, match="cannot be dequantized"):
        quantize(plan, tmp_path / "odd", tmp_path / "out", ApplyOptions(dequantize=True))
