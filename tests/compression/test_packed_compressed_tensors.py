"""Packed as compressed-tensors: the values of the dequantized checkpoint, in fewer bytes."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from packed_models import WINDOWS, both, logits, mixtral, plan_for, saved, values
from tiny_models import quantize

from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.packing import output as read_back
from tailwise.compression.packing.bit_streams import pack_bits, pack_words
from tailwise.compression.packing.compressed_tensors import CompressedTensors
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.evaluation.loading import load_model
from tailwise.models.evaluation.losses import logits_of

pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")
LAYOUT = "compressed-tensors"
#: Formats whose values transformers holds exactly as the dequantized bfloat16 checkpoint does.
EXACT = ("int8", "int8-g32", "int4-g16", "int4-g32", "int4-channel", "int4-tensor", "int3-g16", "int2-g32", "mxfp4",
         "mxfp6", "mxfp8", "nvfp4", "int4-asym-g16", "int8-asym", "int8-asym-tensor")  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def _theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.mark.parametrize("name", EXACT)
def test_transformers_computes_the_same_as_with_real_numbers(llama, tmp_path, name):
    made = both(llama, plan_for(llama, name), LAYOUT, tmp_path)
    assert torch.equal(logits(made.packed), logits(made.dense))


def test_fp8_differs_by_the_scales_that_transformers_casts(llama, tmp_path):
    made = both(llama, plan_for(llama, "fp8_e4m3"), LAYOUT, tmp_path)
    dense = logits(made.dense)
    assert float((logits(made.packed) - dense).norm() / dense.norm()) < 0.03


def test_fp8_of_a_float32_model_is_exact(tmp_path):
    source = saved(tmp_path / "source", dtype=torch.float32)
    made = both(source, plan_for(source, "fp8_e4m3"), LAYOUT, tmp_path)
    assert torch.equal(logits(made.packed), logits(made.dense))


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_mixed_plans_of_both_operators(llama, tmp_path, operator):
    plan = plan_for(llama, "int4-g16", "nvfp4", "bf16", "int8", operator=operator)
    plan = plan.replace(settings={**plan.settings, "act_order": operator == "gptq"})
    how = {"calibration": WINDOWS, "batch": 4} if operator == "gptq" else {}
    made = both(llama, plan, LAYOUT, tmp_path, **how)
    assert torch.equal(logits(made.packed), logits(made.dense))
    config = json.loads((made.packed / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert {group["format"] for group in config["config_groups"].values()} == {"pack-quantized", "nvfp4-pack-quantized"}
    assert "lm_head" in config["ignore"]


@pytest.mark.parametrize("names", [("int4-g16", "nvfp4", "bf16", "int8"), ("int4-asym-g16", "fp8_e4m3", "mxfp4")])
def test_a_packed_folder_is_scored_as_the_dequantized_one_without_decoding_at_every_product(llama, tmp_path, names):
    made = both(llama, plan_for(llama, *names), LAYOUT, tmp_path)
    packed, dense = (load_model(str(place), dtype="auto") for place in (made.packed, made.dense))
    ids = WINDOWS[:2]
    assert torch.equal(logits_of(packed.module, ids), logits_of(dense.module, ids))
    assert type(packed.module.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert packed.module.dtype == torch.float32
    assert "decoded once" in packed.notes[0]


@pytest.mark.parametrize("names", [("int3-g16", "mxfp6"), ("int4-asym-g16", "fp8_e4m3-tensor", "nvfp4", "fp16")])
def test_an_audit_reads_the_values_back(llama, tmp_path, names):
    made = both(llama, plan_for(llama, *names), LAYOUT, tmp_path)
    packed, dense = values(made.packed), values(made.dense)
    for name, expected in dense.items():
        assert torch.equal(packed[name].to(expected.dtype), expected), name


def test_tied_embeddings_stay_tied(tmp_path):
    source = saved(tmp_path / "source", tie_word_embeddings=True)
    made = both(source, plan_for(source, "int8"), LAYOUT, tmp_path)
    assert torch.equal(logits(made.packed), logits(made.dense))
    assert "lm_head" in json.loads((made.packed / "config.json").read_text())["quantization_config"]["ignore"]


def test_a_head_can_be_packed(llama, tmp_path):
    made = both(llama, plan_for(llama, "int8", also=("lm_head",)), LAYOUT, tmp_path)
    assert torch.equal(logits(made.packed), logits(made.dense))


@pytest.mark.parametrize("names", [("int4-g16",), ("int4-g16", "int8")])
def test_experts_in_a_format_of_their_own(tmp_path, names):
    source = mixtral(tmp_path / "source")
    made = both(source, plan_for(source, *names), LAYOUT, tmp_path)
    assert torch.equal(logits(made.packed), logits(made.dense))
    packed, dense = values(made.packed), values(made.dense)
    assert all(torch.equal(packed[name].to(value.dtype), value) for name, value in dense.items())


def test_experts_in_several_formats_are_noted(tmp_path):
    source = mixtral(tmp_path / "source")
    plan = plan_for(source, "int4-g16")
    expert = next(d for d in plan if "experts.0." in d.tensor)
    mixed = plan.replace(decisions=(*(d for d in plan if d is not expert), expert.but(format="int8")))
    done = quantize(mixed, source, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert any("one symmetric format" in note for note in done.notes)


def test_several_shards_and_their_index(tmp_path):
    import transformers

    source = saved(tmp_path / "one")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    made = both(tmp_path / "source", plan_for(tmp_path / "source", "int4-g16"), LAYOUT, tmp_path)
    index = json.loads((made.packed / "model.safetensors.index.json").read_text())
    assert "model.layers.0.mlp.up_proj.weight_packed" in index["weight_map"]
    assert torch.equal(logits(made.packed), logits(made.dense))


def test_the_report_counts_the_bytes_of_the_file(llama, tmp_path):
    made = both(llama, plan_for(llama, "int4-g32"), LAYOUT, tmp_path)
    for item in made.done.tensors:
        assert item.requested == pytest.approx(4.5)
        assert item.achieved == pytest.approx(4.5 + 8 * 16 / item.n_params)  # two integers hold the shape
    before, after = made.done.sizes
    assert before == (llama / "model.safetensors").stat().st_size
    assert after == (made.packed / "model.safetensors").stat().st_size < before
    facts = made.done.to_json()
    assert (facts["packed"], facts["bytes_after"]) == (LAYOUT, after)
    card = (made.packed / "README.md").read_text()
    assert f"{after:,} bytes" in card
    assert "vLLM" in card
    assert Plan.load(made.packed / "tailwise_plan.json") == made.plan


def test_words_are_those_of_the_library():
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    generator = torch.Generator().manual_seed(0)
    for bits in range(2, 9):
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, 43), generator=generator).to(torch.int8)
        assert torch.equal(pack_words(codes, bits), pack_to_int32(codes, bits))


def test_six_bits_by_hand():
    codes = torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8)
    word = 1 | 2 << 6 | 3 << 12 | 4 << 18
    assert pack_bits(codes, 6).tolist() == [[word & 255, word >> 8 & 255, word >> 16]]


# What goes wrong


def test_what_has_no_layout_is_refused_with_its_layers(llama, tmp_path):
    plan = plan_for(llama, "nf4-g16", "fp8_e5m2")
    with pytest.raises(UsageError, match=r"has no layout for nf4-g16: model\.layers.* and \d+ more") as caught:
        quantize(plan, llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert "fp8_e5m2" in caught.value.what
    assert "plan with int2" in caught.value.fix
    assert list(tmp_path.glob(".out*")) == []


def test_embeddings_and_conv1d_are_refused(llama, tmp_path):
    plan = plan_for(llama, "int8", also=("embed",))
    with pytest.raises(UsageError, match="is an embedding"):
        quantize(plan, llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    import tiny_models

    gpt2 = tiny_models.saved("gpt2", tmp_path / "gpt2")
    with pytest.raises(UsageError, match=r"stored \(in, out\)"):
        quantize(plan_for(gpt2, "int8"), gpt2, tmp_path / "out", ApplyOptions(packed=LAYOUT))


def test_an_unknown_layout_is_named(llama, tmp_path):
    with pytest.raises(UsageError, match="no packing named 'ggml'"):
        quantize(plan_for(llama, "int8"), llama, tmp_path / "out", ApplyOptions(packed="ggml"))


def test_other_values_in_the_file_are_an_error(llama, tmp_path, monkeypatch):
    made = CompressedTensors.members

    def wrong(self, spec, chosen, parts):
        found = made(self, spec, chosen, parts)
        name = next(iter(found))
        return found if found[name].is_meta else {**found, name: found[name].flip(1)}

    monkeypatch.setattr(CompressedTensors, "members", wrong)
    with pytest.raises(UnreadableError, match="decodes to other values"):
        quantize(plan_for(llama, "int4-g16"), llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert not (tmp_path / "out").exists()


def test_other_bytes_than_the_plan_counts_are_an_error(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(CompressedTensors, "overhead", lambda *_: 0)
    with pytest.raises(UnreadableError, match="the plan counts"):
        quantize(plan_for(llama, "int4-g16"), llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert not (tmp_path / "out").exists()


def test_a_packed_run_that_was_killed_goes_on(llama, tmp_path, monkeypatch):
    plan = plan_for(llama, "int4-g16", "nvfp4", operator="gptq")
    options = ApplyOptions(packed=LAYOUT, calibration=WINDOWS, batch=4)
    whole = quantize(plan, llama, tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        patch.setattr(read_back, "_reached", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quantize(plan, llama, tmp_path / "out", options)
    done = quantize(plan, llama, tmp_path / "out", options)
    assert (whole.resumed, done.resumed) == (0, 3)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out"))
    assert one == two


def test_formats_of_bfloat16_alone_change_the_dtype_of_the_config(tmp_path):
    source = saved(tmp_path / "source", dtype=torch.float32)
    done = quantize(plan_for(source, "nvfp4"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert any("bfloat16" in note for note in done.notes)
    assert torch.isfinite(logits(tmp_path / "out")).all()


def test_what_transformers_does_not_load_is_noted(llama, tmp_path):
    plan = plan_for(llama, "int4-asym-g16", "int8")
    done = quantize(plan, llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert any("asymmetric" in note for note in done.notes)


def test_what_vllm_has_no_kernels_for_is_noted(llama, tmp_path):
    done = quantize(plan_for(llama, "int3-g16"), llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert done.notes == ("transformers loads int3-g16; vLLM has no kernels for it",)


def test_a_plan_to_prune_has_nothing_to_pack(llama, tmp_path):
    import tiny_models

    from tailwise.compression.applying.apply import apply

    plan = tiny_models.plan_for(llama, sparsity=0.5, operator="magnitude", allocator="uniform")
    with pytest.raises(UsageError, match="no codes to pack"):
        apply(plan, llama, tmp_path / "out", options=ApplyOptions(packed=LAYOUT))


def test_a_folder_without_config_is_refused(llama, tmp_path):
    from shutil import copy

    (tmp_path / "bare").mkdir()
    copy(llama / "model.safetensors", tmp_path / "bare")
    with pytest.raises(UsageError, match=r"no config\.json"):
        quantize(plan_for(llama, "int8"), tmp_path / "bare", tmp_path / "out", ApplyOptions(packed=LAYOUT))


def test_int4_by_hand(llama, tmp_path):
    """A code is stored with 8 added, the first in the lowest bits."""
    from safetensors import safe_open

    made = both(llama, plan_for(llama, "int4-g16"), LAYOUT, tmp_path)
    name = "model.layers.0.mlp.up_proj"
    with safe_open(made.packed / "model.safetensors", framework="pt") as file:
        word = int(file.get_tensor(f"{name}.weight_packed")[0, 0]) & 0xFFFFFFFF
        scale = file.get_tensor(f"{name}.weight_scale")[0, 0]
    codes = torch.tensor([(word >> 4 * place & 15) - 8 for place in range(8)])
    assert torch.equal(codes * scale, values(made.dense)[f"{name}.weight"][0, :8])


def test_the_journal_of_gptq_keeps_its_scales(llama, tmp_path):
    plan = plan_for(llama, "mxfp4", "nvfp4", "fp8_e4m3", "int4-asym-g16", operator="gptq")
    plan = replace(plan, decisions=tuple(d for d in plan if d.block == 0))
    made = both(llama, plan, LAYOUT, tmp_path, calibration=WINDOWS, batch=4)
    packed, dense = values(made.packed), values(made.dense)
    for decision in plan:
        name = decision.tensor
        assert torch.equal(packed[name].to(dense[name].dtype), dense[name]), (name, decision.format)
