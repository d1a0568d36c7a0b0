"""Plans to quantize, read by the libraries they are for."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from exported_models import llama, llama_plan, without_blocks

from tailwise.compression.export.exporter import EXPORTERS, export
from tailwise.core.errors import UsageError
from tailwise.number_formats.formats import FORMATS, parse_format

INTEGERS = {
    "int4": (4, "group", 128, True),
    "int4-g32": (4, "group", 32, True),
    "int4-asym-g32": (4, "group", 32, False),
    "int3-channel": (3, "channel", None, True),
    "int2-g64": (2, "group", 64, True),
    "int8": (8, "channel", None, True),
    "int8-asym-tensor": (8, "tensor", None, False),
}
FLOATS = {
    "fp8_e4m3": (8, "channel", None),
    "fp8_e4m3-tensor": (8, "tensor", None),
    "mxfp4": (4, "group", 32),
    "mxfp6": (6, "group", 32),
    "mxfp8": (8, "group", 32),
    "nvfp4": (4, "tensor_group", 16),
}
QUANTIZERS = ("llmcompressor", "compressed-tensors", "gptqmodel", "autoround", "torchao", "llamacpp", "alphaquant",
              "evopress")  # fmt: skip


def written(plan, to, tmp_path):
    suffix = EXPORTERS[to].suffixes[0]
    path, *_ = export(plan, to, tmp_path / f"out{suffix}")
    text = path.read_text()
    return yaml.safe_load(text) if suffix == ".yaml" else json.loads(text) if suffix == ".json" else text


def module_of(decision):
    return decision.tensor.removesuffix(".weight")


# compressed-tensors


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("compressed_tensors.quantization")


@pytest.mark.parametrize("name", [*INTEGERS, *FLOATS])
def test_compressed_tensors_gives_every_module_the_scheme_of_its_format(library, tmp_path, name):
    from compressed_tensors.compressors.format import infer_module_format

    plan = without_blocks(llama_plan(name, "bf16"), 3)
    if name == "int4":  # its groups of 128 fit down_proj alone
        plan = plan.replace(decisions=tuple(item for item in plan if item.role == "mlp_down"))
    document = written(plan, "compressed-tensors", tmp_path)["quantization_config"]
    config, model = library.QuantizationConfig.model_validate(document), llama()
    library.apply_quantization_config(model, config, show_progress=False)
    schemes = {label: part.quantization_scheme for label, part in model.named_modules()
               if getattr(part, "quantization_scheme", None)}  # fmt: skip
    assert set(schemes) == {module_of(item) for item in plan if item.format == name}
    kind, expected = ("int", INTEGERS[name]) if name in INTEGERS else ("float", (*FLOATS[name], True))
    for scheme in schemes.values():
        weights = scheme.weights
        assert (weights.num_bits, weights.strategy, weights.group_size, weights.symmetric) == expected
        assert (weights.type, weights.dynamic, scheme.input_activations) == (kind, False, None)
        assert scheme.format == infer_module_format(type(model.lm_head), scheme).value
    assert config.format == next(iter(schemes.values())).format


@pytest.mark.parametrize(("name", "preset"), [("mxfp4", "MXFP4A16"), ("mxfp6", "MXFP6A16"), ("mxfp8", "MXFP8A16"),
                                              ("nvfp4", "NVFP4A16"), ("int4", "W4A16"),
                                              ("int4-asym", "W4A16_ASYM")])  # fmt: skip
def test_schemes_are_the_presets_of_compressed_tensors_where_there_is_one(library, name, preset):
    from compressed_tensors.quantization import preset_name_to_scheme

    from tailwise.compression.export.compressed_tensors import scheme

    ours = library.QuantizationArgs.model_validate(scheme(parse_format(name), None)["weights"])
    theirs = preset_name_to_scheme(preset, ["Linear"]).weights
    assert ours.model_dump(exclude={"zp_dtype", "observer"}) == theirs.model_dump(exclude={"zp_dtype", "observer"})


def test_several_formats_are_groups_of_a_mixed_config_and_kept_layers_are_ignored(tmp_path):
    document = written(llama_plan("int4-g32", "mxfp4", "bf16"), "compressed-tensors", tmp_path)["quantization_config"]
    assert document["format"] == "mixed-precision"
    assert [group["format"] for group in document["config_groups"].values()] == [
        "pack-quantized", "mxfp4-pack-quantized"]  # fmt: skip
    assert len(document["ignore"]) == 4 * 7
    assert "model.layers.2.mlp.up_proj" in document["ignore"]


# llm-compressor


@pytest.mark.parametrize(("operator", "settings", "name", "order"), [
    ("rtn", {}, "QuantizationModifier", "absent"),
    ("gptq", {}, "GPTQModifier", None),
    ("gptq", {"act_order": True}, "GPTQModifier", "static"),
])  # fmt: skip
def test_a_recipe_names_the_modifier_and_its_order_of_columns(tmp_path, operator, settings, name, order):
    plan = llama_plan("int4-g32", "int8", operator=operator, **settings)
    stage = written(plan, "llmcompressor", tmp_path)["quantization_stage"]["quantization_modifiers"]
    assert list(stage) == [name]
    assert stage[name].get("actorder", "absent") == order
    assert [group["weights"]["num_bits"] for group in stage[name]["config_groups"].values()] == [4, 8]


# Names


def matched(targets, module):
    return any(re.match(target.removeprefix("re:"), module) for target in targets)


@pytest.mark.parametrize("to", ["llmcompressor", "compressed-tensors"])
def test_every_layer_is_in_the_one_group_of_its_format(tmp_path, to):
    plan = llama_plan("int4-g32", "int8", "mxfp4")
    text = json.dumps(written(plan, to, tmp_path))
    document = json.loads(text)
    inner = document.get("quantization_config") or document["quantization_stage"]["quantization_modifiers"][
        "QuantizationModifier"]  # fmt: skip
    for item in plan:
        groups = inner["config_groups"].values()
        holds = [group["weights"]["num_bits"] for group in groups if matched(group["targets"], module_of(item))]
        assert holds == [int(parse_format(item.format).element_bits)]
    for stranger in ("model.layers.1.mlp.up_proj2", "xmodel.layers.1.mlp.up_proj", "model.layers.12.mlp.up_proj"):
        assert not any(matched(group["targets"], stranger) for group in inner["config_groups"].values())


# GPTQModel, by its documented grammar: patterns of `-:` are tried first, then those of `+:` in their order


def dynamic(document, module):
    patterns = sorted(document["dynamic"].items(), key=lambda item: not item[0].startswith("-"))
    for pattern, fields in patterns:
        if re.match(re.sub(r"^[+-]:", "", pattern), module):
            return None if pattern.startswith("-") else {**document, **fields}
    return document


def test_gptqmodel_gets_bits_groups_and_symmetry_of_every_layer(tmp_path):
    plan = without_blocks(llama_plan("int4-g32", "int4-g32", "int8", "int3-asym-g64", "bf16"), 11)
    document = written(plan, "gptqmodel", tmp_path)
    assert (document["bits"], document["group_size"], document["sym"], document["desc_act"]) == (4, 32, True, False)
    expected = {"int4-g32": (4, 32, True), "int8": (8, -1, True), "int3-asym-g64": (3, 64, False)}
    for item in plan:
        found = dynamic(document, module_of(item))
        assert (found and (found["bits"], found["group_size"], found["sym"])) == expected.get(item.format)
    for left in ("model.layers.11.mlp.up_proj", "model.layers.1.mlp.up_proj2", "model.layers.1.mlp"):
        assert dynamic(document, left) is None


def test_gptqmodel_is_not_told_to_skip_a_name_inside_a_block(tmp_path):
    """It first asks for every name as it is in a block, and would drop those that `-:` matches from all blocks."""
    document = written(llama_plan("int4-g32", "int8"), "gptqmodel", tmp_path)
    for inside in ("self_attn.q_proj", "mlp.up_proj", "mlp.experts.0.up_proj"):
        assert dynamic(document, inside) is not None


def test_gptqmodel_takes_layers_in_blocks_alone(tmp_path):
    plan = llama_plan("int4-g32")
    head = plan.decisions[0].but(tensor="lm_head.weight", role="lm_head", block=None)
    with pytest.raises(UsageError, match="1 layer\n  int4-g32: lm_head"):
        export(plan.replace(decisions=(*plan.decisions, head)), "gptqmodel", tmp_path / "a.json")


def test_gptqmodel_is_told_the_order_of_columns(tmp_path):
    plan = llama_plan("int4-g32", operator="gptq", act_order=True)
    document = written(plan, "gptqmodel", tmp_path)
    assert (document["desc_act"], document["act_group_aware"]) == (True, False)
    assert "act_group_aware" not in written(llama_plan("int4-g32"), "gptqmodel", tmp_path)  # RTNConfig has none
    assert dynamic(document, "model.layers.1.mlp.up_proj")["desc_act"] is True


# AutoRound


def test_autoround_names_each_layer_and_leaves_all_else_in_16_bits(tmp_path):
    names = ["int4-asym-g32", "int8", "int8-tensor", "mxfp4", "mxfp8", "nvfp4", "fp8_e4m3", "fp8_e4m3-tensor", "bf16"]
    plan = llama_plan(*names)
    document = written(plan, "autoround", tmp_path)
    assert document["scheme"] == "BF16"
    found = [document["layer_config"].get(f"model.layers.{block}.mlp.up_proj") for block in range(9)]
    assert [item and (item["bits"], item["group_size"], item["sym"], item["data_type"]) for item in found] == [
        (4, 32, False, "int"), (8, -1, True, "int"), (8, 0, True, "int"), (4, 32, True, "mx_fp"),
        (8, 32, True, "mx_fp"), (4, 16, True, "nv_fp"), (8, -1, True, "fp"), (8, 0, True, "fp"), None]  # fmt: skip
    assert {item["act_bits"] for item in document["layer_config"].values()} == {16}


# torchao


TORCHAO = {
    "int8": "Int8Tensor",
    "int8-g32": "Int8Tensor",
    "int8-tensor": "Int8Tensor",
    "int8-asym": "IntxUnpackedToInt8Tensor",
    "int4-g32": "IntxUnpackedToInt8Tensor",
    "int4-asym-g32": "IntxUnpackedToInt8Tensor",
    "int3-channel": "IntxUnpackedToInt8Tensor",
    "int2-g64": "IntxUnpackedToInt8Tensor",
    "fp8_e4m3": "Float8Tensor",
    "fp8_e4m3-tensor": "Float8Tensor",
    "fp8_e5m2": "Float8Tensor",
    "nvfp4": "NVFP4Tensor",
}


@pytest.mark.filterwarnings("ignore")
def test_torchao_quantizes_each_layer_as_planned_and_writes_the_same_json(tmp_path):
    import torch

    core = pytest.importorskip("torchao.core.config")
    from torchao.quantization import quantize_
    from transformers import TorchAoConfig

    plan = llama_plan(*TORCHAO)
    plan = plan.replace(decisions=tuple(item.but(format="bf16" if item.role == "attn_o" else item.format)
                                        for item in plan if item.role != "attn_v"))  # fmt: skip
    document = written(plan, "torchao", tmp_path)
    config, model = core.config_from_dict(document), llama()
    assert core.config_to_dict(config)["_data"]["fqn_to_config"] == document["_data"]["fqn_to_config"]
    assert TorchAoConfig(config).quant_type is config
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    quantize_(model, config, filter_fn=None)
    formats = {item.tensor: item.format for item in plan}
    for name, part in model.named_parameters():
        kind = TORCHAO.get(formats.get(name, ""))
        assert type(part.data).__name__ == (kind or "Tensor"), name
        if kind is None:
            assert torch.equal(part, before[name])
    assert torch.isfinite(model(torch.arange(8)[None]).logits).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["int8", "int8-g32", "int8-tensor", "fp8_e4m3", "fp8_e4m3-tensor", "fp8_e5m2",
                                  "int4-g32", "int4-asym-g32", "int3-channel", "int2-g64", "nvfp4"])  # fmt: skip
def test_what_torchao_stores_is_as_far_from_the_weights_as_tailwise_measures(tmp_path, name):
    import torch

    core = pytest.importorskip("torchao.core.config")
    from torchao.quantization import quantize_

    item = llama_plan(name).decisions[0].but(tensor="0.weight", shape=(64, 128))
    document = written(llama_plan(name).replace(decisions=(item,)), "torchao", tmp_path)
    # Off zero, and rows of several sizes: another symmetry, another group would be far off.
    weights = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 64)[:, None] + 1
    model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False))
    model[0].weight.data = weights.clone()
    quantize_(model, core.config_from_dict(document), filter_fn=None)
    theirs = (model[0].weight.dequantize().float() - weights).square().mean()
    ours = (parse_format(name).quantize(weights).values - weights).square().mean()
    # Scales are float32 there and 16 bits here.
    assert theirs / ours == pytest.approx(1.0, abs=0.01)


@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_a_model_by_the_config_for_torchao(tmp_path):
    core = pytest.importorskip("torchao.core.config")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    llama().save_pretrained(tmp_path / "model")
    config = TorchAoConfig(core.config_from_dict(written(llama_plan("int8", "bf16"), "torchao", tmp_path)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=config)
    for name, part in model.named_parameters():
        planned = name.endswith("proj.weight") and int(name.split(".")[2]) % 2 == 0
        assert type(part.data).__name__ == ("Int8Tensor" if planned else "Tensor"), name


def test_torchao_refuses_mx_which_it_has_with_activations_only(tmp_path):
    with pytest.raises(UsageError, match="torchao cannot say what the plan asks of 84 layers") as told:
        export(llama_plan("mxfp4"), "torchao", tmp_path / "a.json")
    assert "mxfp4: model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj" in told.value.what
    assert "and 81 more" in told.value.what
    assert "nvfp4" in (told.value.fix or "")


# What cannot be said


@pytest.mark.parametrize("to", [name for name in QUANTIZERS if name not in ("llamacpp",)])
def test_one_error_names_all_that_a_tool_cannot_say(tmp_path, to):
    plan = llama_plan("nf4-g32", "fp8_e5m2-cast", "int4-g32")
    odd = plan.decisions[0].but(tensor="model.layers.0.mlp.experts.up", role="expert_up", shape=(4, 32, 64),
                  n_params=8192, format="int4-g32")  # fmt: skip
    with pytest.raises(UsageError) as told:
        export(plan.replace(decisions=(odd, *plan.decisions[1:])), to, tmp_path / f"a{EXPORTERS[to].suffixes[0]}")
    lines = told.value.what.splitlines()
    assert "56 layers" in lines[0]
    assert len(lines) == 4
    assert any("not a linear layer with one matrix: model.layers.0.mlp.experts.up" in line for line in lines)
    assert sum(" more" in line for line in lines) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", [name for name in QUANTIZERS if name != "llamacpp"])
def test_a_plan_that_quantizes_nothing_is_refused(tmp_path, to):
    with pytest.raises(UsageError, match="quantizes nothing"):
        export(llama_plan("bf16"), to, tmp_path / f"a{EXPORTERS[to].suffixes[0]}")


@pytest.mark.parametrize("to", QUANTIZERS)
@pytest.mark.parametrize("base", FORMATS)
def test_every_format_is_written_or_refused_by_name(tmp_path, to, base):
    name = f"{base}-g32" if base[:3] == "int" or base == "nf4" else base
    path = tmp_path / f"a{EXPORTERS[to].suffixes[0]}"
    refused = ""
    try:
        export(llama_plan(name, "int4-g32"), to, path)
    except UsageError as error:
        refused = error.what
    assert path.exists() is not (name in refused)


def test_a_file_is_never_written_over_a_plan(tmp_path):
    plan = llama_plan("int4-g32")
    for suffix, to in ((".json", "autoround"), (".yaml", "llmcompressor")):
        path = plan.save(tmp_path / f"plan{suffix}")
        with pytest.raises(UsageError, match="would be overwritten"):
            export(plan, to, path)
