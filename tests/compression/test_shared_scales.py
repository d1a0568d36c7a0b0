"""Layers that servers hold as one share their scale of the tensor, so that what is served is what was rounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from packed_models import WINDOWS, both, logits, mixtral, plan_for, values
from packed_models import saved as saved_even
from safetensors import safe_open
from tiny_models import quantize

from inline import Inline
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.plans.schemes import scheme_of
from tailwise.compression.treating.shared_scales import joined_reaches
from tailwise.compression.trying.trial import Looking, trial_of
from tailwise.number_formats.formats import parse_format

pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")
LAYOUT = "compressed-tensors"
QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


def _uneven(folder: Path) -> Path:
    """Each member of a group with another largest entry."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_({"k_proj": 0.61, "v_proj": 0.17, "up_proj": 3.3, "w3": 0.4}.get(name.split(".")[-2], 1.0))
            if name.endswith(
                ("gate_up_proj", "experts.w13")
            ):  # (experts, gate then up, in), as transformers holds them
                parameter[:, parameter.shape[1] // 2 :].mul_(0.4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return _uneven(saved_even(tmp_path_factory.mktemp("llama")))


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _groups(names: Iterator[str] | dict[str, torch.Tensor], leaf: str, *together: tuple[str, ...]) -> list[list[str]]:
    """Modules of each group, and alone those that are in none."""
    found: dict[str, list[str]] = {}
    for name in names:
        module = name.removesuffix(leaf)
        if module != name:
            parent, _, own = module.rpartition(".")
            ends = next((ends for ends in together if own in ends), (own,))
            found.setdefault(f"{parent}.{ends[0]}", []).append(module)
    return list(found.values())


def _decoded(stored: dict[str, torch.Tensor], module: str, scale: torch.Tensor) -> torch.Tensor:
    """By the library's own decompressor."""
    from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(**scheme_of(parse_format("nvfp4")).weights)
    parts = {name: stored[f"{module}.{name}"] for name in ("weight_packed", "weight_scale")}
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return NVFP4PackedCompressor.decompress({**parts, "weight_global_scale": scale}, scheme)["weight"]


def _theirs(weights: Iterable[torch.Tensor]) -> float:
    """The library's scale of all entries."""
    from compressed_tensors.quantization.utils import generate_gparam

    entries = torch.cat([weight.float().flatten() for weight in weights])
    return float(generate_gparam(entries.amin(), entries.amax()))


def _check_nvfp4(source: Path, packed: Path, dense: Path, groups: list[list[str]]) -> None:
    stored, before, after = _stored(packed), values(source), values(dense)
    for group in groups:
        scales = torch.cat([stored[f"{module}.weight_global_scale"] for module in group])
        assert scales.tolist() == [_theirs(before[f"{module}.weight"] for module in group)] * len(group), group
        for module in group:
            # vLLM keeps the largest scale of the members, for dense layers, and the first for experts.
            for served in (stored[f"{module}.weight_global_scale"], scales.max().reshape(1), scales[:1]):
                decoded = _decoded(stored, module, served)
                assert torch.equal(decoded, after[f"{module}.weight"].to(decoded.dtype)), module


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_what_a_server_decodes_is_what_was_rounded(llama, tmp_path, operator):
    how = {"calibration": WINDOWS, "batch": 4} if operator == "gptq" else {}
    made = both(llama, plan_for(llama, "nvfp4", operator=operator), LAYOUT, tmp_path, **how)
    groups = _groups(_stored(made.packed), ".weight_global_scale", QKV, GATE_UP)
    assert sorted({len(group) for group in groups}) == [1, 2, 3]
    if operator == "rtn":
        _check_nvfp4(llama, made.packed, made.dense, groups)
        assert torch.equal(logits(made.packed), logits(made.dense))
    else:  # alone, gptq counts no column whose inputs are always zero
        _check_nvfp4(llama, made.packed, made.dense, [group for group in groups if len(group) > 1])


def test_gate_and_up_of_each_expert_share_theirs(tmp_path):
    source = _uneven(mixtral(tmp_path / "source"))
    made = both(source, plan_for(source, "nvfp4"), LAYOUT, tmp_path)
    groups = _groups(_stored(made.packed), ".weight_global_scale", QKV, GATE_UP, ("w1", "w3"))
    assert sum(len(group) == 2 for group in groups) == 2 * 4
    _check_nvfp4(source, made.packed, made.dense, groups)


def test_fp8_of_the_tensor_is_not_rounded_twice(llama, tmp_path):
    """Rounded again to the largest scale of its group, as some kernels have it, every code stays."""
    made = both(llama, plan_for(llama, "fp8_e4m3-tensor"), LAYOUT, tmp_path)
    stored = _stored(made.packed)
    for group in _groups(stored, ".weight_scale", QKV, GATE_UP):
        largest = max(float(stored[f"{module}.weight_scale"]) for module in group)
        for module in group:
            codes = stored[f"{module}.weight"]
            again = (codes.float() * stored[f"{module}.weight_scale"] / largest).to(codes.dtype)
            assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8)), module


@pytest.mark.parametrize("name", ["int4-tensor", "fp8_e4m3", "mxfp4"])
def test_formats_whose_scales_nobody_merges_are_as_they_were(llama, tmp_path, name):
    quantize(plan_for(llama, name), llama, tmp_path / "out", ApplyOptions())
    before, after, chosen = values(llama), values(tmp_path / "out"), parse_format(name)
    for tensor in ("model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.gate_proj.weight"):
        assert torch.equal(chosen.quantize(before[tensor]).values.to(before[tensor].dtype), after[tensor])


def test_members_of_another_format_are_by_themselves(llama, tmp_path):
    plan = plan_for(llama, "nvfp4")
    mixed = plan.replace(decisions=tuple(d.but(format="int8") if "v_proj" in d.tensor else d for d in plan))
    quantize(mixed, llama, tmp_path / "out", ApplyOptions(packed=LAYOUT, force=True))
    stored, before = _stored(tmp_path / "out"), values(llama)
    attention = "model.layers.0.self_attn"
    expected = _theirs(before[f"{attention}.{end}.weight"] for end in ("q_proj", "k_proj"))
    for end in ("q_proj", "k_proj"):
        assert float(stored[f"{attention}.{end}.weight_global_scale"]) == expected


def test_members_in_other_shards_count_too(llama, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path / "source", max_shard_size="9KB")
    plan = plan_for(llama, "nvfp4")
    quantize(plan, llama, tmp_path / "one", ApplyOptions())
    spread = ApplyOptions(executor=Inline(), workers=2, force=True)
    quantize(plan, tmp_path / "source", tmp_path / "spread", spread)
    one, other = values(tmp_path / "one"), values(tmp_path / "spread")
    assert all(torch.equal(one[item.tensor], other[item.tensor]) for item in plan)


def test_a_search_sees_what_is_written(llama, tmp_path):
    import transformers

    plan = plan_for(llama, "nvfp4")
    quantize(plan, llama, tmp_path / "out", ApplyOptions())
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).requires_grad_(False)
    places, after = {item.tensor: item.tensor for item in plan}, values(tmp_path / "out")
    dtypes = dict.fromkeys(places, torch.bfloat16)
    trial, _ = trial_of(model, places, plan, Looking(WINDOWS), ({"model_type": "llama"}, dtypes))
    trial.losses(plan, WINDOWS)
    for item in plan:
        assert torch.equal(trial.under(item), after[item.tensor]), item.tensor
        assert torch.equal(model.get_parameter(item.tensor).to(torch.bfloat16), after[item.tensor]), item.tensor


def test_one_member_that_is_not_finite_leaves_the_others_their_own():
    good, bad = torch.ones(1, 2, 16), torch.full((1, 2, 16), float("nan"))
    assert joined_reaches([good, bad]) == joined_reaches([good, bad / 0]) == ()
    assert joined_reaches([good, good.expand(2, 2, 16)]) == ()
    (reach,) = joined_reaches([good, -3 * good])
    assert (reach.low, reach.high) == (-3.0, 1.0)


def test_the_source_has_every_scale_apart(llama):
    """Else the tests above could not fail."""
    with open_checkpoint(llama) as checkpoint:
        largest = [float(checkpoint.read(f"model.layers.0.self_attn.{end}.weight").abs().max()) for end in QKV]
    assert len(set(largest)) == 3
