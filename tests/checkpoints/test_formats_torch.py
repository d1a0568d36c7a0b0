"""PyTorch's files: nothing runs, wrappers come off, damage is named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.checkpoints.formats.saved import find_tensors
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UnsafeError


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "safetensors", "weird"])
def test_code_is_refused_and_never_runs(tmp_path, suffix, new_format):
    mark = tmp_path / "ran"
    path = tmp_path / f"model.{suffix}"
    torch.save({"w": torch.ones(2), "x": Evil(mark)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UnsafeError, match="was refused: loading it would run code") as caught:
        open_checkpoint(path)
    assert not mark.exists()
    assert "torch.save(plain(x)" in str(caught.value.fix)


def test_a_bare_pickle_of_code_is_refused(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "model.bin").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UnsafeError):
        open_checkpoint(tmp_path / "model.bin")
    assert not mark.exists()


W = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ({"a.w": W}, {"a.w"}),
        ({"state_dict": {"a.w": W}, "epoch": 3, "best": torch.tensor(0.5)}, {"a.w"}),
        ({"model": {"module": {"a.w": W}}, "optimizer": {"state": {0: {"exp_avg": W}}}}, {"a.w"}),
        ({"model_state_dict": {"model.w": W}}, {"model.w"}),
        ({"generator": {"w": W}, "discriminator": {"w": W}}, {"generator.w", "discriminator.w"}),
        ({"generator": {"w": W}, "optimizer": {"w": W}}, {"generator.w"}),
        ({"net": {"w": W}, "optim_g": {"state": {0: {"exp_avg": W}}, "param_groups": []}}, {"net.w"}),
        ({"net": {"w": W}, "o": [{"state": {0: {"m": W}}, "param_groups": []}]}, {"net.w"}),
        ({"net": {"w": W}, "adam": {0: {"step": torch.tensor(1), "exp_avg": W, "exp_avg_sq": W}}}, {"net.w"}),
        ({"net": {"a": {"state": W, "param_groups": W}, "step": {"step": W}}}, {"net.step.step"}),
        ({"state_dict": {"w": W}, "model": {"v": W}}, {"state_dict.w", "model.v"}),
        ({"model": {"w": W}, "head": W}, {"model.w", "head"}),
        ({"model": {}, "layers": [W, {"w": W}]}, {"layers.0", "layers.1.w"}),
        (W, {"weight"}),
    ],
)
def test_nested_state_dicts(saved, names):
    assert find_tensors(saved).tensors.keys() == names


def test_shared_tensors_are_told(tmp_path):
    torch.save({"a": W, "b": W, "c": W.clone()}, tmp_path / "m.pt")
    assert open_checkpoint(tmp_path / "m.pt").shared == {"b": "a"}


def test_views_and_transposes_come_back(tmp_path):
    base = torch.randn(6, 4)
    saved = {"t": base.T, "half": base[3:], "column": base[:, 1]}
    torch.save(saved, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    for name, tensor in saved.items():
        assert torch.equal(checkpoint.read(name), tensor)


def test_layouts_that_are_not_rows_are_named(tmp_path):
    torch.save({"s": torch.eye(3).to_sparse(), "w": W}, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    with pytest.raises(UnreadableError, match=r"tensor s: has the layout torch\.sparse_coo"):
        checkpoint.read("s")
    assert torch.equal(checkpoint.read("w"), W)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("keep", [5, 60, 300, -3])
def test_a_truncated_file(tmp_path, new_format, keep):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.randn(20, 20)}, path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableError, match="download or save it again") as caught:
        open_checkpoint(path)
    assert not isinstance(caught.value, UnsafeError)


def test_no_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(UnreadableError, match="holds no tensors"):
        open_checkpoint(tmp_path / "m.pt")


def test_a_file_that_changes_after_it_was_opened(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.randn(20, 20)}, path)
    checkpoint = open_checkpoint(path)
    path.write_bytes(b"short")
    with pytest.raises(UnreadableError, match="has changed since"):
        checkpoint.read("w")


def test_a_file_that_changes_while_it_is_read_gives_no_rows(tmp_path, monkeypatch):
    from tailwise.checkpoints.formats import torch_pickle

    torch.save({"w": torch.ones(30, 20)}, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as found:
        real, looks = torch_pickle._stamp, []

        def stamp(path):
            looks.append(path)
            size, changed = real(path)
            return size, changed + (len(looks) > 1)  # after the first look, as the rows are taken

        monkeypatch.setattr(torch_pickle, "_stamp", stamp)
        with pytest.raises(UnreadableError, match="has changed since"):
            found.read("w")


def test_rows_that_were_read_stay_as_they_were_when_the_file_is_written_over(tmp_path):
    torch.save({"w": torch.ones(30, 20)}, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as found:
        rows = found.read("w")
        data = (tmp_path / "m.pt").read_bytes()
        with (tmp_path / "m.pt").open("r+b") as file:
            file.write(data.replace(b"\x00\x00\x80\x3f", b"\x00\x00\x00\x40"))
        assert torch.equal(rows, torch.ones(30, 20))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors_of_torch_are_read_as_the_numbers_they_stand_for(tmp_path):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(24, 32, generator=generator)
    scales, zeros = torch.rand(24, generator=generator) / 20 + 0.02, torch.arange(24) % 5
    by_row = torch.quantize_per_channel(matrix, scales, zeros, 0, torch.qint8)
    saved = {
        "conv.weight": by_row,
        "conv.scale": torch.tensor(0.1),  # of the layer's output
        "conv.zero_point": torch.tensor(3),
        "one.weight": torch.quantize_per_tensor(matrix, 0.05, 100, torch.quint8),
    }
    torch.save(saved, tmp_path / "m.pt")
    for source in (tmp_path / "m.pt", saved):
        audit = tw.audit(source, use_cache=False, baseline_replicas=1, min_evals=8)
        assert {row.name: row.status for row in audit.rows if row.name in ("conv", "one")} == dict.fromkeys(
            ("conv", "one"), "FEW_EIGENVALUES"
        )
        checkpoint = open_checkpoint(source)
        want = (by_row.int_repr().float() - zeros[:, None]) * scales[:, None]
        torch.testing.assert_close(checkpoint.read("conv.weight"), want.float())
        assert torch.equal(checkpoint.read_rows("one.weight", 5, 9), saved["one.weight"].dequantize()[5:9])


def packed_linear(weight):
    """What torch.ao stores of a dynamically quantized Linear."""
    return {"fc._packed_params._packed_params": (weight, torch.zeros(len(weight))), "fc.scale": torch.tensor(1.0)}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_the_packed_weight_of_a_quantized_linear_has_the_layers_name(tmp_path):
    weight = torch.quantize_per_tensor(torch.randn(24, 32), 0.05, 0, torch.qint8)
    torch.save(packed_linear(weight), tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert checkpoint.tensors.keys() == {"fc.weight", "fc.bias", "fc.scale"}
    assert torch.equal(checkpoint.read("fc.weight"), weight.dequantize())


def test_tensors_of_torchao_are_dequantized_by_it(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    model = torch.nn.Sequential(torch.nn.Linear(64, 48, bias=False))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    torch.save(model.state_dict(), tmp_path / "m.bin")
    want = model[0].weight.dequantize()
    for source in (tmp_path / "m.bin", model):
        assert torch.equal(open_checkpoint(source).read("0.weight"), want)
        (row,) = tw.audit(source, use_cache=False, baseline_replicas=1).rows
        assert (row.status, row.reading) == ("FEW_EIGENVALUES", "torchao")


class Closed(torch.Tensor):
    """A tensor that lets nobody at its entries."""

    @staticmethod
    def __new__(cls, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} is not there")


def test_a_tensor_class_without_a_way_to_its_entries_is_unsupported():
    (row,) = tw.audit({"fc.weight": Closed((48, 32))}, use_cache=False, baseline_replicas=1).rows
    assert row.status == "UNSUPPORTED"
    assert "Closed, a tensor class that has no dequantize() of its own; give the model before" in row.reason


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_printed_lines_copy_the_arrays_of_a_plain_pickle(tmp_path, monkeypatch, protocol):
    array = np.random.default_rng(0).standard_normal((24, 32)).astype(np.float32)
    names = np.array(["backbone", None], dtype=object)
    saved = {"model": {"fc.weight": array, "names": names}, "__author__": "someone"}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(saved, protocol=protocol))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeError) as caught:
        open_checkpoint("m.pkl")
    lines = [line[4:] for line in str(caught.value.fix).splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})
    copy = open_checkpoint("m-tensors.pt")
    assert np.array_equal(copy.read("fc.weight").numpy(), array)


@pytest.mark.parametrize("name", ["m.pt2", "m.pt"])
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.9's own loader
def test_a_program_of_torch_export_is_named_and_its_way_out_works(tmp_path, name):
    model = torch.nn.Sequential(torch.nn.Linear(8, 6))
    torch.export.save(torch.export.export(model, (torch.randn(1, 8),)), tmp_path / "m.pt2")
    path = (tmp_path / "m.pt2").rename(tmp_path / name)
    with pytest.raises(UnreadableError, match=r"is a program of torch\.export") as caught:
        open_checkpoint(path)
    assert "torch.export.load(FILE).state_dict" in str(caught.value.fix)
    torch.save(torch.export.load(path.rename(tmp_path / "m.pt2")).state_dict, tmp_path / "model.pt")
    assert torch.equal(open_checkpoint(tmp_path / "model.pt").read("0.weight"), model[0].weight)


def test_a_file_of_gpt_sovits_is_named_and_reads_with_its_first_bytes_put_back(tmp_path):
    torch.save({"weight": {"enc_p.weight": W}}, tmp_path / "m.pth")
    data = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(b"05" + data[2:])
    with pytest.raises(UnreadableError, match="is a model of GPT-SoVITS") as caught:
        open_checkpoint(tmp_path / "m.pth")
    assert "b'PK' + data[2:]" in str(caught.value.fix)
    (tmp_path / "model.pth").write_bytes(b"PK" + (tmp_path / "m.pth").read_bytes()[2:])
    assert torch.equal(open_checkpoint(tmp_path / "model.pth").read("weight.enc_p.weight"), W)
