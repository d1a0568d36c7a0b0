"""GPTQ, AWQ, fp8 and MXFP4 as input: what is refused says what to do, and what it says is done here as it stands."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from packed_models import logits, saved, values
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
GROUP = 16


def words(codes):
    """(n, 8·m) codes of 4 bits → (n, m) int32, the first lowest."""
    by_word = codes.reshape(len(codes), -1, 8).long()
    found = sum(by_word[:, :, place] << (4 * place) for place in range(8))
    return torch.where(found >= 2**31, found - 2**32, found).to(torch.int32)


def rounded(W):
    """Codes (in, out), zeros and scales (groups, out), and what they decode to (out, in)."""
    parts = W.float().T.reshape(-1, GROUP, W.shape[0])
    low, high = parts.amin(dim=1), parts.amax(dim=1)
    scales = ((high - low) / 15).clamp(min=1e-6).half()
    zeros = (-low / scales.float()).round().clamp(1, 15)
    codes = (parts / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15)
    decoded = ((codes - zeros[:, None]) * scales.float()[:, None]).reshape(W.T.shape).T
    return codes.reshape(W.T.shape), zeros, scales, decoded


def gptq(name, W):
    codes, zeros, scales, decoded = rounded(W)
    inputs = torch.arange(W.shape[1])
    return {f"{name}.qweight": words(codes.T.contiguous()).T.contiguous(), f"{name}.qzeros": words(zeros - 1),
            f"{name}.scales": scales, f"{name}.g_idx": (inputs // GROUP).to(torch.int32)}, decoded  # fmt: skip


def awq(name, W):
    codes, zeros, scales, decoded = rounded(W)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # of outputs, in a word

    def turned(x):
        return words(x.reshape(len(x), -1, 8)[:, :, order].reshape(x.shape))

    return {f"{name}.qweight": turned(codes), f"{name}.qzeros": turned(zeros), f"{name}.scales": scales}, decoded


def fp8(name, W):
    stored = W.float().clamp(-448, 448).to(torch.float8_e4m3fn)
    return {f"{name}.weight": stored}, stored.float()


PACKINGS = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False,
                    "checkpoint_format": "gptq"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "fp8 without scales": (fp8, None),
}  # fmt: skip


def packed(folder, kind, said=True):
    """A Llama whose blocks are packed; stored tensor → what it decodes to."""
    saved(folder, "llama", torch.float16)
    pack, config = PACKINGS[kind]
    dense, found, decoded = load_file(folder / "model.safetensors"), {}, {}
    for name, W in dense.items():
        if "_proj" in name:
            parts, decoded[name] = pack(name.removesuffix(".weight"), W)
            found |= parts
        else:
            found[name], decoded[name] = W, W.float()
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    if config is not None and said:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    return decoded


@pytest.fixture
def text(tmp_path):
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(3, 60, 4096))
    return ("--calibration", "ids.npy", "--window", 16, "--samples", 4)


def remedy(err):
    """The commands that an error names, with MODEL as it is."""
    found = re.search(r"\((tailwise plan quantize MODEL[^,]*), then (tailwise apply)\)", " ".join(err.split()))
    assert found, err
    return found[1].replace("MODEL", "model").split()[1:]


@pytest.mark.parametrize(
    ("kind", "operator"),
    [("gptq", "wanda"), ("awq", "gptq"), ("awq", "magnitude"), ("fp8 without scales", "wanda")],
)
def test_the_remedy_that_is_printed_works_as_it_is_printed(kind, operator, tmp_path, call, text):
    decoded = packed(tmp_path / "model", kind)
    verb = ["quantize", "--formats", "int4-g16"] if operator == "gptq" else ["prune", "--sparsity", 0.5]
    asked = (*verb, "--operator", operator, "--allocator", "uniform")
    code, _, err = call("plan", *asked[:1], "model", *asked[1:], "-o", "first.json")
    if code == 0:
        code, _, err = call("apply", "first.json", "model", "-o", "out", *text)
    assert code == 2
    assert not (tmp_path / "out").exists()
    code, _, failed = call(*remedy(err), "-o", "numbers.json")
    assert code == 0, failed
    code, _, failed = call("apply", "numbers.json", "model", "-o", "real")
    assert code == 0, failed
    after = values(tmp_path / "real")
    assert set(after) == set(decoded)
    for name, W in decoded.items():
        assert torch.equal(after[name], W.to(torch.float16)), name
    config = json.loads((tmp_path / "real" / "config.json").read_text())
    assert "quantization_config" not in config
    code, _, failed = call("plan", *asked[:1], "real", *asked[1:], "-o", "plan.json")
    assert code == 0, failed
    code, _, failed = call("apply", "plan.json", "real", "-o", "out", *text)
    assert code == 0, failed
    assert torch.isfinite(logits(tmp_path / "out")).all()


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_a_packing_that_no_config_names_is_read_by_its_tensors(kind, tmp_path, call):
    """Folders that lost their config's quantization_config, or name it in quantize_config.json alone."""
    decoded = packed(tmp_path / "model", kind, said=False)
    config = {key: value for key, value in PACKINGS[kind][1].items() if key != "quant_method"}
    (tmp_path / "model" / "quantize_config.json").write_text(json.dumps(config))
    code, _, err = call("plan", "quantize", "model", "--formats", "fp32", "--dequantize", "-o", "n.json")
    assert code == 0, err
    assert call("apply", "n.json", "model", "-o", "real")[0] == 0
    after = values(tmp_path / "real")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[name], decoded[name].to(torch.float16))
