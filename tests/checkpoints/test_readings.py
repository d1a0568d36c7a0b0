"""What the tensors of a module are: read right, or refused with their neighbours. Truth is plain torch."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.matrices import group, load
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.readings.partition import READINGS, claims_on

OUT, IN = 48, 64


def taken(arrays, config=None, **settings):
    checkpoint = MemoryCheckpoint("m", arrays, config=config)
    found, rest = group(checkpoint, conv="flatten", min_evals=8, **settings)
    matrices = {s.name: torch.cat(list(load(s, checkpoint)[0].row_blocks(1000))) for s in found}
    accounted = {t for s in found for t in s.tensors} | {t for u in rest for t in (u.tensors or (u.name,))}
    assert set(arrays) <= accounted
    return {s.name: s for s in found}, matrices, {u.name: u for u in rest}


def test_weight_norm_and_its_kin_are_the_weight_that_the_module_computes_with():
    torch.manual_seed(0)
    made = {
        "rows": parametrizations.weight_norm(nn.Linear(IN, OUT)),
        "conv": parametrizations.weight_norm(nn.Conv1d(IN, OUT, 5)),
        "columns": parametrizations.weight_norm(nn.Linear(IN, OUT), dim=1),
        "all": parametrizations.weight_norm(nn.Linear(IN, OUT), dim=None),
        "transposed": parametrizations.weight_norm(nn.ConvTranspose1d(IN, OUT, 4)),
        "spectral": parametrizations.spectral_norm(nn.Linear(IN, OUT)),
        "orthogonal": parametrizations.orthogonal(nn.Linear(IN, IN)),
        "wide": parametrizations.orthogonal(nn.Linear(IN, OUT), orthogonal_map="matrix_exp"),
        "tall": parametrizations.orthogonal(nn.Linear(OUT, IN), orthogonal_map="cayley"),
    }
    for name, module in made.items():
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.rand_like(parameter), alpha=0.3)
        module.eval()
        truth = module.weight.detach()
        _, matrices, _ = taken({f"{name}.{key}": value for key, value in module.state_dict().items()})
        (W,) = matrices.values()
        expected = (truth.transpose(0, 1) if name == "transposed" else truth).flatten(1)
        if name == "tall":  # the map is not stored: the spectrum is that of any orthogonal map
            torch.testing.assert_close(torch.linalg.svdvals(W), torch.ones(OUT), rtol=0, atol=1e-5)
        else:
            torch.testing.assert_close(W, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_old_names_of_weight_and_spectral_norm_are_read_too():
    for module in (
        nn.utils.weight_norm(nn.Linear(IN, OUT)),
        nn.utils.weight_norm(nn.Conv2d(IN, OUT, 3), dim=None),
        nn.utils.spectral_norm(nn.Linear(IN, OUT)),
        nn.utils.spectral_norm(nn.ConvTranspose2d(IN, OUT, 3)),
    ):
        module.eval()
        module(torch.randn(2, IN, *[8] * (module.weight.ndim - 2)))  # the hook computes the weight
        found, matrices, _ = taken({f"m.{key}": value for key, value in module.state_dict().items()})
        truth = module.weight.detach()
        turned = isinstance(module, nn.ConvTranspose2d)
        expected = (truth.transpose(0, 1) if turned else truth).flatten(1)
        torch.testing.assert_close(matrices["m"], expected, rtol=1e-5, atol=1e-6)
        assert found["m"].reading.startswith("computed")


def test_a_pruned_module_is_its_weight_times_its_mask():
    module = prune.l1_unstructured(nn.Linear(IN, OUT), "weight", 0.7)
    _, matrices, _ = taken({f"m.{key}": value for key, value in module.state_dict().items()})
    assert torch.equal(matrices["m"], module.weight.detach())


def test_a_weight_behind_an_unknown_parametrization_is_refused_in_a_file():
    class Symmetric(nn.Module):
        def forward(self, X):
            return X.triu() + X.triu(1).T

    module = nn.Linear(IN, IN)
    parametrize.register_parametrization(module, "weight", Symmetric())
    found, _, rest = taken(module.state_dict())
    assert not found
    assert rest["parametrizations.weight.original"].status == "UNSUPPORTED"


SCALES = {
    "one": (),
    "rows": (OUT,),
    "column of rows": (OUT, 1),
    "blocks": (OUT // 16, IN // 16),
}


@pytest.mark.parametrize("name", ["scale", "scale_weight", "weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("exponents", [False, True])
def test_fp8_is_read_with_its_scale_under_each_of_its_names(name, kind, exponents):
    codes = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    scale = torch.exp2(torch.randint(-6, 3, SCALES[kind]).float())
    wide = scale if scale.ndim == 0 else scale.reshape(scale.shape[0], -1)
    if scale.ndim:
        wide = wide.repeat_interleave(OUT // wide.shape[0], 0).repeat_interleave(IN // wide.shape[1], 1)
    stored = scale.to(torch.float8_e8m0fnu) if exponents else scale
    found, matrices, _ = taken({"a.weight": codes, f"a.{name}": stored, "a.input_scale": torch.tensor(0.5)})
    torch.testing.assert_close(matrices["a"], codes.float() * wide, rtol=0, atol=0)
    assert found["a"].reading == "fp8"


@pytest.mark.parametrize("name", ["weight_foo", "multiplier", "weight.quant_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (OUT,), (OUT, 1), (IN,), (3, 4)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bfloat16])
def test_a_weight_beside_a_scale_of_an_unknown_name_is_refused_with_it(name, shape, dtype):
    W = (10 * torch.randn(OUT, IN)).to(dtype)
    found, _, rest = taken({"a.weight": W, f"a.{name}": torch.rand(shape), "a.bias": torch.zeros(OUT)})
    assert not found
    assert {rest["a.weight"].status, rest[f"a.{name}"].status} == {"UNSUPPORTED"}
    assert rest["a.bias"].status == "NOT_A_MATRIX"


def test_fp8_without_a_scale_is_read_as_it_is_and_says_so():
    codes = torch.randn(OUT, IN).to(torch.float8_e5m2)
    found, matrices, _ = taken({"a.weight": codes, "a.bias": torch.zeros(OUT)})
    assert torch.equal(matrices["a"].float(), codes.float())
    assert "fp8 without scales" in found["a"].note


KNOWN_NEIGHBOURS = {
    "batch norm": ["running_mean", "running_var", "num_batches_tracked", "bias"],
    "activation scales": ["input_scale", "output_scale", "input_amax", "k_scale"],
    "fused norm": ["layer_norm_weight", "layer_norm_bias", "_extra_state"],
    "rotary": ["inv_freq"],
    "style": ["noise_strength", "resample_filter"],
}


@pytest.mark.parametrize("names", KNOWN_NEIGHBOURS.values(), ids=KNOWN_NEIGHBOURS)
def test_neighbours_that_do_not_scale_a_weight_refuse_nothing(names):
    arrays = {"a.weight": torch.randn(OUT, IN), **{f"a.{name}": torch.rand(OUT) for name in names}}
    found, _, _ = taken(arrays)
    assert list(found) == ["a"]


def mlx_pack(codes, bits):
    """Rows of integers to 32-bit words, lowest bits first, bit by bit."""
    words = torch.zeros(codes.shape[0], codes.shape[1] * bits // 32, dtype=torch.int64)
    for i in range(codes.shape[1]):
        for b in range(bits):
            at = i * bits + b
            words[:, at // 32] |= ((codes[:, i].long() >> b) & 1) << (at % 32)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).view(torch.uint32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_mlx_groups_are_scale_times_code_plus_bias(bits, size):
    inputs = 256
    codes = torch.randint(0, 2**bits, (OUT, inputs))
    scales, biases = torch.rand(OUT, inputs // size).bfloat16(), torch.randn(OUT, inputs // size).bfloat16()
    wide = [x.float().repeat_interleave(size, 1) for x in (scales, biases)]
    arrays = {"a.weight": mlx_pack(codes, bits), "a.scales": scales, "a.biases": biases}
    config = {"quantization": {"group_size": 64, "bits": 8, "a": {"group_size": size, "bits": bits}}}
    found, matrices, _ = taken(arrays, config)
    torch.testing.assert_close(matrices["a"], codes * wide[0] + wide[1])
    assert (found["a"].reading, found["a"].dtype) == ("mlx", f"MLX_INT{bits}")
    if size == 64:  # the default, where nothing is said
        found, matrices, _ = taken(arrays)
        torch.testing.assert_close(matrices["a"], codes * wide[0] + wide[1])
        assert "assumed" in found["a"].note


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_nvfp4_of_modelopt_has_a_scale_a_group_and_one_for_all():
    codes = torch.randint(0, 16, (OUT, IN))
    scale = (torch.rand(OUT, IN // 16) * 4).to(torch.float8_e4m3fn)
    arrays = {
        "a.weight": (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8),
        "a.weight_scale": scale,
        "a.weight_scale_2": torch.tensor(0.37),
        "a.input_scale": torch.tensor(0.1),
    }
    found, matrices, _ = taken(arrays, {"quantization_config": {"quant_method": "modelopt"}})
    expected = E2M1[codes] * scale.float().repeat_interleave(16, 1) * 0.37
    torch.testing.assert_close(matrices["a"], expected)
    assert (found["a"].reading, found["a"].dtype) == ("fp4", "NVFP4")


def test_fp4_codes_with_exponents_beside_them_are_mxfp4():
    codes = torch.randint(0, 16, (OUT, IN))
    exponents = torch.exp2(torch.randint(-4, 4, (OUT, IN // 32)).float())
    arrays = {
        "a.weight": (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8).view(torch.int8),
        "a.scale": exponents.to(torch.float8_e8m0fnu),
    }
    _, matrices, _ = taken(arrays)
    torch.testing.assert_close(matrices["a"], E2M1[codes] * exponents.repeat_interleave(32, 1))


def u8(*shape):
    return torch.randint(0, 200, shape, dtype=torch.uint8)


PACKINGS = {
    "HQQ": {"W_q": u8(OUT // 2, IN), "scale": torch.rand(OUT, 1), "zero": torch.rand(OUT, 1), "nbits": torch.tensor(4)},
    "nunchaku": {
        "qweight": u8(OUT, IN // 2).view(torch.int8),
        "wscales": torch.rand(16, OUT),
        "smooth_factor": torch.rand(IN),
        "proj_down": torch.rand(IN, 32),
        "proj_up": torch.rand(OUT, 32),
    },
    "AQLM": {
        "codes": u8(OUT, 8, 1).view(torch.int8),
        "codebooks": torch.rand(1, 256, 1, 8),
        "scales": torch.rand(OUT, 1, 1, 1),
    },
    "ExLlamaV3": {"trellis": torch.zeros(16, 16, 48, dtype=torch.int16), "suh": torch.rand(IN), "svh": torch.rand(OUT)},
    "ExLlamaV2": {
        "q_weight": torch.zeros(16, OUT, dtype=torch.int32),
        "q_invperm": torch.zeros(IN, dtype=torch.int16),
        "q_scale": torch.zeros(8, 8, dtype=torch.int32),
        "q_scale_max": torch.rand(8),
    },
    "an unknown method": {"weight": u8(OUT, IN // 2), "scaling": torch.rand(OUT, 16)},
}


@pytest.mark.parametrize("maker", PACKINGS)
def test_packings_that_are_not_known_are_refused_with_all_that_belongs_to_them(maker):
    arrays = {f"m.a.{leaf}": value for leaf, value in PACKINGS[maker].items()} | {"m.b.weight": torch.randn(OUT, IN)}
    found, _, rest = taken(arrays)
    assert list(found) == ["m.b"]
    assert {rest[f"m.a.{leaf}"].status for leaf, value in PACKINGS[maker].items() if value.ndim} == {"UNSUPPORTED"}
    assert any(maker in row.reason for row in rest.values())


def factors(rank=8, out=OUT, inputs=IN):
    return torch.randn(rank, inputs), torch.randn(out, rank)


LORA = {
    "kohya": ("lora_unet_mid_block_attn1_to_q", "lora_down.weight", "lora_up.weight", "alpha"),
    "diffusers": ("unet.mid.attn1.processor.to_q_lora", "down.weight", "up.weight", None),
    "diffusers with peft's names": ("unet.mid.attn1.to_q", "lora_A.weight", "lora_B.weight", "alpha"),
    "peft without its config": (
        "base_model.model.layers.0.q_proj",
        "lora_A.default.weight",
        "lora_B.default.weight",
        None,
    ),
    "loralib": ("layers.0.q_proj", "lora_A", "lora_B", None),
    "torchtune": ("layers.0.attn.q_proj", "lora_a.weight", "lora_b.weight", None),
    "Megatron": ("decoder.layers.0.self_attention.linear_qkv.adapter", "linear_in.weight", "linear_out.weight", None),
    "NeMo": ("layers.0.adapter_layer.lora_kqv_adapter", "linear_in.weight", "linear_out.weight", None),
    "Meta": ("layers.0.attention.wo", "adaptor.A.weight", "adaptor.B.weight", None),
    "a named adapter of diffusers": (
        "transformer.blocks.0.to_q",
        "lora_A.default_0.weight",
        "lora_B.default_0.weight",
        None,
    ),
    "linear layer": ("mid.attn1.to_q", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight", None),
}


@pytest.mark.parametrize("tool", LORA)
def test_lora_factors_are_read_as_the_change_that_they_make(tool):
    module, down, up, alpha = LORA[tool]
    A, B = factors()
    arrays = {f"{module}.{down}": A, f"{module}.{up}": B}
    if alpha:
        arrays[f"{module}.{alpha}"] = torch.tensor(4.0)
    found, matrices, _ = taken(arrays)
    ((name, W),) = matrices.items()
    torch.testing.assert_close(W.float(), (0.5 if alpha else 1.0) * B @ A, rtol=1e-5, atol=1e-5)
    assert (found[name].kind, found[name].rows, found[name].cols) == ("lora", OUT, IN)
    assert not name.startswith("base_model")
    assert "adapter" not in name.rpartition(".")[2].replace("lora_kqv_adapter", "")
    assert "default_0" not in name
    assert "_lora" not in name


@pytest.mark.parametrize("names", [("lora_a", "lora_b"), ("lora.A", "lora.B"), ("lora_A", "lora_B")])
@pytest.mark.parametrize("out", [OUT, IN])
def test_bare_factors_stored_transposed_are_told_by_the_rank_even_where_the_weight_is_square(names, out):
    a, b = torch.randn(IN, 8), torch.randn(8, out)
    x = torch.randn(5, IN)
    found, matrices, _ = taken({f"layers.0.q_proj.{names[0]}": a, f"layers.0.q_proj.{names[1]}": b})
    assert list(found) == ["layers.0.q_proj"]
    torch.testing.assert_close(x @ matrices["layers.0.q_proj"].float().T, x @ a @ b, rtol=1e-4, atol=1e-3)


def test_mlx_changes_of_experts_and_tables_are_those_that_its_fuse_adds():
    a, b = torch.randn(3, 8, IN), torch.randn(3, OUT, 8)
    rows, cols = torch.randn(100, 8), torch.randn(8, OUT)
    arrays = {
        "layers.0.mlp.switch_mlp.gate_proj.lora_a": a,
        "layers.0.mlp.switch_mlp.gate_proj.lora_b": b,
        "model.embed_tokens.lora_a": rows,
        "model.embed_tokens.lora_b": cols,
    }
    config = {"adapter_config": {"lora_parameters": {"rank": 8, "scale": 20.0}}}
    found, matrices, _ = taken(arrays, config)
    assert {s.note for s in found.values()} == {""}
    for e in range(3):
        change = matrices[f"layers.0.mlp.switch_mlp.gate_proj[{e}]"]
        torch.testing.assert_close(change.float(), 20 * b[e] @ a[e], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(matrices["model.embed_tokens"].float(), 20 * rows @ cols, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "settings", "scale"),
    [
        ("adapters", {"fine_tune_type": "lora", "lora_parameters": {"rank": 8, "scale": 20.0}}, 20.0),
        ("other", {"lora_alpha": 32, "use_rslora": True, "alpha_pattern": {"q_proj": 16}}, 16 / 8**0.5),
    ],
)  # fmt: skip
def test_the_scale_is_taken_from_the_settings_beside_the_file(tmp_path, name, settings, scale):
    A, B = factors()
    save_file({"layers.0.q_proj.lora_A": A, "layers.0.q_proj.lora_B": B}, tmp_path / f"{name}.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with open_checkpoint(tmp_path / f"{name}.safetensors") as checkpoint:
        (W,) = spectra_of(checkpoint).values()
        torch.testing.assert_close(W.float(), scale * B @ A, rtol=1e-4, atol=1e-3)


def test_the_scale_is_taken_from_the_settings_that_diffusers_writes_into_the_header(tmp_path):
    A, B = factors()
    names = ("transformer.blocks.0.to_q", "transformer.blocks.0.to_k", "text_encoder.layers.0.q_proj")
    arrays = {f"{n}.lora_{side}.weight": value.clone() for n in names for side, value in (("A", A), ("B", B))}
    told = {
        "transformer.r": 8, "transformer.lora_alpha": 32, "transformer.alpha_pattern": {"blocks.0.to_k": 4},
        "text_encoder.lora_alpha": 16, "text_encoder.use_rslora": True,
    }  # fmt: skip
    save_file(arrays, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(told)})
    with open_checkpoint(tmp_path / "lora.safetensors") as checkpoint:
        found, _ = group(checkpoint, conv="flatten", min_evals=8)
        assert {s.note for s in found} == {""}
        matrices = spectra_of(checkpoint)
    for name, scale in zip(names, (4, 0.5, 16 / 8**0.5), strict=True):
        torch.testing.assert_close(matrices[name].float(), scale * B @ A, rtol=1e-4, atol=1e-3)


def test_the_factors_of_a_control_lora_are_read_and_two_weights_called_up_and_down_are_not_multiplied():
    up, down = torch.randn(OUT, 8), torch.randn(8, IN)
    arrays = {"input_blocks.1.1.to_q.up": up, "input_blocks.1.1.to_q.down": down}
    _, matrices, _ = taken({"lora_controlnet": torch.zeros(0), **arrays})
    torch.testing.assert_close(matrices["input_blocks.1.1.to_q"].float(), up @ down, rtol=1e-4, atol=1e-4)
    assert len(taken(arrays)[0]) == 2


def test_a_bottleneck_adapter_with_a_non_linearity_is_no_product():
    arrays = {
        "layers.0.adapter_layer.adapter_1.linear_in.weight": torch.randn(16, IN),
        "layers.0.adapter_layer.adapter_1.linear_out.weight": torch.randn(IN, 16),
    }
    found, _, _ = taken(arrays)
    assert {s.reading for s in found.values()} == {"plain"}


@pytest.mark.parametrize("end", [".weight", ".default.weight"])
def test_factors_of_all_experts_and_rows_of_tokens_are_refused_where_the_config_is_not_there(end):
    stem = "base_model.model.layers.0.experts"
    arrays = {
        f"{stem}.base_layer.lora_A{end}": torch.randn(32, 96),
        f"{stem}.base_layer.lora_B{end}": torch.randn(32, 32),
        f"{stem}.lora_A{end}": torch.randn(32, 32),
        f"{stem}.lora_B{end}": torch.randn(48, 32),
        f"embed_tokens.token_adapter.trainable_tokens_delta{end.removesuffix('.weight')}": torch.randn(16, 32),
    }
    found, _, rest = taken(arrays)
    assert not found
    assert {row.status for row in rest.values()} == {"UNSUPPORTED"}
    assert sum("target_parameters" in row.reason for row in rest.values()) == 4


def test_lora_factors_of_a_fused_projection_are_refused_for_what_they_are():
    arrays = {"h.0.attn.qkv.lora_A": torch.randn(16, IN), "h.0.attn.qkv.lora_B": torch.randn(2 * IN, 8)}
    found, _, rest = taken(arrays)
    assert not found
    assert all("2 pairs of rank 8" in row.reason and "save" not in row.reason for row in rest.values())


def test_lora_of_a_convolution_multiplies_the_1x1_after_the_kernel():
    down, up = torch.randn(8, IN, 3, 3), torch.randn(OUT, 8, 1, 1)
    arrays = {
        "lora_unet_x.lora_down.weight": down,
        "lora_unet_x.lora_up.weight": up,
        "lora_unet_x.alpha": torch.tensor(8),
    }
    _, matrices, _ = taken(arrays)
    (W,) = matrices.values()
    expected = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down).flatten(1)
    torch.testing.assert_close(W.float(), expected, rtol=1e-5, atol=1e-5)


def test_a_change_beside_the_weight_that_it_changes_has_a_name_of_its_own():
    A, B = factors()
    W = torch.randn(OUT, IN)
    found, matrices, _ = taken({"q_proj.weight": W, "q_proj.lora_A": A, "q_proj.lora_B": B})
    assert list(found) == ["q_proj", "q_proj#lora"]
    assert torch.equal(matrices["q_proj"], W)


@pytest.mark.parametrize(
    ("kind", "leaves"),
    [
        ("LoHa", ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"]),
        ("LoKr", ["lokr_w1", "lokr_w2", "alpha"]),
        ("OFT", ["oft_blocks"]),
        ("GLoRA", ["a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"]),
        ("DoRA of MLX", ["lora_a", "lora_b", "m"]),
        ("DoRA", ["lora_down.weight", "lora_up.weight", "dora_scale", "alpha"]),
        ("Tucker", ["lora_down.weight", "lora_mid.weight", "lora_up.weight", "alpha"]),
    ],
)
def test_rarer_adapters_are_refused_by_name(kind, leaves):
    arrays = {f"lora_unet_x.{leaf}": torch.randn(16, 16) if leaf != "alpha" else torch.tensor(8.0) for leaf in leaves}
    found, _, rest = taken(arrays)
    assert not found
    assert all(row.status == "UNSUPPORTED" and kind in row.reason for row in rest.values())


def test_the_moments_of_an_optimizer_are_no_weights():
    arrays = {
        "state.0.exp_avg": torch.randn(OUT, IN),
        "state.0.exp_avg_sq": torch.rand(OUT, IN),
        "state.0.step": torch.ones(()),
    }
    found, _, rest = taken(arrays)
    assert not found
    assert "moment" in rest["state.0.exp_avg"].reason


def test_every_tensor_is_claimed_once_whatever_the_names():
    """Readings may not overlap: each pair of names that readings look for, in one module."""
    marks = sorted({mark for reading in READINGS for mark in reading.marks})
    dtypes = [torch.float32, torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn]
    generator = torch.Generator().manual_seed(0)
    for first in marks:
        for second in marks:
            arrays = {}
            for leaf in dict.fromkeys((f"weight{first}", f"weight{second}", first.strip("."), "weight", "scale")):
                pick = dtypes[int(torch.randint(len(dtypes), (), generator=generator))]
                arrays[f"m.{leaf}".replace("..", ".")] = torch.ones(16, 16).to(pick)
            checkpoint = MemoryCheckpoint("m", arrays)
            claims = claims_on(checkpoint, checkpoint.tensors)
            members = [member for _, read in claims.weights.values() for member in read.members]
            named = members + list(claims.refused) + list(claims.aside)
            assert sorted(set(named)) == sorted(arrays)
            assert not set(members) & (set(claims.refused) | set(claims.aside))
            clash = [why for why in claims.refused.values() if "two readings" in why]
            assert not clash, (first, second, arrays.keys(), clash)


def spectra_of(checkpoint):
    found, _ = group(checkpoint, conv="flatten", min_evals=8)
    return {s.name: torch.cat(list(load(s, checkpoint)[0].row_blocks(1000))) for s in found}


def test_a_live_module_is_asked_for_its_weight_and_left_as_it_was():
    class Symmetric(nn.Module):
        def forward(self, X):
            return X.triu() + X.triu(1).T

    model = nn.Sequential(nn.Linear(IN, IN), parametrizations.spectral_norm(nn.Linear(IN, OUT)), nn.ReLU())
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    matrices = spectra_of(MemoryCheckpoint.of_module(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(part.training for part in model.modules())
    model.eval()
    assert list(matrices) == ["0", "1"]
    torch.testing.assert_close(matrices["0"], model[0].weight.detach())
    torch.testing.assert_close(matrices["1"], model[1].weight.detach())


def test_wrappers_hide_neither_names_nor_config():
    class Config:
        def to_dict(self):
            return {"model_type": "gpt_neox", "hidden_size": IN, "num_attention_heads": 4}

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = Config()
            self.query_key_value = nn.Linear(IN, 3 * IN)

    class Lightning(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Inner()

    checkpoint = MemoryCheckpoint.of_module(nn.DataParallel(Lightning()))
    assert list(spectra_of(checkpoint)) == [f"net.query_key_value#{part}" for part in "qkv"]


def test_a_live_adapter_is_read_as_its_base_and_the_change_with_the_scale_it_has():
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(IN, OUT), nn.Linear(OUT, IN))
    base = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=8, lora_alpha=24, target_modules=["0"], init_lora_weights=False)
    )
    matrices = spectra_of(MemoryCheckpoint.of_module(adapted))
    assert list(matrices) == ["0", "0#lora", "1"]
    layer = adapted.base_model.model[0]
    torch.testing.assert_close(matrices["0"], base["0.weight"])
    torch.testing.assert_close(
        matrices["0#lora"].float(), layer.get_delta_weight("default").detach(), rtol=1e-5, atol=1e-5
    )


PLAIN_UP = ["up_blocks.0.upsamplers.0.conv", "decoder.up.1.upsample.conv", "conv_up1", "upconv1"]


@pytest.mark.parametrize("name", PLAIN_UP)
@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (16, 16, 3, 3)])
def test_an_ordinary_convolution_after_upsampling_is_no_transposed_one(name, shape):
    W = torch.randn(shape)
    found, matrices, _ = taken({f"{name}.weight": W, f"{name}.bias": torch.zeros(shape[0])})
    assert torch.equal(matrices[name], W.flatten(1))
    assert ("transposed" in found[name].note) == (shape[0] == shape[1])


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_the_length_of_the_bias_tells_a_transposed_convolution(groups):
    module = nn.ConvTranspose1d(32, 16, 4, groups=groups)
    _, matrices, _ = taken({f"ups.0.{key}": value for key, value in module.state_dict().items()})
    W = module.weight.detach().reshape(groups, 32 // groups, 16 // groups, 4)
    expected = W.permute(0, 2, 1, 3).reshape(16, 32 // groups * 4)
    if groups < 16:
        assert torch.equal(matrices["ups.0"], expected)
    (live,) = (
        spectra_of(MemoryCheckpoint.of_module(nn.ModuleDict({"x": module}))).values() if groups < 16 else [expected]
    )
    assert torch.equal(live, expected)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_k_b.weight", (4, 32, 24)),
        ("layers.0.block_sparse_moe.shared.input_linear.weight", (4, 32, 48)),
        ("altup_projections", (4, 32, 40)),
        ("blk.0.ffn_gate_up_exps.weight", (4, 48, 32)),
    ],
)
def test_three_axes_that_are_no_kernel_are_a_stack_of_matrices(name, shape):
    W = torch.randn(shape)
    _, matrices, _ = taken({name: W})
    assert sum(len(m) * m.shape[1] for m in matrices.values()) == W.numel()
    stems = {n.partition("#")[0] for n in matrices}
    assert stems == {f"{name.removesuffix('.weight')}[{e}]" for e in range(shape[0])}
    for e in range(shape[0]):
        mine = [m for n, m in matrices.items() if f"[{e}]" in n]
        torch.testing.assert_close(sum(m.T @ m for m in mine), W[e].T @ W[e], rtol=1e-4, atol=1e-4)


def test_a_gated_query_alternates_query_and_gate_by_head():
    heads, d = 4, 16
    W = torch.randn(heads * 2 * d, IN)
    config = {"model_type": "qwen3_next", "num_attention_heads": heads, "head_dim": d, "hidden_size": IN}
    found, matrices, _ = taken({"model.layers.3.self_attn.q_proj.weight": W}, config)
    by_head = W.view(heads, 2, d, IN)
    stem = "model.layers.3.self_attn.q_proj"
    assert torch.equal(matrices[f"{stem}#q"], by_head[:, 0].reshape(-1, IN))
    assert torch.equal(matrices[f"{stem}#gate"], by_head[:, 1].reshape(-1, IN))
    assert found[f"{stem}#q"].role == "attn_q"


@pytest.mark.parametrize(
    ("up", "down", "gate_first"),
    [
        ("decoder.layers.0.mlp.linear_fc1", "decoder.layers.0.mlp.linear_fc2", True),
        ("encoder.layer.0.mlp.weights_in", "encoder.layer.0.mlp.weights_out", True),
        ("transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2", False),
    ],
)
def test_a_gated_projection_is_known_by_what_follows_it(up, down, gate_first):
    inner = 96
    W = torch.randn(2 * inner, IN)
    found, matrices, _ = taken({f"{up}.weight": W, f"{down}.weight": torch.randn(IN, inner)})
    first, second = ("gate", "up") if gate_first else ("up", "gate")
    assert torch.equal(matrices[f"{up}#{first}"], W[:inner])
    assert torch.equal(matrices[f"{up}#{second}"], W[inner:])
    assert found[f"{up}#gate"].role == "mlp_gate"
    plain = torch.randn(inner, IN)
    assert up in taken({f"{up}.weight": plain, f"{down}.weight": torch.randn(IN, inner)})[0]


def test_single_blocks_of_flux_hold_attention_and_feed_forward_side_by_side():
    d, inner = 32, 128
    first, last = torch.randn(3 * d + inner, d), torch.randn(d, d + inner)
    found, matrices, _ = taken({"single_blocks.7.linear1.weight": first, "single_blocks.7.linear2.weight": last})
    assert torch.equal(matrices["single_blocks.7.linear1#k"], first[d : 2 * d])
    assert torch.equal(matrices["single_blocks.7.linear1#up"], first[3 * d :])
    assert torch.equal(matrices["single_blocks.7.linear2#down"], last[:, d:])
    assert {s.role for s in found.values()} == {"attn_q", "attn_k", "attn_v", "attn_o", "mlp_up", "mlp_down"}


def test_the_length_of_the_bias_tells_which_axis_is_the_input():
    found, _, _ = taken({"h.0.c_fc.weight": torch.randn(IN, OUT), "h.0.c_fc.bias": torch.zeros(OUT)})
    assert found["h.0.c_fc"].input_axis == 0
    found, _, _ = taken({"h.0.c_fc.weight": torch.randn(OUT, IN), "h.0.c_fc.bias": torch.zeros(OUT)})
    assert found["h.0.c_fc"].input_axis == 1
    found, _, _ = taken({"embed_tokens.weight": torch.randn(OUT, IN)})
    assert found["embed_tokens"].input_axis == 0


def test_of_a_tied_table_and_head_the_table_is_measured_whatever_comes_first():
    table = torch.randn(OUT, IN)
    for names in (["lm_head.weight", "embed_tokens.weight"], ["embed_tokens.weight", "lm_head.weight"]):
        found, _, rest = taken(dict.fromkeys(names, table))
        assert list(found) == ["embed_tokens"]
        assert rest["lm_head.weight"].status == "SHARED"


def test_marlin_and_vptq_are_refused_with_their_scales_and_centroids():
    marlin = {"a.B": torch.zeros(16, 64, dtype=torch.int32), "a.s": torch.rand(16, 32)}
    vptq = {"b.indices": torch.zeros(1, 16, 48, dtype=torch.int32), "b.centroids": torch.rand(1, 256, 8)}
    found, _, rest = taken(marlin | vptq)
    assert not found
    assert {row.status for row in rest.values()} == {"UNSUPPORTED"}


def test_a_gain_with_a_bias_of_its_own_two_axes_is_no_matrix():
    found, _, rest = taken({"a.weight": torch.rand(OUT, IN), "a.bias": torch.rand(OUT, IN)})
    assert not found
    assert "entry by entry" in rest["a.weight"].reason


def test_projections_by_head_are_one_matrix_with_the_hidden_size_first():
    W = torch.randn(32, 4, 8)
    found, matrices, _ = taken({"transformer.layer.0.rel_attn.q": W, "transformer.layer.0.rel_attn.o": W.clone()})
    assert torch.equal(matrices["transformer.layer.0.rel_attn.q"], W.flatten(1))
    assert [source.input_axis for source in found.values()] == [0, 1]


def test_subclasses_of_layers_are_read_as_the_layers():
    class Table(nn.Embedding):
        pass

    class Scaled(nn.Linear):
        pass

    model = nn.ModuleDict({"table": Table(OUT, IN), "wpe": Scaled(IN, OUT, bias=False)})
    checkpoint = MemoryCheckpoint.of_module(model)
    found, _ = group(checkpoint, conv="flatten", min_evals=8)
    assert [(s.name, s.input_axis) for s in found] == [("table", 0), ("wpe", 1)]


def test_a_scale_beside_a_gguf_tensor_multiplies_it():
    class Gguf(MemoryCheckpoint):
        format = "gguf"

    W, stack = torch.randn(OUT, IN), torch.randn(3, OUT, IN)
    arrays = {
        "blk.0.attn_q.weight": W,
        "blk.0.attn_q.scale": torch.tensor([0.25]),
        "blk.0.ffn_up_exps.weight": stack,
        "blk.0.ffn_up_exps.scale": torch.tensor([1.0, 2.0, 3.0]),
    }
    checkpoint = Gguf("m", arrays)
    matrices = spectra_of(checkpoint)
    torch.testing.assert_close(matrices["blk.0.attn_q"], 0.25 * W)
    torch.testing.assert_close(matrices["blk.0.ffn_up_exps[2]"], 3 * stack[2])


def test_what_an_adapter_replaces_is_no_weight_and_what_it_saved_has_the_plain_name():
    arrays = {
        "base_model.model.head.original_module.weight": torch.randn(OUT, IN),
        "base_model.model.head.modules_to_save.default.weight": torch.randn(OUT, IN),
    }
    found, matrices, _ = taken(arrays)
    assert list(found) == ["head"]
    assert torch.equal(matrices["head"], arrays["base_model.model.head.modules_to_save.default.weight"])


def test_a_kernel_of_jax_has_its_inputs_first():
    found, _, _ = taken({"params.Dense_0.kernel": torch.randn(IN, OUT)})
    assert found["params.Dense_0.kernel"].input_axis == 0


def tiled(scale):
    """Scales (rows × cols) in cuBLAS' tiles, entry by entry from its documentation."""
    rows, cols = scale.shape
    high, wide = -(-rows // 128), -(-cols // 4)
    flat = torch.zeros(high * wide * 512)
    for r in range(rows):
        for c in range(cols):
            tile = (r // 128) * wide + c // 4
            flat[tile * 512 + (r % 32) * 16 + (r % 128 // 32) * 4 + c % 4] = scale[r, c]
    return flat.reshape(high * 128, wide * 4)


@pytest.mark.parametrize("rows", [128, 160])
@pytest.mark.parametrize("marked", ["tensor", "header"])
def test_comfy_nvfp4_has_tiled_scales_and_the_first_code_in_the_high_half(rows, marked):
    codes, scale = torch.randint(0, 16, (rows, 128)), torch.exp2(torch.randint(-3, 3, (rows, 8)).float())
    arrays = {
        "a.weight": (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8),
        "a.weight_scale": tiled(scale).to(torch.float8_e4m3fn),
        "a.weight_scale_2": torch.tensor(0.37),
    }
    if marked == "tensor":
        arrays["a.comfy_quant"] = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    checkpoint = MemoryCheckpoint("m", arrays)
    if marked == "header":
        checkpoint.metadata = {"_quantization_metadata": '{"layers": {"a": {"format": "nvfp4"}}}'}
    expected = E2M1[codes] * scale.repeat_interleave(16, 1) * 0.37
    torch.testing.assert_close(spectra_of(checkpoint)["a"], expected)


def test_comfy_mxfp8_has_tiled_exponents():
    codes, exponent = torch.randn(160, 128).to(torch.float8_e4m3fn), torch.randint(120, 134, (160, 4)).float()
    marker = torch.tensor(list(b'{"format": "mxfp8"}'), dtype=torch.uint8)
    arrays = {"a.weight": codes, "a.weight_scale": tiled(exponent).to(torch.uint8), "a.comfy_quant": marker}
    _, matrices, _ = taken(arrays)
    torch.testing.assert_close(matrices["a"], codes.float() * torch.exp2(exponent - 127).repeat_interleave(32, 1))


def test_a_scale_of_the_inputs_beside_fp8_is_not_ignored():
    codes = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    arrays = {"a.weight": codes, "a.weight_scale": torch.tensor(2.0), "a.pre_quant_scale": torch.rand(IN)}
    found, _, rest = taken(arrays)
    assert not found
    assert {row.status for row in rest.values()} == {"UNSUPPORTED"}


def test_what_the_config_says_is_done_to_a_weight_is_done():
    W = torch.randn(OUT, IN)
    settings = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    arrays = {"layers.0.q_proj.weight": W, "lm_head.weight": W.clone()}
    _, matrices, _ = taken(arrays, {"quantization_config": settings})
    scale = W.abs().mean()
    torch.testing.assert_close(matrices["layers.0.q_proj"], (W / scale).round().clamp(-1, 1) * scale)
    assert torch.equal(matrices["lm_head"], W)
    kernel = torch.randn(16, 12, 3, 3) + 0.3
    _, matrices, _ = taken({"stem.conv.weight": kernel}, {"model_type": "bit"})
    flat = kernel.flatten(1)
    expected = (flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(matrices["stem.conv"], expected, rtol=1e-4, atol=1e-5)


def test_matrices_that_are_assembled_of_parts_are_refused():
    parts = {f"a.{part}_weight": torch.randn(OUT, IN) for part in "rijk"}
    experts = {"block.conv_pw.weight": torch.randn(8, 4096), "block.routing_fn.weight": torch.randn(8, IN)}
    codebook = {"c.centroids": torch.randn(64, 8), "c.assignments": torch.zeros(96), "c.counts": torch.zeros(64)}
    found, _, rest = taken(parts | experts | codebook)
    assert list(found) == ["block.routing_fn"]
    assert {rest[name].status for name in (*parts, "block.conv_pw.weight", *codebook)} == {"UNSUPPORTED"}


BUFFERS = ["module.queue", "mel_scale.fb", "stft.forward_basis", "trf_blocks.0.att.mask", "heads.0.tril", "attn_mask",
           "pos_encoder.pe", "rotary.sin", "codebook.embed_avg", "quantize.ema_w"]  # fmt: skip


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_are_no_weights(name):
    found, _, rest = taken({name: torch.randn(OUT, IN), "a.weight": torch.randn(OUT, IN)})
    assert list(found) == ["a"]
    assert "buffer" in rest[name].reason


def test_a_modulated_convolution_has_a_leading_axis_for_the_batch():
    W = torch.randn(1, 32, 64, 3, 3)
    _, matrices, _ = taken({"body.0.conv1.modulated_conv.weight": W})
    assert torch.equal(matrices["body.0.conv1.modulated_conv"], W[0].flatten(1))


def test_auto_rounds_own_packing_stores_zeros_as_they_are():
    from test_packed import pack_stream

    codes, zeros = torch.randint(0, 16, (IN, OUT)), torch.randint(1, 15, (2, OUT))
    scales = torch.rand(2, OUT)
    for packing, stored in (("auto_round", zeros), ("auto_round:auto_gptq", zeros - 1)):
        arrays = {
            "a.qweight": pack_stream(codes, 4),
            "a.qzeros": pack_stream(stored.T, 4).T.contiguous(),
            "a.scales": scales,
        }
        settings = {"quant_method": "auto-round", "packing_format": packing, "bits": 4}
        _, matrices, _ = taken(arrays, {"quantization_config": settings})
        groups = torch.arange(IN) // 32
        torch.testing.assert_close(matrices["a"], ((codes - zeros[groups]) * scales[groups]).T)


def test_the_first_chatglm_alternates_q_k_and_v_by_head():
    heads, d = 8, 8
    W = torch.randn(3 * heads * d, IN)
    config = {"model_type": "chatglm", "num_attention_heads": heads, "hidden_size": IN, "inner_hidden_size": 4 * IN}
    _, matrices, _ = taken({"transformer.layers.0.attention.query_key_value.weight": W}, config)
    by_head = W.view(heads, 3, d, IN)
    for place, part in enumerate("qkv"):
        name = f"transformer.layers.0.attention.query_key_value#{part}"
        assert torch.equal(matrices[name], by_head[:, place].reshape(-1, IN))
