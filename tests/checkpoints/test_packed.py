"""Low-bit formats against integers packed here by the published layouts, and against the libraries."""

from __future__ import annotations

import json
from math import prod

import pytest
import torch

import tailwise as tw
from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.matrices import group, load
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.readings.gptq_awq import unpack_words
from tailwise.checkpoints.readings.partition import claimed
from tailwise.core.errors import UnreadableError

OUT, IN, SIZE = 48, 64, 16  # SIZE: group size along the input


def only_matrix(checkpoint):
    """The one source, and its decoded matrix read in small blocks."""
    (source,), rest = group(checkpoint, conv="flatten", min_evals=8)
    assert {u.status for u in rest} <= {"NOT_A_MATRIX"}
    assert {source.reads[0]} | {u.name for u in rest} == set(checkpoint.tensors)
    assert all("part of" in u.reason for u in rest)
    (matrix,) = load(source, checkpoint)
    return source, torch.cat(list(matrix.row_blocks(1000)))


def pack_stream(codes, bits):
    """Rows of small integers to int32 words, bit by bit, lowest bit first."""
    count, n = codes.shape
    words = torch.zeros(count * bits // 32, n, dtype=torch.int64)
    for i in range(count):
        for b in range(bits):
            at = i * bits + b
            words[at // 32] |= ((codes[i].long() >> b) & 1) << (at % 32)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_words_are_one_bit_stream(bits):
    codes = torch.randint(0, 2**bits, (96, 5))
    assert torch.equal(unpack_words(pack_stream(codes, bits), bits, 96), codes.to(torch.int32))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq(bits, version):
    out, inputs = 64, 96
    codes = torch.randint(0, 2**bits, (inputs, out))
    zeros = torch.randint(0, 2**bits, (inputs // SIZE, out))  # includes 0, stored as −1 in v1
    scales = torch.rand(inputs // SIZE, out).half() + 0.1
    g_idx = torch.randperm(inputs) // SIZE  # act-order
    stored = zeros if version == "gptq_v2" else (zeros - 1) % 2**bits
    checkpoint = MemoryCheckpoint(
        "m",
        {
            "layers.0.q_proj.qweight": pack_stream(codes, bits),
            "layers.0.q_proj.qzeros": pack_stream(stored.T, bits).T.contiguous(),
            "layers.0.q_proj.scales": scales,
            "layers.0.q_proj.g_idx": g_idx.to(torch.int32),
        },
        config={"quantization_config": {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}},
    )
    source, W = only_matrix(checkpoint)
    assert (source.name, source.role, source.reading) == ("layers.0.q_proj", "attn_q", "gptq")
    assert source.dtype == f"GPTQ_INT{bits}"
    assert (source.rows, source.cols) == (out, inputs)
    expected = ((codes - zeros[g_idx]) * scales.float()[g_idx]).T
    torch.testing.assert_close(W, expected)


def test_gptq_of_a_fused_projection_is_split():
    codes = torch.randint(0, 16, (IN, 3 * IN))
    scales = torch.rand(1, 3 * IN)
    arrays = {
        "layers.0.self_attn.qkv_proj.qweight": pack_stream(codes, 4),
        "layers.0.self_attn.qkv_proj.qzeros": pack_stream(torch.full((3 * IN, 1), 7), 4).T.contiguous(),
        "layers.0.self_attn.qkv_proj.scales": scales,
        "layers.0.self_attn.qkv_proj.g_idx": torch.zeros(IN, dtype=torch.int32),
    }
    config = {"model_type": "phi3", "num_attention_heads": 4, "hidden_size": IN}
    checkpoint = MemoryCheckpoint("m", arrays, config=config)
    found, _ = group(checkpoint, conv="flatten", min_evals=8)
    assert [source.role for source in found] == ["attn_q", "attn_k", "attn_v"]
    expected = ((codes - 8) * scales).T
    for i, source in enumerate(found):
        (matrix,) = load(source, checkpoint)
        got = torch.cat(list(matrix.row_blocks(1 << 20)))
        torch.testing.assert_close(got, expected[i * IN : (i + 1) * IN])


def pack_awq(codes):
    """AutoAWQ `gemm`: nibble j of a word is output 8·word + order[j]."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for word in range(words.shape[1]):
        for j, column in enumerate(order):
            words[:, word] |= codes[:, 8 * word + column].long() << (4 * j)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def test_awq():
    codes, zeros = torch.randint(0, 16, (IN, OUT)), torch.randint(0, 16, (IN // SIZE, OUT))
    scales = torch.rand(IN // SIZE, OUT).half()
    checkpoint = MemoryCheckpoint("m", {"a.qweight": pack_awq(codes), "a.qzeros": pack_awq(zeros), "a.scales": scales})
    source, W = only_matrix(checkpoint)
    groups = torch.arange(IN) // SIZE
    assert (source.name, source.reading, source.dtype) == ("a", "awq", "AWQ_INT4")
    torch.testing.assert_close(W, ((codes - zeros[groups]) * scales.float()[groups]).T)


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0]  # fmt: skip


def state_tensor(**settings):
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4bit_by_its_layout(nested):
    codes = torch.randint(0, 16, (OUT * IN,))
    table = torch.tensor(NF4)
    arrays = {
        "a.weight": (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None],
        "a.weight.quant_map": table,
    }
    settings = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [OUT, IN]}
    largest = torch.rand(OUT * IN // 64)
    if nested:
        inner, outer = torch.randint(0, 256, largest.shape), torch.rand(-(-largest.numel() // 32))
        inner_table = torch.linspace(-1, 1, 256)
        largest = inner_table[inner] * outer.repeat_interleave(32)[: largest.numel()] + 0.25
        arrays |= {
            "a.weight.absmax": inner.to(torch.uint8),
            "a.weight.nested_absmax": outer,
            "a.weight.nested_quant_map": inner_table,
        }
        settings |= {"nested_blocksize": 32, "nested_dtype": "float32", "nested_offset": 0.25}
    else:
        arrays["a.weight.absmax"] = largest
    arrays["a.weight.quant_state.bitsandbytes__nf4"] = state_tensor(**settings)
    source, W = only_matrix(MemoryCheckpoint("m", arrays))
    assert (source.name, source.reading, source.dtype) == ("a", "bnb4", "BNB_NF4")
    expected = (table[codes].view(-1, 64) * largest[:, None]).view(OUT, IN)
    torch.testing.assert_close(W, expected)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4bit_against_the_library(kind, nested):
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, state = functional.quantize_4bit(torch.randn(OUT, IN), quant_type=kind, compress_statistics=nested)
    arrays = {f"a.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    _, W = only_matrix(MemoryCheckpoint("m", {"a.weight": codes, **arrays}))
    torch.testing.assert_close(W, functional.dequantize_4bit(codes, state).float())


def test_bitsandbytes_int8():
    W = torch.randn(OUT, IN)
    largest = W.abs().amax(1)
    codes = (W / largest[:, None] * 127).round().to(torch.int8)
    checkpoint = MemoryCheckpoint(
        "m", {"a.weight": codes, "a.SCB": largest, "a.weight_format": torch.tensor(0, dtype=torch.uint8)}
    )
    source, got = only_matrix(checkpoint)
    assert source.reading == "int8"
    torch.testing.assert_close(got, codes * largest[:, None] / 127)
    assert (got - W).abs().max() <= 0.51 * largest.max() / 127


@pytest.mark.parametrize("shape", [(256, 384), (200, 300)])
def test_block_fp8(shape):
    W = torch.randn(shape)
    blocks = [-(-side // 128) for side in shape]
    scale = torch.rand(blocks) + 0.5
    wide = scale.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    codes = (W / wide).to(torch.float8_e4m3fn)
    checkpoint = MemoryCheckpoint("m", {"a.weight": codes, "a.weight_scale_inv": scale})
    source, got = only_matrix(checkpoint)
    assert (source.reading, source.dtype, source.rows) == ("fp8", "F8_E4M3", shape[0])
    torch.testing.assert_close(got, codes.float() * wide)
    assert (got - W).abs().max() < 0.1 * W.abs().max()


@pytest.mark.parametrize("scale_shape", [(), (1,), (OUT, 1), (OUT,)])
def test_fp8_with_one_scale_or_one_per_row(scale_shape):
    codes = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    scale = torch.rand(scale_shape) + 0.5
    _, got = only_matrix(MemoryCheckpoint("m", {"a.weight": codes, "a.weight_scale": scale}))
    torch.testing.assert_close(got, codes.float() * scale.reshape(-1, 1))


def test_fp8_with_scales_that_do_not_fit_is_not_read_as_if_it_had_none():
    arrays = {"a.weight": torch.zeros(OUT, IN).to(torch.float8_e4m3fn), "a.weight_scale": torch.rand(3, 5, 7)}
    found, rest = group(MemoryCheckpoint("m", arrays), conv="flatten", min_evals=8)
    assert found == []
    assert next(u.status for u in rest if u.name == "a.weight") == "UNSUPPORTED"


def test_stacked_fp8_experts_are_split_and_decoded():
    codes = torch.randn(2, 256, 128).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 2, 1)
    arrays = {
        "layers.0.mlp.experts.gate_up_proj": codes,
        "layers.0.mlp.experts.gate_up_proj_scale_inv": scale,
    }
    config = {"model_type": "deepseek_v3", "hidden_size": 128}
    checkpoint = MemoryCheckpoint("m", arrays, config=config)
    found, _ = group(checkpoint, conv="flatten", min_evals=8)
    source = next(s for s in found if s.name == "layers.0.mlp.experts.gate_up_proj[1]#up")
    (matrix,) = load(source, checkpoint)
    expected = codes[1, 128:].float() * scale[1, 1, 0]
    torch.testing.assert_close(torch.cat(list(matrix.row_blocks(1000))), expected)


def test_released_gpt_oss_in_mxfp4_equals_what_transformers_decodes():
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    E, inner, hidden = 2, 16, 64
    stem = "model.layers.0.mlp.experts.gate_up_proj"
    arrays = {
        f"{stem}_blocks": torch.randint(0, 256, (E, 2 * inner, hidden // 32, 16), dtype=torch.uint8),
        f"{stem}_scales": torch.randint(120, 130, (E, 2 * inner, hidden // 32), dtype=torch.uint8),
    }
    config = {
        "model_type": "gpt_oss",
        "hidden_size": hidden,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    checkpoint = MemoryCheckpoint("m", arrays, config=config)
    whole = claimed(checkpoint).read(stem)
    expected = mxfp4.convert_moe_packed_tensors(*arrays.values(), dtype=torch.float32)
    assert torch.equal(whole, expected)
    found, rest = group(checkpoint, conv="flatten", min_evals=8)
    assert [s.name.removeprefix(stem) for s in found] == ["[0]#gate", "[0]#up", "[1]#gate", "[1]#up"]
    assert [u.name for u in rest] == [f"{stem}_scales"]
    (up,) = load(found[3], checkpoint)
    assert torch.equal(torch.cat(list(up.row_blocks(1000))), whole[1][:, 1::2])


CT = {
    "int4-group": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": SIZE}),
    "int4-asymmetric": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": SIZE, "symmetric": False},
    ),
    "int8-channel": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    ),
    "fp8-channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "fp8-tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
}


@pytest.mark.parametrize("case", CT)
def test_compressed_tensors(case):
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    layout, settings = CT[case]
    settings = {"symmetric": True, **settings}
    args = QuantizationArgs(**settings)
    W = torch.randn(OUT, IN)
    shapes = {
        "group": (OUT, IN // SIZE),
        "channel": (OUT, 1),
        "tensor": (1,),
        "tensor_group": (OUT, IN // 16),
    }
    per = shapes[settings["strategy"]]
    state = {"weight": W, "weight_scale": torch.rand(per) * 0.2 + 0.2}
    if not settings["symmetric"]:
        state["weight_zero_point"] = torch.randint(-8, 8, per, dtype=torch.int8)
    if layout.startswith("nvfp4"):
        state["weight_global_scale"] = torch.tensor([2.0])
    codec = compressors.BaseCompressor.get_value_from_registry(layout)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    packed = codec.compress(state, scheme)
    expected = codec.decompress(packed, scheme)["weight"]
    config = {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": layout,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": settings}},
        }
    }
    checkpoint = MemoryCheckpoint("m", {f"a.{key}": value for key, value in packed.items()}, config=config)
    source, got = only_matrix(checkpoint)
    assert source.reading == ("fp8" if case.startswith("fp8") else "compressed-tensors")
    assert (source.rows, source.cols) == (OUT, IN)
    torch.testing.assert_close(got, expected.float())


def compressed_int8(**settings):
    arrays = {"a.weight": torch.zeros(OUT, IN, dtype=torch.int8), "a.weight_scale": torch.ones(OUT, 1)}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {}, **settings}
    return MemoryCheckpoint("m", arrays, config={"quantization_config": quantization})


def test_without_the_library_the_reason_is_the_command(monkeypatch):
    from tailwise.checkpoints.readings import compressed as codecs_compressed

    weights = {"num_bits": 8, "type": "int", "strategy": "channel"}
    checkpoint = compressed_int8(format="int-quantized", config_groups={"g": {"weights": weights}})
    assert len(group(checkpoint, conv="flatten", min_evals=8)[0]) == 1
    monkeypatch.setattr(codecs_compressed, "missing", lambda *names: list(names))
    found, rest = group(checkpoint, conv="flatten", min_evals=8)
    assert found == []
    assert [(u.name, u.status) for u in rest] == [("a.weight", "UNSUPPORTED"), ("a.weight_scale", "UNSUPPORTED")]
    assert all("pip install" in u.reason for u in rest)


ODD_SETTINGS = {
    "groups that are a list": {"config_groups": [1]},
    "targets that are a number": {"config_groups": {"g": {"targets": 5, "weights": {"num_bits": 8}}}},
    "targets that are numbers": {"config_groups": {"g": {"targets": [[]], "weights": {"num_bits": 8}}}},
    "weights that are a list": {"config_groups": {"g": {"targets": ["Linear"], "weights": [8]}}},
}


@pytest.mark.parametrize("settings", ODD_SETTINGS.values(), ids=ODD_SETTINGS)
def test_settings_of_another_kind_are_told(settings):
    with pytest.raises(UnreadableError, match=r"config_groups|targets|weights") as caught:
        group(compressed_int8(format="int-quantized", **settings), conv="flatten", min_evals=8)
    assert "quantization_config" in str(caught.value.fix)


@pytest.mark.parametrize("bits", [0, -4, 4.5, "4", None, 1 << 70])
def test_a_width_that_no_word_holds_is_told(bits):
    arrays = {"a.weight_packed": torch.zeros(OUT, 8, dtype=torch.int32), "a.weight_scale": torch.ones(OUT, 1)}
    groups = {"g": {"targets": ["Linear"], "weights": {"num_bits": bits}}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    checkpoint = MemoryCheckpoint("m", arrays, config={"quantization_config": config})
    with pytest.raises(UnreadableError, match="num_bits"):
        group(checkpoint, conv="flatten", min_evals=8)


DAMAGED = {
    "codes of another type": ({"weight_packed": torch.zeros(OUT, 8, dtype=torch.float16)}, {}),
    "scales of three axes": ({"weight_scale": torch.ones(2, 3, 4)}, {}),
    "a setting that is unknown": ({}, {"NUM_BITS": 4}),
    "a setting of another kind": ({}, {"strategy": ["channel"]}),
    "sides that are negative": ({"weight_shape": torch.tensor([-1, 64])}, {}),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_the_library_cannot_decode_is_one_row(case):
    pytest.importorskip("compressed_tensors")
    arrays, settings = DAMAGED[case]
    whole = {
        "weight_packed": torch.zeros(OUT, 8, dtype=torch.int32),
        "weight_scale": torch.ones(OUT, 1),
        "weight_shape": torch.tensor([OUT, 64]),
        **arrays,
    }
    weights = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": True, **settings}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized",
              "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}}  # fmt: skip
    tensors = {f"a.{name}": tensor for name, tensor in whole.items()}
    checkpoint = MemoryCheckpoint("m", tensors, config={"quantization_config": config})
    found = tw.audit(checkpoint, use_cache=False)
    assert {row.status for row in found.rows} <= {"UNREADABLE", "UNSUPPORTED", "NOT_A_MATRIX", "TOO_SMALL"}
    assert any(row.reason for row in found.rows)


@pytest.mark.parametrize(("dtype", "words"), [("F4", "floats of 4 bits"), ("F6_E2M3", "floats of 6 bits")])
def test_narrow_types_of_safetensors_without_scales_are_said(tmp_path, dtype, words):
    path = narrow(tmp_path, {"l.weight": (dtype, [32, 32], int(dtype[1]))})
    found, rest = group(open_checkpoint(path), conv="flatten", min_evals=8)
    assert found == []
    assert dtype in rest[0].reason
    assert words in rest[0].reason


def test_codes_as_f4_beside_their_scales_are_said(tmp_path):
    path = narrow(tmp_path, {"l.weight": ("F4", [32, 32], 4), "l.weight_scale": ("F8_E8M0", [32, 1], 8)})
    found, rest = group(open_checkpoint(path), conv="flatten", min_evals=8)
    assert found == []
    assert all("F4 (two in a byte)" in item.reason for item in rest)


def narrow(folder, tensors):
    """A safetensors file of zeros, in types that torch may not have."""
    header, end = {}, 0
    for name, (dtype, shape, bits) in tensors.items():
        size = prod(shape) * bits // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = folder / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return path


def test_unknown_packings_are_unsupported_and_plain_integers_are_not():
    arrays = {"a.qweight": torch.zeros(OUT, IN, dtype=torch.int32), "a.lookup": torch.zeros(16, 16)}
    _, rest = group(MemoryCheckpoint("m", arrays), conv="flatten", min_evals=8)
    assert [(u.name, u.status) for u in rest] == [("a.qweight", "UNSUPPORTED"), ("a.lookup", "UNSUPPORTED")]
    _, rest = group(
        MemoryCheckpoint("m", {"ids": torch.zeros(OUT, IN, dtype=torch.int64)}), conv="flatten", min_evals=8
    )
    assert [(u.name, u.status) for u in rest] == [("ids", "NOT_A_MATRIX")]


def test_dense_checkpoints_pass_through():
    W = torch.randn(OUT, IN)
    checkpoint = claimed(MemoryCheckpoint("m", {"a.weight": W}))
    assert dict(checkpoint.tensors) == dict(checkpoint.stored)
    assert torch.equal(checkpoint.read("a.weight"), W)
    assert not checkpoint.is_packed


def test_identity_of_a_packed_weight_covers_its_scales():
    class Stored(MemoryCheckpoint):
        def identity(self, name):
            return f"file:{name}"

    arrays = {"a.weight": torch.zeros(OUT, IN, dtype=torch.int8), "a.SCB": torch.ones(OUT)}
    checkpoint = Stored("m", arrays)
    ((source,), _) = group(checkpoint, conv="flatten", min_evals=8)
    assert source.tensors == ("a.weight", "a.SCB")
    identity = claimed(checkpoint).identity("a.weight")
    assert identity.endswith("+file:a.weight+file:a.SCB")
    assert "int8" in identity  # how it is decoded decides the numbers as much as the bytes do
